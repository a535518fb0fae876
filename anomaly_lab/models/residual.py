"""What a reconstruction leaves out of an image, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from anomaly_lab.models.base import Restore

Residual = Literal["l1", "l2", "ssim"]

WINDOW = 11  # pixels, of SSIM (Bergmann et al., VISAPP 2019)


def residual_map(x: Tensor, x_hat: Tensor, kind: Residual, restore: Restore = lambda x: x) -> Tensor:
    """How far a reconstruction is from its input (B, 3, H, W), pixel by pixel: (B, 1, H, W).

    `l1` is the mean absolute difference over channels (P2 Eq. 3), `l2` that of the squares, `ssim` 1 - SSIM, whose
    constants are for images in [0, 1]: `restore` brings both back to that scale.
    """
    if kind == "ssim":
        return 1 - ssim(restore(x), restore(x_hat))
    difference = x - x_hat
    return (difference.abs() if kind == "l1" else difference.square()).mean(1, keepdim=True)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images in [0, 1], at each pixel and averaged over channels: (B, 1, H, W)."""
    with torch.autocast(a.device.type, enabled=False):  # variances are differences of nearly equal numbers
        found = structural_similarity_index_measure(
            a.float(),
            b.float(),
            gaussian_kernel=False,
            kernel_size=WINDOW,
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )
    return found[1].mean(1, keepdim=True)
