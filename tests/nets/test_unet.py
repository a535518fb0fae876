import pytest
import torch

from anomaly_lab.errors import ConfigError
from anomaly_lab.nets.autoencoder import feature_size
from anomaly_lab.nets.unet import UNet


def test_the_paper_s_network():
    # Ronneberger et al., Fig. 1, with 3 input channels, padding and one output channel: counted by hand
    widths, total = (64, 128, 256, 512, 1024), 0
    for before, after in zip((3, *widths), widths, strict=False):
        total += 9 * before * after + after + 9 * after * after + after
    for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
        total += 4 * wide * narrow + narrow + 9 * wide * narrow + narrow + 9 * narrow * narrow + narrow
    total += 64 + 1
    assert sum(p.numel() for p in UNet(3).parameters()) == total == 31_031_745


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_the_output_has_the_input_s_size_and_sees_every_level(norm, levels):
    torch.manual_seed(0)
    net = UNet(6, 4, levels, norm)
    image = torch.rand(2, 6, 32, 48)
    logits = net(image)
    assert logits.shape == (2, 1, 32, 48)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters() if "weight" in name)


def test_skips_carry_what_pooling_loses():
    torch.manual_seed(0)
    net = UNet(1, 4, 3).eval()
    fine = torch.zeros(1, 1, 16, 16)
    fine[..., ::2, ::2] = 1  # the same after a 2x2 maximum wherever the ones stand
    moved = fine.roll((1, 1), (2, 3))
    assert not torch.allclose(net(fine)[..., 4:12, 4:12], net(moved)[..., 4:12, 4:12], atol=1e-4)


def test_a_size_that_cannot_be_halved_is_named():
    assert feature_size(256, 4) == 16
    with pytest.raises(ConfigError, match=r"dataset\.image_size=100 is no multiple of 16; 96 is the nearest"):
        feature_size(100, 4)
