"""From a dataset's config to its records, its split and how to load them; imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from anomaly_lab.config import locate
from anomaly_lab.data.options import LoadOptions, SplitOptions
from anomaly_lab.data.records import DefectDataset
from anomaly_lab.data.splits import Split, make_split

Options = TypeVar("Options")


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
