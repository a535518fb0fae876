"""Random rigid motions of tensors, for methods that compare what a network says of two views of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RigidMotion:
    """A rotation, a shift and perhaps flips for each of B images (P2 Eq. 7).

    Attributes:
        matrix: (B, 2, 3), from the moved image's coordinates to the image's, both in [-1, 1].
    """

    matrix: Tensor

    @classmethod
    def draw(cls, count: int, *, rotate: float, translate: float, flip: str, device: torch.device) -> RigidMotion:
        """Random motions of `count` images: up to `rotate` degrees, `translate` of a side, and the flips allowed."""
        angle = (2 * torch.rand(count, device=device) - 1) * math.radians(rotate)
        shift = (2 * torch.rand(count, 2, device=device) - 1) * 2 * translate  # a side is 2 long
        sign = 1 - 2 * torch.randint(0, 2, (count, 2), device=device).float()  # of x and y
        if flip in ("none", "vertical"):
            sign[:, 0] = 1
        if flip in ("none", "horizontal"):
            sign[:, 1] = 1
        cos, sin = angle.cos(), angle.sin()
        rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        return cls(torch.cat([rotation * sign[:, None, :], shift[:, :, None]], 2))

    def __call__(self, image: Tensor, *, padding: str = "reflection") -> Tensor:
        """Move images (B, C, S, S); what comes in at the border is mirrored, or `zeros`."""
        with torch.autocast(image.device.type, enabled=False):  # bf16 coordinates would tear the picture
            grid = F.affine_grid(self.matrix.float(), list(image.shape), align_corners=False)
            moved = F.grid_sample(image.float(), grid, padding_mode=padding, align_corners=False)
        return moved.to(image.dtype)

    def inside(self, like: Tensor) -> Tensor:
        """Where the moved images show what the images show: bool (B, 1, S, S)."""
        return self(torch.ones_like(like[:, :1]), padding="zeros") > 0.999
