"""What happens to an image and its mask together: resizing, and random augmentation in training."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import ConfigError
from anomaly_lab.types import IGNORE

# albumentations asks the network for its newest version when imported; spawned workers, too, come by here first
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

RESIZE_POLICIES = ("squash", "pad", "crop")
FLIPS = ("none", "horizontal", "vertical", "both")

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


def enlarge_pair(image: Array, mask: Array, smallest: int) -> tuple[Array, Array]:
    """An image (H, W, 3) and its mask (H, W) with at least `smallest` pixels to each side.

    What is added on the right and below is the image mirrored, and IGNORE in the mask.
    """
    height, width = mask.shape
    around = (0, max(0, smallest - height)), (0, max(0, smallest - width))
    if not any(map(sum, around)):
        return image, mask
    return np.pad(image, (*around, (0, 0)), mode="symmetric"), np.pad(mask, around, constant_values=IGNORE)


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
    """Random changes to an image and its mask together, for training; with nothing asked for, they pass unchanged.

    Args:
        flip: which sides change places, each with probability 1/2: `none`, `horizontal` (left and right),
            `vertical`, or `both` (P1 section 4.2).
        rotate: degrees to either side, and
        translate: share of the side in either direction, of a random rigid motion (P2 Eq. 7). What comes in at the
            border is the image mirrored, and IGNORE in the mask: no loss counts it.
        crop: side of a random square that is cut out last, in pixels (P2 section 3.3: of textures).
        defect_crops: share of the squares that are cut around a defective pixel of the mask, if there is one.
    """

    def __init__(
        self,
        flip: str = "none",
        rotate: float = 0.0,
        translate: float = 0.0,
        crop: int | None = None,
        defect_crops: float = 0.0,
    ) -> None:
        self._compose: Any = None
        if flip == "none" and not rotate and not translate and crop is None:
            return
        from albumentations import (
            Compose,
            CropNonEmptyMaskIfExists,
            HorizontalFlip,
            OneOf,
            RandomCrop,
            VerticalFlip,
        )

        steps: list[Any] = []
        if rotate or translate:
            from anomaly_lab.data.rigid import RigidMotion

            steps.append(RigidMotion(rotate, translate))
        steps += [HorizontalFlip(p=0.5)] if flip in ("horizontal", "both") else []
        steps += [VerticalFlip(p=0.5)] if flip in ("vertical", "both") else []
        if crop is not None:
            around = CropNonEmptyMaskIfExists(crop, crop, ignore_values=[IGNORE], p=defect_crops)
            anywhere = RandomCrop(crop, crop, p=1 - defect_crops)
            steps.append(OneOf([around, anywhere], p=1) if defect_crops else anywhere)
        self._compose = Compose(steps)

    def __call__(self, image: Array, mask: Array, *, key: Sequence[int]) -> tuple[Array, Array]:
        """Augment image (H, W, 3) and mask (H, W) as the key says, in whatever process or order."""
        if self._compose is None:
            return image, mask
        mixed = np.random.SeedSequence(key)
        # set_random_seed gives each transform a generator of its own from one seed: both flips or none
        self._compose.set_random_state(
            np.random.default_rng(mixed), random.Random(int(mixed.generate_state(1, np.uint64)[0]))
        )
        augmented = self._compose(image=image, mask=mask)
        return augmented["image"], augmented["mask"]
