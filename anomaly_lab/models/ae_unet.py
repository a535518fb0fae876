"""AE+UNet, the method of P2: an autoencoder's difference image guides a UNet."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from anomaly_lab.metrics.maps import map_scores
from anomaly_lab.models.ae import Autoencoder
from anomaly_lab.models.base import checked
from anomaly_lab.models.unet import UNetSegmenter, cross_entropy, disagreement
from anomaly_lab.nets.motion import RigidMotion
from anomaly_lab.types import Batch, Prediction

Inputs = Literal["image", "difference", "image+difference"]


class AEUNet(UNetSegmenter):
    """A UNet that sees an image and what an autoencoder, trained before it and frozen, makes of that image.

    Args:
        autoencoder: the first stage (P2 section 3.1).
        inputs: of the UNet: the image I, the difference D, or [I; D] with six channels (Eq. 4, Table 4).
        consistency_weight: of the disagreement between two views of a labelled image. P2's contributions announce a
            consistency loss, section 3 defines none: 0 is the literal reading.
        view_rotate: degrees, and view_translate: share of a side, of the second view.
    """

    @checked
    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        inputs: Inputs,
        consistency_weight: NonNegativeFloat,
        view_rotate: NonNegativeFloat,
        view_translate: NonNegativeFloat,
        **segmenter: Any,
    ) -> None:
        super().__init__(in_channels=6 if inputs == "image+difference" else 3, **segmenter)
        self.inputs, self.consistency_weight = inputs, consistency_weight
        self.view = {"rotate": view_rotate, "translate": view_translate}
        self.autoencoder = autoencoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> AEUNet:
        """The first stage never trains."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of images (B, 3, H, W) in [0, 1]: Eq. 4."""
        return self._segment(image, self.difference(image)[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Eq. 5 on one labelled batch, and the consistency if it has a weight."""
        if not self.consistency_weight:
            return super().training_step(batch, batch_idx)
        image = batch["image"]
        logits = self(image)
        motion = RigidMotion.draw(len(image), **self.view, flip="none", device=image.device)
        apart = disagreement(self, image, torch.sigmoid(logits), motion)
        terms = {
            "supervised": cross_entropy(logits, batch["mask"]),
            "consistency": self.consistency_weight * apart,
        }
        loss = terms["supervised"] + terms["consistency"]
        self.log_losses(loss, terms, batch_size=len(image))
        return loss

    def predict(self, image: Tensor) -> Prediction:
        """Maps of probabilities, image scores from them, and the first stage's reconstruction."""
        difference, reconstruction = self.difference(image)
        probability = torch.sigmoid(self._segment(image, difference))
        return Prediction(map_scores(probability), probability, reconstruction)

    @torch.no_grad()
    def difference(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """D = |I - I_hat| with its three channels (Eq. 3), and I_hat; both (B, 3, H, W)."""
        reconstruction = self.autoencoder.reconstruct(image)
        return (image - reconstruction).abs(), reconstruction

    def _segment(self, image: Tensor, difference: Tensor) -> Tensor:
        x, _ = self.normalise(image)
        difference = difference.to(x.dtype)
        seen = {"image": x, "difference": difference, "image+difference": torch.cat([x, difference], dim=1)}
        logits: Tensor = self.unet(seen[self.inputs])
        return logits.float()
