"""The one loader factory: a split's lists as batches, the same ones after every restart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly_lab.data.painting import paint
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
from anomaly_lab.data.transforms import Augmentation
from anomaly_lab.types import IGNORE, Batch, Sample


class SplitDataset(Dataset[Sample]):
    """One list of a split; an item's key is (epoch, index), so that workers need no other state."""

    def __init__(self, records: Sequence[Record], store: ImageStore, augment: Augmentation | None, seed: int) -> None:
        self.records, self.store, self.augment, self.seed = records, store, augment, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        record = self.records[index]
        image, mask = self.store.load(record)
        if record.painted is not None:
            image, painted = paint(image, record.painted, seed=crc32(os.fsencode(record.path)))
            mask = np.where(mask == IGNORE, IGNORE, painted).astype(np.uint8)
        if self.augment is not None:
            image, mask = self.augment(image, mask, seed=self.seed, epoch=epoch, index=index)
        return Sample(
            image=image, mask=mask, label=record.label, index=index, tile=0, path=record.path, defect=record.defect
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """Each rank's (epoch, index) keys: shuffled by (seed, epoch) in training, in order and unpadded otherwise."""

    def __init__(self, length: int, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning's loop calls this before each epoch, a resumed one too."""
        self.epoch = epoch

    def _indices(self) -> list[int]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if not self.shuffle:
            return list(range(rank, self.length, world))
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        mine: list[int] = order[: self.length - self.length % world][rank::world].tolist()
        # batch norm cannot take a last batch of one image
        return mine[:-1] if len(mine) % self.batch_size == 1 and len(mine) > 1 else mine

    def __len__(self) -> int:
        return len(self._indices())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in self._indices()])


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; images become float32 in [0, 1]."""
    return Batch(
        image=torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2).float().div_(255),
        mask=torch.from_numpy(np.stack([s["mask"] for s in samples])).unsqueeze(1),
        label=torch.tensor([s["label"] for s in samples]),
        index=torch.tensor([s["index"] for s in samples]),
        tile=torch.tensor([s["tile"] for s in samples]),
        path=[s["path"] for s in samples],
        defect=[s["defect"] for s in samples],
    )


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
        self.store = ImageStore(plan.dataset.root, load.image_size, load.resize, load.max_value)

    def prepare(self, *, progress: bool = False) -> None:
        """Decode and cache every image of the split, so that a bad file is named before training."""
        records = {(r.path, r.mask): r for records in self.plan.split.lists.values() for r in records}
        self.store.prepare(list(records.values()), progress=progress)

    def loader(self, name: str, *, train: bool = False) -> DataLoader[Batch]:
        """The list `name` of the split as batches: shuffled and augmented for training, else in order."""
        load = self.plan.load
        records = self.plan.split.lists[name]
        augment = Augmentation(flip=load.flip) if train else None
        workers = load.num_workers if load.num_workers is not None else _default_workers()
        return DataLoader(
            SplitDataset(records, self.store, augment, self.seed),  # type: ignore[arg-type]  # collated to Batch
            batch_size=load.batch_size,
            sampler=EpochSampler(len(records), load.batch_size, shuffle=train, seed=self.seed),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """The normal training images."""
        return self.loader("train_normal", train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Held-out normal images and painted copies of them."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images."""
        return self.loader("test")


def _default_workers() -> int:
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
