"""From a dataset's config to its records, its split and how to load them; imports no torch."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

from anomaly_lab.config import conf_dir, locate
from anomaly_lab.data.digests import digests
from anomaly_lab.data.few_labelled import NothingToLabelError
from anomaly_lab.data.images import MaskRule
from anomaly_lab.data.options import NATIVE, LoadOptions, SplitOptions
from anomaly_lab.data.records import DefectDataset, Record
from anomaly_lab.data.splits import Split, make_split
from anomaly_lab.data.store import ImageStore
from anomaly_lab.errors import ConfigError
from anomaly_lab.files import read_yaml

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
        return self.load.full_size or self.load.image_size * (2 if self.is_quartered else 1)

    def store(self, size: int | None, smallest: int = 1) -> ImageStore:
        """The dataset's images at a size (None: their own), with the region and the masks that its options say."""
        load = self.load
        masks = MaskRule(load.mask_threshold, load.ignore_value)
        return ImageStore(
            self.dataset.root, size, load.resize, load.max_value, smallest=smallest, roi=load.roi, masks=masks
        )

    @property
    def is_quartered(self) -> bool:
        """Whether P2's section 3.3 cuts the test images into quarters, and its Table 1 counts each as an image."""
        by_paper = self.dataset.is_texture and self.split.options.protocol == "few_labelled"
        return by_paper and self.load.full_size in (None, 2 * self.load.image_size) and not self.load.tile_overlap

    @property
    def lacks_labels(self) -> bool:
        """Whether labels are synthesised because there are none, and nobody asked for that."""
        return self.load.labels is None and "labelled" in self.load.learns_from and not self.split.lists.get("labelled")

    @property
    def synthesises(self) -> bool:
        """Whether labels are synthesised onto normal images, beside real ones or instead of them."""
        return self.lacks_labels or ("labelled" in self.load.learns_from and self.load.labels in ("synthetic", "both"))

    @property
    def learns_real_labels(self) -> bool:
        """Whether masks of the list `labelled` are learnt from."""
        return "labelled" in self.load.learns_from and (not self.synthesises or self.load.labels == "both")

    @property
    def synthetic_share(self) -> float:
        """The share of the normal images that get a defect, each time they come."""
        return 0.9 if self.load.synthetic_share is None else self.load.synthetic_share

    @property
    def real_share(self) -> float:
        """The share of the images beside synthetic defects, about, that have a real one; each comes at least once."""
        return 0.125 if self.load.real_share is None else self.load.real_share

    @property
    def defect_crops(self) -> float:
        """The share of the crops of labelled images that are cut around a defective pixel."""
        if self.load.defect_crops is not None:
            return self.load.defect_crops
        return 0.5 if self.load.full_size == NATIVE else 0.0

    def pool(self, name: str) -> tuple[Record, ...]:
        """The records of a training stream (`LoadOptions.learns_from`), each once; perhaps none."""
        records = [record for part in self._lists_of(name) for record in self.split.lists.get(part, ())]
        if name == "labelled" and self.synthesises:
            real = records if self.load.labels == "both" else []
            # what is drawn of the tested part hides its label
            known = [record for record in self.pool("all") if not record.label and record.part != "test"]
            records = known + real
        return tuple(dict.fromkeys(records))

    def stream(self, name: str) -> tuple[Record, ...]:
        """The same, to train on; real defects come again until they are about `real_share` of it.

        Raises:
            ConfigError: if there are none.
        """
        records = self.pool(name)
        if name == "labelled" and self.synthesises:
            real = tuple(record for record in records if record.label)
            if len(real) == len(records):
                raise ConfigError(
                    "dataset.labels=synthetic and both put defects onto normal images, and there are none to train on."
                )
            if self.load.labels == "both" and not real:
                raise ConfigError(
                    "dataset.labels=both needs labelled defects too: dataset.protocol=few_labelled gives some. Without "
                    "any: dataset.labels=synthetic."
                )
            wanted = self.real_share / (1 - self.real_share) * (len(records) - len(real))
            records += real * (round(wanted / max(1, len(real))) - 1)
        if not records:
            protocol = self.split.options.protocol
            raise ConfigError(
                f"dataset.learns_from={name}: dataset.protocol={protocol} has no such images. Methods that learn from "
                "labelled images want dataset.protocol=few_labelled."
            )
        return records

    @cached_property
    def sha256(self) -> str:
        """The hash of what the split lists and of what the files hold: other pictures of the same names are others."""
        names = {name for records in self.split.lists.values() for r in records for name in (r.path, r.mask) if name}
        held = digests(self.dataset.root, sorted(names))
        return hashlib.sha256(json.dumps([self.split.sha256, held]).encode()).hexdigest()

    def _lists_of(self, stream: str) -> tuple[str, ...]:
        unlabelled = "train_normal" if "train_normal" in self.split.lists else "unlabelled"
        return {"unlabelled": (unlabelled,), "labelled": ("labelled",), "all": (unlabelled, "labelled")}[stream]


def make_plan(config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> DataPlan:
    """Scan and split the dataset of a resolved `dataset` config.

    Where there is nothing to label, `few_labelled` is `normal_only`: labels are synthesised, if any are needed.
    """
    dataset, options, load = make_dataset(config, allow), _options(SplitOptions, config), load_options(config)
    records = dataset.scan()
    try:
        split = make_split(records, options)
    except NothingToLabelError as error:
        if load.learns_from != ("unlabelled",) and load.labels in ("real", "both"):
            raise
        split = make_split(records, replace(options, protocol="normal_only"))
        why = f" ({error})" if any(record.label for record in records) else ""  # without any, nothing is to be mended
        note = f"No image can be labelled: split as by dataset.protocol=normal_only.{why}"
        split = replace(split, notes=(note, *split.notes))
    plan = DataPlan(dataset, split, load)
    if plan.lacks_labels:
        note = "Without labels it learns from defects synthesised onto the normal images (dataset.labels=synthetic)."
        plan = replace(plan, split=replace(split, notes=(note, *split.notes)))
    return plan


def known_datasets() -> dict[str, type[DefectDataset]]:
    """The datasets that can be asked for by name."""
    paths = sorted((conf_dir() / "dataset").glob("[!_]*.yaml"))
    return {path.stem: locate(read_yaml(path)["_target_"], DefectDataset) for path in paths}


def make_dataset(config: Mapping[str, Any], allow: tuple[str, ...] = ()) -> DefectDataset:
    """The dataset of a resolved `dataset` config, not yet scanned."""
    dataset_class = locate(config["_target_"], DefectDataset, allow)
    return dataset_class(**_pick(config, inspect.signature(dataset_class).parameters))


def load_options(config: Mapping[str, Any]) -> LoadOptions:
    """How a resolved `dataset` config wants its images loaded."""
    return _options(LoadOptions, config)


def _options(kind: type[Options], config: Mapping[str, Any]) -> Options:
    return kind(**_pick(config, {f.name for f in fields(kind)}))  # type: ignore[arg-type]  # a dataclass


def _pick(config: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: config[name] for name in names if name in config}
