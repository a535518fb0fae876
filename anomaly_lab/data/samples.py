"""Records as samples and batches, the same ones after every restart and on any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from anomaly_lab.data.painting import paint
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
from anomaly_lab.data.synthesis import Synthesis
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.data.transforms import Augmentation
from anomaly_lab.errors import ConfigError
from anomaly_lab.ranks import rank, world_size
from anomaly_lab.types import DEFECTIVE, IGNORE, Batch, Sample

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
        synthesis: what puts defects onto the normal images, in training.
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: ImageStore,
        augment: Augmentation | None,
        seed: int,
        tiling: Tiling,
        hide_masks: bool = False,
        synthesis: Synthesis | None = None,
    ) -> None:
        self.records, self.store, self.augment, self.seed = records, store, augment, seed
        self.tiling, self.hide_masks, self.synthesis = tiling, hide_masks, synthesis
        self._normal = [index for index, record in enumerate(records) if not record.label] if synthesis else []
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
        label = record.label
        if self.hide_masks:
            mask = np.full_like(mask, IGNORE)
        if self.augment is not None:
            image, mask = self.augment(image, mask, key=(self.seed, *key))
            turn = 0
            if self.synthesis is not None and not label:
                rng = np.random.default_rng((self.seed, *key, 1))  # not the stream of the augmentation
                image, mask = self.synthesis(image, mask, self._normal_image, len(self._normal), rng)
                label = int((mask == DEFECTIVE).any())
        else:
            image, mask = (self.tiling.cut(array, turn) for array in (image, mask))
        return Sample(
            image=image, mask=mask, label=label, index=index, tile=turn, path=record.path, defect=record.defect
        )

    def _normal_image(self, number: int) -> Array:
        return self.whole(self._normal[number])[0]

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

    @property
    def _images(self) -> int:
        """How many images all ranks see in an epoch."""
        if self.steps is not None:
            return self.steps * self.batch_size
        world = world_size()
        rest = self.length % self.batch_size
        kept = rest - rest % world if rest >= 2 * world else 0
        return self.length - rest + kept or self.length - self.length % world

    def __len__(self) -> int:
        return len(range(rank(), self._images, world_size()))

    def __iter__(self) -> Iterator[Key]:
        rng = np.random.default_rng((self.seed, self.epoch))
        rounds = [rng.permutation(self.length) for _ in range(-(-self._images // self.length))]
        keys = ((self.epoch, int(index), turn) for turn, order in enumerate(rounds) for index in order)
        return islice(keys, rank() + self.skipped * world_size(), self._images, world_size())


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
