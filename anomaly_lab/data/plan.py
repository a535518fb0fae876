"""From a dataset's config to its records, its split and how to load them; imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from anomaly_lab.config import locate
from anomaly_lab.data.records import DefectDataset
from anomaly_lab.data.splits import Split, SplitOptions, make_split

Options = TypeVar("Options")


@dataclass(frozen=True)
class LoadOptions:
    """How the images of a split become batches.

    Attributes:
        image_size: side of the square every image is brought to, in pixels.
        resize: `squash` (as the papers), `pad` or `crop`.
        max_value: white of 16-bit images, such as 4095 for 12 bits in 16.
        flip: random horizontal and vertical flips in training.
        num_workers: loader processes; None means none on a CPU (reading the cache takes no time beside
            training there) and up to 8 beside a GPU.
    """

    image_size: int = 224
    resize: str = "squash"
    max_value: int | None = None
    flip: bool = True
    batch_size: int = 8
    num_workers: int | None = None


@dataclass(frozen=True)
class DataPlan:
    """A dataset, scanned and split."""

    dataset: DefectDataset
    split: Split
    load: LoadOptions


def make_plan(config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> DataPlan:
    """Scan and split the dataset of a resolved `dataset` config."""
    dataset_class = locate(config["_target_"], DefectDataset, allow)
    dataset = dataset_class(**_pick(config, inspect.signature(dataset_class).parameters))
    split = make_split(dataset.scan(), _options(SplitOptions, config))
    return DataPlan(dataset, split, _options(LoadOptions, config))


def _options(kind: type[Options], config: Mapping[str, Any]) -> Options:
    return kind(**_pick(config, {f.name for f in fields(kind)}))  # type: ignore[arg-type]  # a dataclass


def _pick(config: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}
