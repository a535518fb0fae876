"""What travels between the parts: a Sample, a Batch of them, and a model's Prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

NORMAL, DEFECTIVE, IGNORE = 0, 1, 255  # the values of a mask's pixels; IGNORE is never scored


class Sample(TypedDict):
    """One image of a split, before it is stacked into a Batch."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    mask: npt.NDArray[np.uint8]  # (H, W), values NORMAL, DEFECTIVE, IGNORE
    label: int  # 1 = defective
    index: int  # the row in the split
    tile: int  # which part of a larger image, 0 when it is whole
    path: str
    defect: str


class Batch(TypedDict):
    """B images, as every model gets them."""

    image: Tensor  # float32 (B, 3, H, W) in [0, 1]
    mask: Tensor  # uint8 (B, 1, H, W): 0 normal, 1 defective, 255 unknown
    label: Tensor  # int64 (B,), 1 = defective
    index: Tensor  # int64 (B,)
    tile: Tensor  # int64 (B,)
    path: list[str]
    defect: list[str]


@dataclass(frozen=True)
class Prediction:
    """What a model says of B images.

    Scores are raw, higher = more anomalous, and never rescaled by what else is in the batch.
    """

    scores: dict[str, Tensor]  # named, each float32 (B,)
    anomaly_map: Tensor | None = None  # float32 (B, 1, H, W), higher = more anomalous
    reconstruction: Tensor | None = None  # float32 (B, 3, H, W), on the scale of Batch.image
    latents: dict[str, Tensor] = field(default_factory=dict)  # such as z and z_hat, each (B, d)
