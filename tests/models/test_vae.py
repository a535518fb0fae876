"""The VAE, beside torch.distributions."""

import math

import pytest
import torch
from torch import distributions as d

from anomaly_lab.build import build_model
from anomaly_lab.config import compose
from anomaly_lab.models.vae import gaussian_nll, kl_to_normal

SMALL = [
    "dataset.image_size=32",
    "model.latent_dim=4",
    "model.encoder_channels=[4,4,8]",
    "model.decoder_channels=[8,4]",
    "~recipe",
]


def build(*overrides):
    torch.manual_seed(0)
    return build_model(compose("train", ["model=vae", *SMALL, *overrides]))


def test_the_terms_are_those_of_torch_distributions():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    given = d.Normal(mean, (log_variance / 2).exp())
    kl = d.kl_divergence(given, d.Normal(torch.zeros(5, 7), 1.0)).sum(1)
    torch.testing.assert_close(kl_to_normal(mean, log_variance), kl)
    assert kl_to_normal(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]
    x, mean, log_variance = (torch.randn(2, 3, 4, 4) for _ in range(3))
    nll = -d.Normal(mean, (log_variance / 2).exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_nll(x, mean, log_variance), nll)


@pytest.mark.parametrize("variance", ["one", "learned"])
def test_the_loss_is_the_negative_elbo_of_a_pixel_value(variance):
    model = build(f"model.variance={variance}", "model.kl_weight=0.5").eval()
    image = torch.rand(3, 3, 32, 32)
    torch.manual_seed(1)
    loss = model.training_step({"image": image}, 0)
    torch.manual_seed(1)
    mean, log_variance = model.encode(image)
    z = d.Normal(mean, (log_variance / 2).exp()).rsample()
    found, log_variance_x = model.decode(z)
    nll = -d.Normal(found, (log_variance_x / 2).exp()).log_prob(image).sum() / 3
    kl = d.kl_divergence(d.Normal(mean, (log_variance / 2).exp()), d.Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(loss, (nll + 0.5 * kl) / (3 * 32 * 32))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_the_reconstruction_probability_is_an_average_over_samples():
    model = build("model.samples=3").eval()
    image = torch.rand(2, 3, 32, 32)
    found = model.predict(image).scores["probability"]
    mean, log_variance = model.encode(image)
    drawn = [model.decode(mean + n * (log_variance / 2).exp())[0] for n in model.noise]
    by_hand = [(0.5 * (image - made) ** 2).mean((1, 2, 3)) + 0.5 * math.log(2 * math.pi) for made in drawn]
    torch.testing.assert_close(found, torch.stack(by_hand).mean(0))
    again = build("model.samples=3").eval().predict(image).scores["probability"]
    assert torch.equal(found, again)


def test_a_variance_that_is_far_too_large_has_a_gradient_to_come_back_by():
    model = build("model.variance=learned")
    *_, bias = model.log_variance.parameters()
    torch.nn.init.constant_(bias, 60.0)
    model.training_step({"image": torch.rand(2, 3, 32, 32)}, 0).backward()
    assert (bias.grad > 0).all()
