"""What a reconstruction leaves out of an image, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """Structural similarity of images in [0, 1] (Wang et al. 2004, Eq. 13, with square windows), at each pixel and
    averaged over channels: (B, 1, H, W).

    Written out, as torchmetrics' version cannot be exported for batches of any size.
    """
    with torch.autocast(a.device.type, enabled=False):  # variances are differences of nearly equal numbers
        a, b = a.float(), b.float()
        down, across = (_window_shares(side, a.device) for side in a.shape[-2:])

        def local_mean(x: Tensor) -> Tensor:
            return down.T @ x @ across

        # about the images' own means, so that little is lost where a GPU multiplies with few digits (TF32)
        centre_a, centre_b = (image.mean((2, 3), keepdim=True) for image in (a, b))
        a, b = a - centre_a, b - centre_b
        mean_a, mean_b = local_mean(a), local_mean(b)
        var_a = (local_mean(a * a) - mean_a.square()).clamp_min(0)
        var_b = (local_mean(b * b) - mean_b.square()).clamp_min(0)
        covariance = local_mean(a * b) - mean_a * mean_b
        mean_a, mean_b = mean_a + centre_a, mean_b + centre_b
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        structure = (2 * covariance + c2) / (var_a + var_b + c2)
        return (luminance * structure).mean(1, keepdim=True)


def _window_shares(side: int, device: torch.device) -> Tensor:
    """The share (side, side) of pixel i, a row, in the window around pixel j, a column; mirrored at the borders.

    Two products with it take a quarter of the time of pooling the windows, on a CPU.
    """
    border = WINDOW // 2
    pixels = torch.eye(side, dtype=torch.float32, device=device)[None]  # whatever the model computes in
    return F.avg_pool1d(F.pad(pixels, (border, border), mode="reflect"), WINDOW, stride=1)[0]
