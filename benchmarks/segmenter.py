"""Part `segmenter`: part `step` once more, for the UNet."""

from __future__ import annotations

from typing import Any

from benchmarks import step
from benchmarks.setting import Setting
from benchmarks.step import table

__all__ = ["measure", "table"]

OPTIONS = [
    "model=unet",
    "model.width=16",
    "dataset.image_size=128",
    "dataset.batch_size=8",
    "dataset.steps_per_epoch=50",
]


def measure(setting: Setting) -> dict[str, Any]:
    """Time a step of a UNet, on the generated dataset whatever the other parts look at."""
    return step.measure(setting.of_its_own(OPTIONS))
