"""The variational autoencoder (Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014), a baseline of P1,
with the networks of DPAE's first half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from anomaly_lab.metrics.maps import MAP_SCORES, map_scores
from anomaly_lab.models.base import AnomalyModel, checked
from anomaly_lab.models.residual import Residual, residual_map
from anomaly_lab.nets.autoencoder import Decoder, Encoder, OutputActivation
from anomaly_lab.types import Batch, Prediction

_LOG_VARIANCES = (-7.0, 7.0)  # of latents; beyond, a variance is taken for its nearest end


class VAE(AnomalyModel):
    """Encodes an image as a Gaussian over latent vectors, and decodes one of them as a Gaussian over images.

    Args:
        image_size: side of the square input in pixels, a multiple of 32.
        latent_dim: d, the size of z.
        encoder_channels: of the strided convolutions.
        decoder_channels: of the deconvolutions before the last one; null stands for d.
        output: activation of the decoded mean.
        variance: of a pixel, given z: `one`, which makes the ELBO's first term a squared error, or `learned`, decoded
            for each pixel beside its mean.
        kl_weight: of the ELBO's second term, 1 in the paper.
        samples: latent vectors that the score `probability` is averaged over.
        residual: of the anomaly map: `l1`, `l2` or `ssim`.
    """

    primary_score = "mean"
    score_names = (*MAP_SCORES, "probability", "kl")
    latent_names = ("z",)

    noise: Tensor

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: PositiveInt,
        encoder_channels: Sequence[PositiveInt],
        decoder_channels: Sequence[PositiveInt | None],
        output: OutputActivation,
        variance: Literal["one", "learned"],
        kl_weight: NonNegativeFloat,
        samples: PositiveInt,
        residual: Residual,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        channels = [c or latent_dim for c in decoder_channels]
        self.encoder = Encoder(image_size, 2 * latent_dim, encoder_channels, "none")
        self.decoder = Decoder(image_size, latent_dim, channels, False, output)
        self.log_variance = Decoder(image_size, latent_dim, channels, False, "none") if variance == "learned" else None
        self.kl_weight, self.residual = kl_weight, residual
        self.register_buffer("noise", torch.randn(samples, latent_dim))  # the same for all images, drawn once

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, d) of q(z|x)."""
        mean, log_variance = self.encoder(x).float().chunk(2, 1)
        return mean, log_variance.clamp(*_LOG_VARIANCES)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, 3, H, W) of p(x|z)."""
        z = z.to(self.dtype)
        mean = self.decoder(z).float()
        if self.log_variance is None:
            return mean, torch.zeros_like(mean)
        # no upper end: where a variance is held there, neither it nor the mean has a gradient to come back by
        return mean, self.log_variance(z).float().clamp_min(_LOG_VARIANCES[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The negative ELBO with one sample of z (Eq. 10), for each of an image's pixel values."""
        x, _ = self.normalise(batch["image"])
        mean, log_variance = self.encode(x)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        terms = {
            "reconstruction": gaussian_nll(x, *self.decode(z)).mean() / x[0].numel(),
            "kl": self.kl_weight * kl_to_normal(mean, log_variance).mean() / x[0].numel(),
        }
        loss = torch.stack(list(terms.values())).sum()
        self.log_losses(loss, terms, batch_size=len(x))
        return loss

    def predict(self, image: Tensor) -> Prediction:
        """The residual of the decoded mean of q(z|x), as a map and as image scores.

        `probability` is the reconstruction probability of An and Cho (2015): -log p(x|z), averaged over samples of
        q(z|x), for each pixel value. `kl` is the KL divergence of q(z|x) from the prior.
        """
        x, restore = self.normalise(image)
        mean, log_variance = self.encode(x)
        x_hat, _ = self.decode(mean)
        residual = residual_map(x, x_hat, self.residual, restore)
        deviation = (log_variance / 2).exp()
        drawn = [gaussian_nll(x, *self.decode(mean + noise * deviation)) for noise in self.noise]
        scores = {
            **map_scores(residual),
            "probability": torch.stack(drawn).mean(0) / x[0].numel(),
            "kl": kl_to_normal(mean, log_variance),
        }
        return Prediction(scores, residual, restore(x_hat), {"z": mean})


def gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log N(x; mean, variance) of images (B, 3, H, W), summed over an image's values: (B,)."""
    squares = (x - mean).square() * (-log_variance).exp()
    return (squares + log_variance + math.log(2 * math.pi)).flatten(1).sum(1) / 2


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of latent vectors (B, d), summed over d: (B,), Eq. 10's first term."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
