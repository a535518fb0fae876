"""The one loader factory: a split's lists as batches."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from anomaly_lab.data.options import SYNTHETIC_KINDS
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.samples import Key, OrderedSampler, ResumableLoader, SplitDataset, TrainingSampler, collate
from anomaly_lab.data.synthesis import Synthesis
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.data.transforms import Augmentation
from anomaly_lab.errors import DataError
from anomaly_lab.ranks import world_size
from anomaly_lab.types import Batch

# Shares of defective pixels from where on masks rather mark what is sound: half of all masks, and a single one
INVERTED_ALL, INVERTED_ONE = 0.6, 0.9

log = logging.getLogger("anomaly_lab")


class DefectDataModule(LightningDataModule):
    """The loaders of a planned dataset.

    Args:
        plan: what to load.
        seed: of the order and of the augmentation.
    """

    def __init__(self, plan: DataPlan, seed: int = 0) -> None:
        super().__init__()
        self.plan, self.seed = plan, seed
        load = plan.load
        self.store = plan.store(plan.full_size, smallest=load.image_size)
        self.tiling = Tiling(load.image_size, load.tile_overlap)

    def prepare(self, *, progress: bool = False) -> None:
        """Decode and cache every image of the split, so that a bad file is named before training.

        Raises:
            DataError: if files cannot be read, or there is no defective pixel to learn from.
        """
        records = {(r.path, r.mask): r for records in self.plan.split.lists.values() for r in records}
        if self.plan.lacks_labels:
            log.warning("%s: %s", self.plan.dataset.root, self.plan.split.notes[0])
        self.store.prepare(list(records.values()), progress=progress)
        self._look_at_masks()

    def loader(self, name: str) -> DataLoader[Batch]:
        """The list `name` of the split as batches, in order and unchanged; larger images in tiles."""
        tiles = [len(self.tiling.corners(*frame)) for frame in self.frames(name)]
        return self._batches(self.dataset(name), OrderedSampler(tiles), self.plan.load.batch_size)

    def frames(self, name: str) -> list[tuple[int, int]]:
        """Height and width of each image of a list, before it is cut into tiles."""
        return [self.store.frame(record) for record in self.plan.split.lists[name]]

    def dataset(self, name: str) -> SplitDataset:
        """The list `name` of the split as samples, unchanged."""
        return SplitDataset(self.plan.split.lists[name], self.store, None, self.seed, self.tiling)

    def examples(self, count: int) -> Tensor:
        """The first training images, unchanged: at most `count` of them, (N, 3, H, W) in [0, 1]."""
        records = self.plan.stream(self.plan.load.learns_from[0])[:count]
        dataset = SplitDataset(records, self.store, None, self.seed, self.tiling)
        return collate([dataset[0, index, 0] for index in range(len(records))])["image"]

    def train_dataloader(self) -> DataLoader[Batch] | CombinedLoader:
        """What the method learns from, shuffled and augmented: one stream of batches, or a dict of them."""
        streams = {name: self._training(name) for name in self.plan.load.learns_from}
        if len(streams) == 1:
            return next(iter(streams.values()))
        return CombinedLoader(streams, mode="max_size_cycle")

    @property
    def steps(self) -> int:
        """Batches in a training epoch."""
        return max(len(self._training(name)) for name in self.plan.load.learns_from)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out normal images and painted copies of them."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.loader("test")

    def _look_at_masks(self) -> None:
        """Refuse to learn from nothing but empty masks, and say where masks are empty or mark nearly all."""
        lists: dict[str, tuple[str, ...]] = {"judge by": ("tune", "test")}
        root = self.plan.dataset.root
        if self.plan.learns_real_labels:
            lists["learn from"] = ("labelled",)
        for purpose, names in lists.items():
            records = (r for name in names for r in self.plan.split.lists.get(name, ()))
            masked = [r for r in records if r.mask and r.label and r.painted is None]
            shares = [self.store.marked[record.path] for record in masked]
            empty = [_marks_of(record) for record, share in zip(masked, shares, strict=True) if not share]
            if purpose == "learn from" and masked and len(empty) == len(masked):
                raise DataError(
                    f"{root}: no mask to learn from has a defective pixel at this size ({len(masked)} of them, such as "
                    f"{empty[0]}): 128 and more is defective. Look at the masks, raise dataset.image_size, or label "
                    "others (dataset.split_seed)."
                )
            if empty:
                log.warning(
                    "%s: %d of %d masks to %s have no defective pixel at this size, such as %s: these images' pixels "
                    "are left out.",
                    *(root, len(empty), len(masked), purpose, empty[0]),
                )
            share = INVERTED_ALL if masked and np.median(shares) > INVERTED_ALL else INVERTED_ONE
            inverted = [_marks_of(record) for record, marked in zip(masked, shares, strict=True) if marked > share]
            if inverted:
                log.warning(
                    "%s: %d of %d masks to %s mark more than %.0f%% of the image, such as %s: inverted? 128 and more "
                    "is defective.",
                    *(root, len(inverted), len(masked), purpose, 100 * share, inverted[0]),
                )

    def training_dataset(self, stream: str) -> SplitDataset:
        """What a stream trains on as samples, changed at random by (seed, epoch, index, turn)."""
        load, records = self.plan.load, self.plan.stream(stream)
        augment = Augmentation(
            flip=(load.flip or self.plan.dataset.flips) if load.augment else "none",
            rotate=load.rotate if load.augment else 0,
            translate=load.translate if load.augment else 0,
            crop=load.image_size if self.plan.full_size != load.image_size else None,
            defect_crops=self.plan.defect_crops if stream == "labelled" else 0,
        )
        synthesis = None
        if stream == "labelled" and self.plan.synthesises:
            synthesis = Synthesis(load.synthetic_kinds or SYNTHETIC_KINDS, self.plan.synthetic_share)
        return SplitDataset(
            records,
            self.store,
            augment,
            self.seed,
            self.tiling,
            hide_masks=stream != "labelled",
            synthesis=synthesis,
        )

    def _training(self, stream: str) -> DataLoader[Batch]:
        dataset, load = self.training_dataset(stream), self.plan.load
        if world_size() > 1 and load.steps_per_epoch is None and len(dataset) < 2 * world_size():
            raise DataError(
                f"{self.plan.dataset.root}: {len(dataset)} training images are too few for {world_size()} processes: "
                "set trainer.devices=1."
            )
        sampler = TrainingSampler(len(dataset), load.batch_size, seed=self.seed, steps=load.steps_per_epoch)
        return self._batches(dataset, sampler, load.batch_size // world_size())

    def _batches(self, dataset: SplitDataset, sampler: Sampler[Key], batch_size: int) -> DataLoader[Batch]:
        load = self.plan.load
        workers = load.num_workers if load.num_workers is not None else _default_workers()
        kind = ResumableLoader if isinstance(sampler, TrainingSampler) else DataLoader
        return kind(
            dataset,  # type: ignore[arg-type]  # collated to Batch
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _marks_of(record: Record) -> str:
    """The file to look at: a COCO file is that of many images."""
    assert record.mask is not None
    return record.path if record.mask.endswith(".json") else record.mask


def _default_workers() -> int:
    if not torch.cuda.is_available():
        return 0
    return max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
