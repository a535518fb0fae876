"""The autoencoder: P2's first stage and its baseline AE, and P1's baselines AE(L2) and AE(SSIM).

All three are the network and the two losses of Bergmann et al. (VISAPP 2019), which both papers refer to.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor

from anomaly_lab.metrics.maps import MAP_SCORES, map_scores
from anomaly_lab.models.base import AnomalyModel, checked
from anomaly_lab.models.residual import Residual, residual_map
from anomaly_lab.nets.bergmann import BergmannAutoencoder
from anomaly_lab.types import Batch, Prediction


class Autoencoder(AnomalyModel):
    """Reconstructs images through a latent vector; what it leaves out is taken for a defect.

    Args:
        image_size: side of the square input in pixels, a multiple of 16.
        latent_dim: d, 500 in P2.
        loss: `mse` (P2 Eq. 2) or `ssim` (Bergmann et al., 1 - SSIM).
        residual: of the anomaly map: `l1` (P2 Eq. 3), `l2` or `ssim`.
    """

    primary_score = "mean"
    score_names = MAP_SCORES
    latent_names = ("z",)

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: PositiveInt,
        loss: Literal["mse", "ssim"],
        residual: Residual,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.net = BergmannAutoencoder(image_size, latent_dim)
        self.loss, self.residual = loss, residual

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, H, W) and z (B, d): P2 Eq. 1."""
        x_hat, z = self.net(x)
        return x_hat.float(), z.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """P2 Eq. 2 (the mean over channels too), or 1 - SSIM."""
        x, restore = self.normalise(batch["image"])
        x_hat, _ = self(x)
        kind: Residual = "l2" if self.loss == "mse" else "ssim"
        loss = residual_map(x, x_hat, kind, restore).mean()
        self.log_losses(loss, {}, batch_size=len(x))
        return loss

    def reconstruct(self, image: Tensor) -> Tensor:
        """What the network makes of images (B, 3, H, W) in [0, 1], on the same scale."""
        x, restore = self.normalise(image)
        return restore(self(x)[0])

    def predict(self, image: Tensor) -> Prediction:
        """The residual map, and image scores from it."""
        x, restore = self.normalise(image)
        x_hat, z = self(x)
        residual = residual_map(x, x_hat, self.residual, restore)
        return Prediction(map_scores(residual), residual, restore(x_hat), {"z": z})
