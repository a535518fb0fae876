import pytest
import torch
from torch import nn

from anomaly_lab.errors import ConfigError
from anomaly_lab.nets.autoencoder import Decoder, Encoder, feature_size


def test_the_papers_sizes():
    assert feature_size(224) == 7  # P1 Fig. 3
    encoder = Encoder(224, 16, [4, 4, 4, 8, 8])
    image = torch.zeros(1, 3, 224, 224)
    assert encoder.features(image).shape == (1, 8, 7, 7)
    decoder = Decoder(224, 16, [16, 16, 256, 128])
    deconvolutions = [m.out_channels for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert deconvolutions == [16, 16, 256, 128, 3]  # P1 Table 1 with d = 16
    assert isinstance(decoder.features[-1], nn.LeakyReLU)
    assert decoder.eval()(torch.zeros(2, 16)).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("size", [0, 16, 100, 225])
def test_a_size_that_does_not_halve_five_times_is_named(size):
    with pytest.raises(ConfigError, match=r"dataset\.image_size"):
        feature_size(size)


@pytest.mark.parametrize(("norm", "learned"), [("affine", 2), ("plain", 0), ("none", 0)])
def test_the_latent_norm(norm, learned):
    encoder = Encoder(32, 5, [2, 2, 2, 4, 4], norm).train()
    assert len(list(encoder.norm.parameters())) == learned
    z = encoder(torch.rand(64, 3, 32, 32))
    standardised = torch.allclose(z.std(0, unbiased=False), torch.ones(5), atol=1e-2)
    assert standardised == (norm != "none")


@pytest.mark.parametrize(("output", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1), ("none", -1e9, 1e9)])
def test_the_range_of_the_output(output, low, high):
    image = Decoder(32, 4, [4, 4, 4, 4], output_norm=False, output=output)(50 * torch.randn(8, 4))
    assert low <= image.min()
    assert image.max() <= high
