"""From a dataset's config to its records, its split and how to load them; imports no torch."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

from anomaly_lab.config import locate
from anomaly_lab.data.options import NATIVE, LoadOptions, SplitOptions
from anomaly_lab.data.records import DefectDataset, Record
from anomaly_lab.data.splits import Split, make_split
from anomaly_lab.errors import ConfigError

Options = TypeVar("Options")


@dataclass(frozen=True)
class DataPlan:
    """A dataset, scanned and split."""

    dataset: DefectDataset
    split: Split
    load: LoadOptions

    @property
    def full_size(self) -> int | None:
        """Side of the square that an image is brought to before it is cropped or cut into tiles; None: as it is."""
        if self.load.full_size == NATIVE:
            return None
        quartered = self.dataset.is_texture and self.split.options.protocol == "few_labelled"  # P2 section 3.3
        return self.load.full_size or self.load.image_size * (2 if quartered else 1)

    @cached_property
    def used(self) -> dict[str, tuple[Record, ...]]:
        """The lists that this run trains on, takes its thresholds from or is scored on: all but an unread pool."""
        unread = {"unlabelled"} - {name for stream in self.load.learns_from for name in self._lists_of(stream)}
        return {name: drawn for name, drawn in self.split.lists.items() if name not in unread}

    def stream(self, name: str) -> tuple[Record, ...]:
        """The records of a training stream (`LoadOptions.learns_from`), each once."""
        records = [record for part in self._lists_of(name) for record in self.split.lists.get(part, ())]
        if not records:
            protocol = self.split.options.protocol
            raise ConfigError(
                f"dataset.learns_from={name}: dataset.protocol={protocol} has no such images. Methods that learn from "
                "labelled images want dataset.protocol=few_labelled."
            )
        return tuple(dict.fromkeys(records))

    @cached_property
    def sha256(self) -> str:
        """The hash of what the used lists hold, and of the files' sizes: other pictures of the same names show."""
        return self._hash_of(self.used)

    @cached_property
    def split_sha256(self) -> str:
        """The same of all lists, used or not."""
        return self._hash_of(self.split.lists)

    def _hash_of(self, lists: dict[str, tuple[Record, ...]]) -> str:
        root = str(self.dataset.root)
        names = {name for records in lists.values() for r in records for name in (r.path, r.mask) if name}
        sizes = [(name, _size(os.path.join(root, name))) for name in sorted(names)]  # noqa: PTH118  # many files
        return hashlib.sha256(json.dumps([replace(self.split, lists=lists).sha256, sizes]).encode()).hexdigest()

    def _lists_of(self, stream: str) -> tuple[str, ...]:
        unlabelled = "train_normal" if "train_normal" in self.split.lists else "unlabelled"
        return {"unlabelled": (unlabelled,), "labelled": ("labelled",), "all": (unlabelled, "labelled")}[stream]


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
