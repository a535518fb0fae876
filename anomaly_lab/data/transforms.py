"""What happens to an image and its mask together: resizing, and random augmentation in training."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import ConfigError
from anomaly_lab.types import IGNORE

# albumentations asks the network for its newest version when imported; spawned workers, too, come by here first
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

RESIZE_POLICIES = ("squash", "pad", "crop")

Array = npt.NDArray[np.uint8]


def resize_pair(image: Array, mask: Array, size: int, policy: str) -> tuple[Array, Array]:
    """Bring an image (H, W, 3) and its mask (H, W) to `size` x `size`.

    `squash` ignores the aspect ratio, as the papers do; `pad` keeps it and adds borders, 0 in the
    image and IGNORE in the mask; `crop` keeps it and the central square. The image is averaged where
    it shrinks and interpolated where it grows; the mask takes the nearest pixel.

    Raises:
        ConfigError: if the policy is unknown.
    """
    height, width = mask.shape
    if policy == "squash":
        return _resize(image, mask, size, size)
    if policy == "pad":
        scale = size / max(height, width)
        inner = _resize(image, mask, max(1, round(height * scale)), max(1, round(width * scale)))
        return _pad(*inner, size)
    if policy == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = slice(top, top + side), slice(left, left + side)
        return _resize(image[square], mask[square], size, size)
    raise ConfigError(f"dataset.resize={policy}: unknown; use one of {', '.join(RESIZE_POLICIES)}.")


def _resize(image: Array, mask: Array, height: int, width: int) -> tuple[Array, Array]:
    import cv2

    # one axis may shrink while the other grows, and cv2 averages only where neither grows
    shrunk = min(width, image.shape[1]), min(height, image.shape[0])
    smaller = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(smaller, (width, height), interpolation=cv2.INTER_LINEAR)
    # INTER_NEAREST takes the pixel's corner, half a pixel off the image
    marked = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False), marked.astype(np.uint8, copy=False)


def _pad(image: Array, mask: Array, size: int) -> tuple[Array, Array]:
    height, width = mask.shape
    top, left = (size - height) // 2, (size - width) // 2
    around = (top, size - height - top), (left, size - width - left)
    return np.pad(image, (*around, (0, 0))), np.pad(mask, around, constant_values=IGNORE)


class Augmentation:
    """Random changes to an image and its mask together, for training.

    `flip` mirrors left-right and top-bottom, each with probability 1/2 (P1, section 4.2). With
    nothing asked for, images pass unchanged.
    """

    def __init__(self, flip: bool) -> None:
        self._compose: Any = None
        if flip:
            from albumentations import Compose, HorizontalFlip, VerticalFlip

            self._compose = Compose([HorizontalFlip(p=0.5), VerticalFlip(p=0.5)])

    def __call__(self, image: Array, mask: Array, *, seed: int, epoch: int, index: int) -> tuple[Array, Array]:
        """Augment image (H, W, 3) and mask (H, W) as (seed, epoch, index) say, in whatever process or order."""
        if self._compose is None:
            return image, mask
        mixed = np.random.SeedSequence((seed, epoch, index))
        # set_random_seed gives each transform a generator of its own from one seed: both flips or none
        self._compose.set_random_state(
            np.random.default_rng(mixed), random.Random(int(mixed.generate_state(1, np.uint64)[0]))
        )
        augmented = self._compose(image=image, mask=mask)
        return augmented["image"], augmented["mask"]
