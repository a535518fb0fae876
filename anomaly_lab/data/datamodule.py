"""The one loader factory: a split's lists as batches, the same ones after every restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly_lab.data.painting import paint
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.data.transforms import Augmentation
from anomaly_lab.errors import ConfigError, DataError
from anomaly_lab.ranks import rank, world_size
from anomaly_lab.types import IGNORE, Batch, Sample

# Shares of defective pixels from where on masks rather mark what is sound: half of all masks, and a single one
INVERTED_ALL, INVERTED_ONE = 0.6, 0.9

log = logging.getLogger("anomaly_lab")

Array = npt.NDArray[np.uint8]
Key = tuple[int, int, int]  # epoch, index, and in training the turn, in evaluation the tile


class SplitDataset(Dataset[Sample]):
    """Records as samples; a key (epoch, index, turn) says all, so that workers need no other state.

    In training, `turn` counts how often the image came in this epoch, and with the seed it decides the augmentation;
    in evaluation it is the number of the tile.

    Args:
        augment: the random changes of training; None in evaluation.
        tiling: how evaluation cuts an image that is larger than what the network sees.
        hide_masks: whether the masks are withheld, since this stream is unlabelled.
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: ImageStore,
        augment: Augmentation | None,
        seed: int,
        tiling: Tiling,
        hide_masks: bool = False,
    ) -> None:
        self.records, self.store, self.augment, self.seed = records, store, augment, seed
        self.tiling, self.hide_masks = tiling, hide_masks
        self._last: tuple[int, tuple[Array, Array]] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        _, index, turn = key
        record = self.records[index]
        if self.augment is None and self._last is not None and self._last[0] == index:
            image, mask = self._last[1]  # its tiles come one after the other
        else:
            image, mask = self.whole(index)
            self._last = index, (image, mask)
        if self.hide_masks:
            mask = np.full_like(mask, IGNORE)
        if self.augment is not None:
            image, mask = self.augment(image, mask, key=(self.seed, *key))
            turn = 0
        else:
            image, mask = (self.tiling.cut(array, turn) for array in (image, mask))
        return Sample(
            image=image, mask=mask, label=record.label, index=index, tile=turn, path=record.path, defect=record.defect
        )

    def frame(self, index: int) -> tuple[int, int]:
        """Height and width of `whole(index)`."""
        return self.store.frame(self.records[index])

    def whole(self, index: int) -> tuple[Array, Array]:
        """Image (H, W, 3) and mask (H, W) number `index`, before they are augmented or cut into tiles."""
        record = self.records[index]
        image, mask = self.store.load(record)
        if record.painted is not None:
            image, painted = paint(image, record.painted, seed=crc32(os.fsencode(record.path)))
            mask = np.where(mask == IGNORE, IGNORE, painted).astype(np.uint8)
        return image, mask


class TrainingSampler(Sampler[Key]):
    """Each rank's keys of an epoch, shuffled by (seed, epoch); the ranks' batches together are those of a single one.

    Without `steps`, a last batch that is not full is cut so that all ranks have equally many images, and left out
    where batch norm would get a single one.

    Args:
        batch_size: images in a step, of all ranks together: a multiple of their number.
        steps: batches in an epoch; as many rounds through the images as it takes. None: one round.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, steps: int | None = None) -> None:
        self.length, self.batch_size, self.seed, self.steps = length, batch_size, seed, steps
        self.epoch = 0
        self.skipped = 0  # keys that were seen before a break

    def set_epoch(self, epoch: int) -> None:
        """Lightning's loop calls this before each epoch, a resumed one too."""
        self.epoch = epoch

    def _keys(self) -> list[Key]:
        rng = np.random.default_rng((self.seed, self.epoch))
        wanted = self._whole_epoch() if self.steps is None else self.steps * self.batch_size
        rounds = [rng.permutation(self.length).tolist() for _ in range(-(-wanted // self.length))]
        keys = [(self.epoch, index, turn) for turn, order in enumerate(rounds) for index in order]
        return keys[:wanted][rank() :: world_size()]

    def _whole_epoch(self) -> int:
        """How many images all ranks see in a round."""
        world = world_size()
        rest = self.length % self.batch_size
        kept = rest - rest % world if rest >= 2 * world else 0
        return self.length - rest + kept or self.length - self.length % world

    def __len__(self) -> int:
        return len(self._keys())

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys()[self.skipped :])


class OrderedSampler(Sampler[Key]):
    """Each rank's keys of an evaluation: whole images in order, tile after tile, without padding.

    Args:
        tiles: how many tiles each image has.
    """

    def __init__(self, tiles: Sequence[int]) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return sum(self.tiles[rank() :: world_size()])

    def __iter__(self) -> Iterator[Key]:
        mine = range(rank(), len(self.tiles), world_size())
        return ((0, index, tile) for index in mine for tile in range(self.tiles[index]))


class ResumableLoader(DataLoader[Batch]):
    """Batches of a `TrainingSampler`; goes on in the middle of an epoch, as a checkpoint of Lightning's says."""

    sampler: TrainingSampler
    _done = 0  # batches of this epoch that have been given out
    _left_out = 0  # batches of the next epoch that were given out before a break

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # all that is needed of an iterator
        self._done, self._left_out = self._left_out, 0
        self.sampler.skipped = self._done * (self.batch_size or 0)
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch have been given out, and of how many."""
        return {"done": self._done, "of": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave them out, once.

        Raises:
            ConfigError: if the epoch has another number of batches now: the rest of one is shared out otherwise.
        """
        if state["done"] % state["of"] and state["of"] != len(self):
            raise ConfigError(
                f"trainer.devices={world_size()}: the run was cut off in the middle of an epoch of {state['of']} "
                f"batches, which has {len(self)} here. Go on with as many devices as before."
            )
        self._left_out = state["done"] % state["of"]


def as_input(images: Sequence[Array]) -> Tensor:
    """Images (H, W, 3) of one size as a network gets them: float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples."""
    return Batch(
        image=as_input([s["image"] for s in samples]),
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
        self.store = plan.store(plan.full_size, smallest=load.image_size)
        self.tiling = Tiling(load.image_size, load.tile_overlap)

    def prepare(self, *, progress: bool = False) -> None:
        """Decode and cache every image of the split, so that a bad file is named before training.

        Raises:
            DataError: if files cannot be read, or there is no defective pixel to learn from.
        """
        records = {(r.path, r.mask): r for records in self.plan.split.lists.values() for r in records}
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
        if "labelled" in self.plan.load.learns_from:
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
        return SplitDataset(records, self.store, augment, self.seed, self.tiling, hide_masks=stream != "labelled")

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
