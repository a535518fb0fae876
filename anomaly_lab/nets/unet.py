"""The UNet of Ronneberger, Fischer and Brox (MICCAI 2015), padded so that the output has the input's size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "batch"]


class UNet(nn.Module):
    """Images (B, C, H, W) to one logit a pixel (B, 1, H, W) (P2 section 3.2).

    Args:
        in_channels: C.
        width: channels of the first level, 64 in the paper; each further level has twice as many.
        levels: five in the paper; H and W are multiples of 2^(levels - 1).
        norm: `batch` puts a batch norm behind each 3x3 convolution; the paper has none.
    """

    def __init__(self, in_channels: int, width: int = 64, levels: int = 5, norm: Norm = "none") -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            _two_convolutions(before, after, norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.enlarge, self.up = nn.ModuleList(), nn.ModuleList()
        for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.enlarge.append(nn.ConvTranspose2d(wide, narrow, 2, stride=2))
            self.up.append(_two_convolutions(2 * narrow, narrow, norm))
        self.head = nn.Conv2d(width, 1, 1)  # K = 1 and a sigmoid (section 3); "two classes" in section 3.2

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H, W)."""
        skips = []
        for level, block in enumerate(self.down):
            image = block(image if level == 0 else self.pool(image))
            skips.append(image)
        skips.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            image = block(torch.cat([skips.pop(), enlarge(image)], dim=1))
        logits: Tensor = self.head(image)
        return logits


def _two_convolutions(before: int, after: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=norm == "none"))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
