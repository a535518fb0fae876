"""The Pi-model (Laine and Aila, Temporal ensembling for semi-supervised learning, ICLR 2017) as P2 compares with."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from anomaly_lab.models.base import checked
from anomaly_lab.models.unet import UNetSegmenter, cross_entropy, disagreement
from anomaly_lab.nets.motion import RigidMotion
from anomaly_lab.types import Batch

Flip = Literal["none", "horizontal", "vertical", "both"]


class PiModel(UNetSegmenter):
    """A UNet that has to say the same of two views of an image, labelled or not.

    The views are two random augmentations of P2 section 3.3. Since they move the image, the map of the first is moved
    as the image was before it is compared with the map of the second.

    Args:
        consistency_weight: of the squared difference of the two maps, after the ramp-up.
        rampup: the share of the training over which that weight rises.
        view_rotate: degrees, view_translate: share of a side, and view_flip: the flips of the second view.
    """

    streams = ("labelled+unlabelled",)

    @checked
    def __init__(
        self,
        *,
        consistency_weight: NonNegativeFloat,
        rampup: NonNegativeFloat,
        view_rotate: NonNegativeFloat,
        view_translate: NonNegativeFloat,
        view_flip: Flip | None,
        **segmenter: Any,
    ) -> None:
        super().__init__(**segmenter)
        self.consistency_weight, self.rampup = consistency_weight, rampup
        self.view = {"rotate": view_rotate, "translate": view_translate, "flip": view_flip or "none"}

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:  # type: ignore[override]  # two streams
        """Cross-entropy of the labelled images, and the consistency of all."""
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        image = torch.cat([labelled["image"], unlabelled["image"]])
        motion = RigidMotion.draw(len(image), **self.view, device=image.device)  # type: ignore[arg-type]
        logits = self(image)
        target = self.second_opinion(image, logits)
        supervised = cross_entropy(logits[: len(labelled["image"])], labelled["mask"])
        terms = {"supervised": supervised, "consistency": self._weight() * disagreement(self, image, target, motion)}
        loss = terms["supervised"] + terms["consistency"]
        self.log_losses(loss, terms, batch_size=len(image))
        return loss

    def second_opinion(self, image: Tensor, logits: Tensor) -> Tensor:
        """The map (B, 1, H, W) to agree with: the network's own."""
        return torch.sigmoid(logits)

    def _weight(self) -> float:
        """The ramp-up exp(-5 (1 - t)^2), t from 0 to 1 (Laine and Aila, section 2.1), epoch by epoch."""
        if self._trainer is None or not self.rampup or self.trainer.max_epochs is None:
            return self.consistency_weight
        t = min(1.0, self.trainer.current_epoch / (self.rampup * self.trainer.max_epochs))
        return self.consistency_weight * math.exp(-5 * (1 - t) ** 2)
