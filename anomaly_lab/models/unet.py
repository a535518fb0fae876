"""The segmenter of P2 (Sae-ang, Kumwilaisak and Kaewtrakulpong, Semi-supervised learning for defect segmentation
with autoencoder auxiliary module), trained on the labelled images alone."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from anomaly_lab.metrics.maps import MAP_SCORES, map_scores
from anomaly_lab.models.base import AnomalyModel, checked
from anomaly_lab.nets.autoencoder import feature_size
from anomaly_lab.nets.motion import RigidMotion
from anomaly_lab.nets.unet import Norm, UNet
from anomaly_lab.ranks import mean_over_ranks
from anomaly_lab.types import DEFECTIVE, IGNORE, Batch, Prediction


class UNetSegmenter(AnomalyModel):
    """A UNet that gives each pixel the probability of a defect.

    Args:
        image_size: side of the square input in pixels, a multiple of 2^(levels - 1).
        width: channels of the UNet's first level; 64 in the paper.
        levels: of the UNet; 5 in the paper.
        norm: batch norm behind the UNet's convolutions, or none as in the paper.
    """

    streams = ("labelled",)
    primary_score = "max"
    score_names = MAP_SCORES
    pixel_threshold = 0.5
    map_is_probability = True

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        width: PositiveInt,
        levels: PositiveInt,
        norm: Norm,
        in_channels: PositiveInt = 3,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        feature_size(image_size, halvings=levels - 1)  # refuses what cannot be halved between the levels
        self.unet = UNet(in_channels, width, levels, norm)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of images (B, 3, H, W) in [0, 1]."""
        x, _ = self.normalise(image)
        logits: Tensor = self.unet(x)
        return logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Eq. 5 on one labelled batch."""
        loss = cross_entropy(self(batch["image"]), batch["mask"])
        self.log_losses(loss, {}, batch_size=len(batch["image"]))
        return loss

    def predict(self, image: Tensor) -> Prediction:
        """Maps of probabilities (Eq. 4), and image scores from them."""
        probability = torch.sigmoid(self(image))
        return Prediction(scores=map_scores(probability), anomaly_map=probability)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5, with the minus sign it lacks, as the mean over the pixels that are not ignored; both (B, 1, H, W).

    Of all ranks' pixels: DDP averages the gradients of these shares of it.
    """
    known = mask != IGNORE
    total = F.binary_cross_entropy_with_logits(logits, (mask == DEFECTIVE).float(), known.float(), reduction="sum")
    return total / mean_over_ranks(known.sum().float()).clamp_min(1)


def disagreement(segmenter: UNetSegmenter, image: Tensor, target: Tensor, motion: RigidMotion) -> Tensor:
    """Mean squared difference between the map of the moved image, and the target (B, 1, H, W) moved alike.

    A mean over the pixels that stay inside, on all ranks.
    """
    inside = motion.inside(target).float()
    difference = torch.sigmoid(segmenter(motion(image))) - motion(target)
    return (difference.square() * inside).sum() / mean_over_ranks(inside.sum()).clamp_min(1)
