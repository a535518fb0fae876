"""DPAE: the dual prototype autoencoder of P1 (Liu et al., Semi-supervised anomaly detection with dual
prototypes autoencoder for industrial surface inspection).

Where P1 leaves a choice or contradicts itself, the choice is an argument, and `recipe=dpae_literal`
takes the paper at its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from anomaly_lab.models.base import AnomalyModel, checked
from anomaly_lab.nets.autoencoder import Decoder, Encoder, LatentNorm, OutputActivation
from anomaly_lab.ranks import world_size
from anomaly_lab.types import Batch, Prediction

Reduction = Literal["sum", "mean"]


class DPAE(AnomalyModel):
    """Encoder 1, decoder, encoder 2, and a prototype for each encoder's latent vectors.

    Args:
        image_size: side of the square input in pixels, a multiple of 32.
        latent_dim: d, the size of z and z_hat.
        encoder_channels: of the five strided convolutions (P1 Fig. 3 shows no numbers).
        decoder_channels: of the deconvolutions before the last one; null stands for d (P1 Table 1).
        rec_weight: of the reconstruction loss, 0 for P1's Table 5 without it.
        prototype_weight: lambda of Eq. 9.
        prototype_hat_weight: gamma of Eq. 9, called beta in P1's section 4.2.
        latent_weight: of ||z - z_hat||^2, which P1's section 3.3 announces and Eq. 9 lacks; 0 there.
        reduction: `sum` over pixels, latent units and batch as Eq. 9 has it (not a number within the first
            epoch at the paper's learning rate), or `mean` over each of them.
        prototype_rate: Eq. 7 gives a direction, v <- v - rate * mean(v - z), and no rate.
        latent_norm: batch norm of the latents: `affine`, `plain` (cannot shrink them onto the prototype)
            or `none`.
        output_norm: batch norm after the last deconvolution, as in P1's Table 1.
        output: activation after that, a leaky ReLU in P1's Table 1.
    """

    primary_score = "RLZ"  # Eq. 10
    score_names = ("RLX", "RLZ", "PL1", "PL2", "RLX_peak")
    latent_names = ("z", "z_hat")

    prototype: Tensor
    prototype_hat: Tensor

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: PositiveInt,
        encoder_channels: Sequence[PositiveInt],
        decoder_channels: Sequence[PositiveInt | None],
        rec_weight: NonNegativeFloat,
        prototype_weight: NonNegativeFloat,
        prototype_hat_weight: NonNegativeFloat,
        latent_weight: NonNegativeFloat,
        reduction: Reduction,
        prototype_rate: NonNegativeFloat,
        latent_norm: LatentNorm,
        output_norm: bool,
        output: OutputActivation,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.encoder = Encoder(image_size, latent_dim, encoder_channels, latent_norm)
        self.decoder = Decoder(image_size, latent_dim, [c or latent_dim for c in decoder_channels], output_norm, output)
        self.encoder_hat = Encoder(image_size, latent_dim, encoder_channels, latent_norm)
        self.register_buffer("prototype", torch.randn(latent_dim))
        self.register_buffer("prototype_hat", torch.randn(latent_dim))
        self.rec_weight, self.latent_weight = rec_weight, latent_weight
        self.prototype_weight, self.prototype_hat_weight = prototype_weight, prototype_hat_weight
        self.reduction, self.prototype_rate = reduction, prototype_rate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_hat (B, 3, H, W), z (B, d) and z_hat (B, d): Eq. 1 to 3."""
        z = self.encoder(x)
        x_hat = self.decoder(z)
        z_hat = self.encoder_hat(x_hat)
        return x_hat.float(), z.float(), z_hat.float()  # distances need more digits than bf16 has

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Eq. 9 on one batch, then a step of both prototypes (Eq. 7)."""
        x, _ = self.normalise(batch["image"])
        x_hat, z, z_hat = self(x)
        terms = {
            "rec": self.rec_weight * self._distance(x, x_hat),  # Eq. 4
            "prototype": self.prototype_weight / 2 * self._distance(z, self.prototype.expand_as(z)),  # Eq. 5
            "prototype_hat": self.prototype_hat_weight / 2 * self._distance(z_hat, self.prototype_hat.expand_as(z)),
            "latent": self.latent_weight * self._distance(z, z_hat),
        }
        self._move(self.prototype, z)
        self._move(self.prototype_hat, z_hat)
        loss = torch.stack(list(terms.values())).sum()
        self.log_losses(loss, terms, batch_size=len(x))
        return loss

    def predict(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by RLX (Eq. 4), RLZ (Eq. 10), PL1 and PL2 (P1 section 5.3).

        Each as a mean where the equation has a sum, which ranks the images alike. RLX_peak is ours: the greatest value
        of the anomaly map over the root of RLX. A small defect drowns in a sum over the image, and a rough surface
        has large differences everywhere.
        """
        x, restore = self.normalise(image)
        x_hat, z, z_hat = self(x)
        difference = (x - x_hat).abs().mean(1, keepdim=True)
        rlx = (x - x_hat).square().flatten(1).mean(1)
        return Prediction(
            scores={
                "RLX": rlx,
                "RLZ": (z - z_hat).square().mean(1),
                "PL1": (z - self.prototype).square().mean(1),
                "PL2": (z_hat - self.prototype_hat).square().mean(1),
                "RLX_peak": difference.amax((1, 2, 3)) / rlx.sqrt().clamp_min(1e-6),
            },
            anomaly_map=difference,
            reconstruction=restore(x_hat),
            latents={"z": z, "z_hat": z_hat},
        )

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """||a - b||^2, summed or averaged over everything."""
        squares = (a - b).square()
        # DDP averages gradients over the ranks: a sum over the global batch has to make up for it
        return squares.sum() * world_size() if self.reduction == "sum" else squares.mean()

    @torch.no_grad()
    def _move(self, prototype: Tensor, z: Tensor) -> None:
        """v <- v - rate * mean(v - z) over the global batch (Eq. 7)."""
        prototype -= self.prototype_rate * (prototype - self.global_mean(z))
