"""From a dataset's config to its records, its split and how to load them; imports no torch."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
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

    @cached_property
    def sha256(self) -> str:
        """The hash of what the split lists and of the files' sizes, so that other pictures of the same names show."""
        root = str(self.dataset.root)
        names = {name for records in self.split.lists.values() for r in records for name in (r.path, r.mask) if name}
        sizes = [(name, _size(os.path.join(root, name))) for name in sorted(names)]  # noqa: PTH118  # many files
        return hashlib.sha256(json.dumps([self.split.sha256, sizes]).encode()).hexdigest()


def make_plan(config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> DataPlan:
    """Scan and split the dataset of a resolved `dataset` config."""
    dataset = make_dataset(config, allow)
    return DataPlan(dataset, make_split(dataset.scan(), _options(SplitOptions, config)), load_options(config))


def make_dataset(config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> DefectDataset:
    """The dataset of a resolved `dataset` config, not yet scanned."""
    dataset_class = locate(config["_target_"], DefectDataset, allow)
    return dataset_class(**_pick(config, inspect.signature(dataset_class).parameters))


def load_options(config: Mapping[str, Any]) -> LoadOptions:
    """How a resolved `dataset` config wants its images loaded."""
    return _options(LoadOptions, config)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1


def _options(kind: type[Options], config: Mapping[str, Any]) -> Options:
    return kind(**_pick(config, {f.name for f in fields(kind)}))  # type: ignore[arg-type]  # a dataclass


def _pick(config: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}
