"""Large images in tiles: where they lie, and what belongs to them put together again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.uint8]
Corner = tuple[int, int]  # top, left


@dataclass(frozen=True)
class Tiling:
    """Squares of `side` pixels that cover an image, neighbours sharing at least `overlap` pixels."""

    side: int
    overlap: int = 0

    def corners(self, height: int, width: int) -> list[Corner]:
        """The tiles' corners of an image of at least `side` x `side`, row by row, spread evenly."""
        return _corners(self.side, self.overlap, height, width)

    def cut(self, image: Array, tile: int) -> Array:
        """Tile number `tile` of an image (H, W, ...)."""
        top, left = self.corners(*image.shape[:2])[tile]
        return image[top : top + self.side, left : left + self.side]

    def stitch(self, tiles: Tensor, height: int, width: int) -> Tensor:
        """One image (1, C, height, width) from all its tiles (T, C, side, side); their mean where they overlap."""
        total, count = tiles.new_zeros(1, tiles.shape[1], height, width), tiles.new_zeros(height, width)
        for (top, left), tile in zip(self.corners(height, width), tiles, strict=True):
            total[0, :, top : top + self.side, left : left + self.side] += tile
            count[top : top + self.side, left : left + self.side] += 1
        return total / count


@lru_cache  # asked for at every tile
def _corners(side: int, overlap: int, height: int, width: int) -> list[Corner]:
    def starts(length: int) -> list[int]:
        count = max(1, -(-(length - overlap) // (side - overlap)))
        return [round(start) for start in np.linspace(0, length - side, count)]

    return [(top, left) for top in starts(height) for left in starts(width)]
