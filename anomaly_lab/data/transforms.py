"""What happens at random to an image and its mask together, in training."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.types import IGNORE

# albumentations asks the network for its newest version when imported; spawned workers, too, come by here first
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

FLIPS = ("none", "horizontal", "vertical", "both")

Array = npt.NDArray[np.uint8]


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
