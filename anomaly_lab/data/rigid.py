"""The rigid motion of P2's Eq. 7; apart from transforms.py because albumentations takes seconds to import."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from albumentations import Affine

from anomaly_lab.types import IGNORE

Array = npt.NDArray[np.uint8]


class RigidMotion(Affine):  # type: ignore[misc]  # albumentations ships no usable types
    """Random rotation and translation: the image is mirrored at its border, the mask is IGNORE beyond it.

    Affine itself has one border for both, and mirrored pixels would be taught with mirrored labels.
    """

    def __init__(self, rotate: float, translate: float) -> None:
        super().__init__(
            rotate=(-rotate, rotate),
            translate_percent=dict.fromkeys("xy", (-translate, translate)),
            border_mode=cv2.BORDER_REFLECT_101,
            p=1.0,
        )

    def apply_to_mask(self, mask: Array, matrix: Any, output_shape: tuple[int, int], **params: Any) -> Array:
        """The mask (H, W) under the same motion, by nearest neighbours."""
        size = output_shape[1], output_shape[0]
        moved = cv2.warpAffine(mask, matrix[:2], size, flags=cv2.INTER_NEAREST, borderValue=IGNORE)
        return moved.astype(np.uint8, copy=False)
