"""GANomaly (Akcay, Atapour-Abarghouei and Breckon, GANomaly: semi-supervised anomaly detection via adversarial
training, ACCV 2018), a baseline of P1. Equations are that paper's."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from anomaly_lab.metrics.maps import MAP_SCORES, map_scores
from anomaly_lab.models.base import checked
from anomaly_lab.models.gan import GAN, told_apart
from anomaly_lab.models.residual import residual_map
from anomaly_lab.nets.dcgan import DownNet, UpNet
from anomaly_lab.types import Batch, Prediction


class GANomaly(GAN):
    """Encoder, decoder, encoder as the generator, and a discriminator beside it.

    Args:
        image_size: side of the square input in pixels, 4 or 7 times a power of 2.
        latent_dim: size of z and z_hat; 100 in the paper's code.
        width: channels of the first convolution, 64 in the paper's code.
        adversarial_weight: w_adv of Eq. 4.
        contextual_weight: w_con of Eq. 4.
        encoder_weight: w_enc of Eq. 4.
    """

    primary_score = "latent"  # Eq. 5
    score_names = ("latent", *MAP_SCORES)
    latent_names = ("z", "z_hat")

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: PositiveInt,
        width: PositiveInt,
        adversarial_weight: NonNegativeFloat,
        contextual_weight: NonNegativeFloat,
        encoder_weight: NonNegativeFloat,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.encoder = DownNet(image_size, latent_dim, width)
        self.decoder = UpNet(image_size, latent_dim, width)
        self.encoder_hat = DownNet(image_size, latent_dim, width)
        self.discriminator = DownNet(image_size, 1, width)
        self.adversarial_weight, self.contextual_weight = adversarial_weight, contextual_weight
        self.encoder_weight = encoder_weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_hat (B, 3, H, W), z (B, d) and z_hat (B, d) of images in [-1, 1]."""
        _, z = self.encoder(x)
        x_hat = self.decoder(z)
        _, z_hat = self.encoder_hat(x_hat)
        return x_hat, z.float(), z_hat.float()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """A step of the generator down Eq. 4, then one of the discriminator."""
        x, _ = self.normalise(batch["image"])
        real, real_logits = self.discriminator(x)  # for both turns: the generator's leaves it as it is
        with self.turn("generator") as descend:
            x_hat, terms = self.generator_terms(x, real.detach())
            generator = torch.stack(list(terms.values())).sum()
            descend(generator)
        with self.turn("discriminator") as descend:
            discriminator = told_apart(real_logits, self.discriminator(x_hat.detach())[1])
            descend(discriminator)
        self.log_losses(generator, {"discriminator": discriminator, **terms}, batch_size=len(x))

    def generator_terms(self, x: Tensor, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x_hat, and the weighted terms of Eq. 4: what the discriminator's features tell apart, pixels, latents.

        `real` are the discriminator's features of x.
        """
        x_hat, z, z_hat = self(x)
        fake, _ = self.discriminator(x_hat)
        return x_hat, {
            "adversarial": self.adversarial_weight * F.mse_loss(fake, real),  # Eq. 1
            "contextual": self.contextual_weight * F.l1_loss(x_hat.float(), x.float()),  # Eq. 2
            "encoder": self.encoder_weight * F.mse_loss(z_hat, z),  # Eq. 3
        }

    def predict(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by Eq. 5, the mean absolute difference of their latents.

        Also by the map of what the reconstruction leaves out. The paper scales Eq. 5 by the test set's range, which
        ranks alike and needs the test set; that is left out.
        """
        x, restore = self.normalise(image)
        x_hat, z, z_hat = self(x)
        x_hat = x_hat.float()
        residual = residual_map(x, x_hat, "l1")
        scores = {"latent": (z - z_hat).abs().mean(1), **map_scores(residual)}
        return Prediction(scores, residual, restore(x_hat), {"z": z, "z_hat": z_hat})

    def samples(self, image: Tensor) -> Tensor:
        """The reconstructions."""
        x, restore = self.normalise(image)
        return restore(self(x)[0].float())
