"""How a picture becomes the square that the network sees, and how what is found there comes back onto the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import DataError, require
from anomaly_lab.types import IGNORE

RESIZE_POLICIES = ("squash", "pad", "crop")

Array = npt.NDArray[np.uint8]
Area = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Framing:
    """What is done to every picture before it is scored.

    `squash` ignores the aspect ratio, as the papers do; `pad` keeps it and adds borders, 0 in the image and IGNORE
    in the mask; `crop` keeps it and the central square. The image is averaged where it shrinks and interpolated
    where it grows; the mask takes the nearest pixel.

    Attributes:
        size: side of the square in pixels; None: the picture keeps its own size.
        policy: one of `RESIZE_POLICIES`.
        smallest: with no `size`, so many pixels to each side at least: what lacks is added on the right and below,
            the image mirrored, and IGNORE in the mask.
        roi: the region of interest in the picture's pixels, (top, left, height, width); nothing else is looked at.

    Raises:
        ConfigError: if the policy is unknown.
    """

    size: int | None
    policy: str = "squash"
    smallest: int = 1
    roi: Area | None = None

    def __post_init__(self) -> None:
        require("dataset.resize", self.policy, RESIZE_POLICIES)

    def pair(self, image: Array, mask: Array) -> tuple[Array, Array]:
        """An image (H, W, 3) and its mask (H, W) as they are scored.

        Raises:
            DataError: if the region of interest reaches beyond the image.
        """
        if self.roi is not None:
            inside = self._region(*mask.shape)
            image, mask = np.ascontiguousarray(image[inside]), np.ascontiguousarray(mask[inside])
        height, width = mask.shape
        if self.size is None:
            around = (0, max(0, self.smallest - height)), (0, max(0, self.smallest - width))
            if not any(map(sum, around)):
                return image, mask
            return np.pad(image, (*around, (0, 0)), mode="symmetric"), np.pad(mask, around, constant_values=IGNORE)
        top, left, high, wide = self._taken(height, width)
        taken = slice(top, top + high), slice(left, left + wide)
        above, before, tall, broad = self._filled(height, width)
        inner, marked = _resize(image[taken], mask[taken], tall, broad)
        around = (above, self.size - above - tall), (before, self.size - before - broad)
        return np.pad(inner, (*around, (0, 0))), np.pad(marked, around, constant_values=IGNORE)

    def image(self, image: Array) -> Array:
        """An image (H, W, 3) as it is scored."""
        return self.pair(image, np.zeros(image.shape[:2], np.uint8))[0]

    def back(self, values: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float32]:
        """A map of the square (h, w) on a picture of `height` x `width`; NaN where the network did not look."""
        import cv2

        values = values.astype(np.float32)
        if self.roi is not None:
            whole = np.full((height, width), np.nan, np.float32)
            whole[self._region(height, width)] = replace(self, roi=None).back(values, *self.roi[2:])
            return whole
        if self.size is None:
            return values[:height, :width]
        above, before, tall, broad = self._filled(height, width)
        top, left, high, wide = self._taken(height, width)
        found = np.full((height, width), np.nan, np.float32)
        inner = np.ascontiguousarray(values[above : above + tall, before : before + broad])
        found[top : top + high, left : left + wide] = cv2.resize(inner, (wide, high), interpolation=cv2.INTER_LINEAR)
        return found

    def _region(self, height: int, width: int) -> tuple[slice, slice]:
        assert self.roi is not None
        top, left, high, wide = self.roi
        if top + high > height or left + wide > width:
            raise DataError(
                f"the image has {width}x{height} pixels (width x height), and dataset.roi=[{top},{left},{high},{wide}] "
                "(top, left, height, width) reaches beyond it"
            )
        return slice(top, top + high), slice(left, left + wide)

    def _taken(self, height: int, width: int) -> Area:
        """Which part of a picture is looked at."""
        if self.policy != "crop":
            return 0, 0, height, width
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side

    def _filled(self, height: int, width: int) -> Area:
        """Which part of the square it fills."""
        assert self.size is not None
        if self.policy != "pad":
            return 0, 0, self.size, self.size
        scale = self.size / max(height, width)
        tall, broad = max(1, round(height * scale)), max(1, round(width * scale))
        return (self.size - tall) // 2, (self.size - broad) // 2, tall, broad


def _resize(image: Array, mask: Array, height: int, width: int) -> tuple[Array, Array]:
    import cv2

    # one axis may shrink while the other grows, and cv2 averages only where neither grows
    shrunk = min(width, image.shape[1]), min(height, image.shape[0])
    smaller = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(smaller, (width, height), interpolation=cv2.INTER_LINEAR)
    # INTER_NEAREST takes the pixel's corner, half a pixel off the image
    marked = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False), marked.astype(np.uint8, copy=False)
