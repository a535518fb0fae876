"""PCA, P2's classical baseline: what the principal components of the training images leave out."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from anomaly_lab.errors import ConfigError
from anomaly_lab.metrics.maps import MAP_SCORES, map_scores
from anomaly_lab.models.base import AnomalyModel, checked
from anomaly_lab.models.residual import Residual, residual_map
from anomaly_lab.ranks import gather_rows
from anomaly_lab.types import Batch, Prediction


class PCA(AnomalyModel):
    """Projects images onto the principal components of the training images, fitted once by scikit-learn.

    Args:
        image_size: side of the square input in pixels.
        latent_dim: number of components; P2 prints none.
        residual: of the anomaly map: `l1` (P2 Eq. 3), `l2` or `ssim`.
    """

    primary_score = "mean"
    score_names = MAP_SCORES
    latent_names = ("z",)
    fits_once = True

    mean: Tensor
    components: Tensor

    @checked
    def __init__(self, *, image_size: int, latent_dim: PositiveInt, residual: Residual, **training: Any) -> None:
        super().__init__(**training)
        self.automatic_optimization = False
        self.residual = residual
        self.register_buffer("mean", torch.zeros(3 * image_size**2))
        self.register_buffer("components", torch.zeros(latent_dim, 3 * image_size**2))
        self._seen: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the epoch's images, and fit at its end."""
        x, _ = self.normalise(batch["image"])
        self._seen.append(x.flatten(1).float().cpu())
        if self.trainer.is_last_batch:
            images, self._seen = gather_rows(torch.cat(self._seen).to(self.device)), []
            self.fit(images)
            left_out = (self._project(images)[1] - images).square().mean()
            self.log_losses(left_out, {}, batch_size=len(images))

    def fit(self, images: Tensor) -> None:
        """Mean and components of images (N, D).

        Raises:
            ConfigError: if there are fewer images than components.
        """
        from sklearn import decomposition

        if len(images) < len(self.components):
            raise ConfigError(
                f"model.latent_dim={len(self.components)} components cannot be fitted to {len(images)} training "
                f"images: set model.latent_dim={max(1, len(images) // 2)}, for example."
            )
        method = decomposition.PCA(len(self.components), svd_solver="randomized", random_state=0)
        found = method.fit(images.cpu().numpy())
        self.mean.copy_(torch.from_numpy(found.mean_))
        self.components.copy_(torch.from_numpy(found.components_))

    def predict(self, image: Tensor) -> Prediction:
        """The residual map, and image scores from it."""
        x, restore = self.normalise(image)
        z, x_hat = self._project(x.flatten(1).float())
        x_hat = x_hat.view_as(x)
        residual = residual_map(x, x_hat, self.residual, restore)
        return Prediction(map_scores(residual), residual, restore(x_hat), {"z": z})

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (B, d) and projections (B, D) of flat images (B, D)."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round away what is left out
            mean, components = self.mean.float(), self.components.float()
            z = (x - mean) @ components.T
            return z, z @ components + mean
