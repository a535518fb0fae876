"""The decoded, resized images of a dataset, kept on disk once per machine and shared by the jobs of a sweep."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from anomaly_lab.data.framing import Area, Framing
from anomaly_lab.data.images import PLAIN, MaskRule, read_image, read_mask
from anomaly_lab.data.records import Record
from anomaly_lab.errors import ConfigError, DataError
from anomaly_lab.types import DEFECTIVE, IGNORE, NORMAL

CACHE_VARIABLE = "ANOMALY_LAB_CACHE"
FORMAT = 1  # changes whenever decoding or resizing gives other pixels, so that old entries are not used
MASK_FORMAT = 2  # the same, of polygons and of masks with a value to ignore
WORKERS = min(16, os.cpu_count() or 1)
AT_ONCE = 10_000  # images handed to the threads
LISTED = 10  # unreadable files named in one error
ABSENT = (-1, -1)  # the stamp of a file that is not there

logger = logging.getLogger("anomaly_lab")
_complained: set[Path] = set()
_complaining = threading.Lock()

Array = npt.NDArray[np.uint8]


def cache_dir() -> Path:
    """Where this machine keeps what can be computed again: $ANOMALY_LAB_CACHE, or the user's cache folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "anomaly_lab"


class ImageStore:
    """Images and masks of one dataset at one size, decoded once and then read from the cache.

    With the size None they keep their own, at least `smallest` pixels to each side. Such images are large as a rule,
    and a decoded one takes about as much time to read back as to decode: they are not cached.

    An entry is rebuilt when its image or mask has another size or modification time than when it was
    written, or when the entry is damaged. Several processes may fill one cache at once. Where the cache
    cannot be written, images are decoded each time.

    Raises:
        ConfigError: if the size or the resize policy cannot work.
    """

    def __init__(
        self,
        root: Path,
        size: int | None,
        policy: str = "squash",
        max_value: int | None = None,
        cache: Path | None = None,
        smallest: int = 1,
        roi: Area | None = None,
        masks: MaskRule = PLAIN,
    ) -> None:
        if size is not None and size < 1:
            raise ConfigError(f"dataset.image_size={size}: a positive number of pixels is needed.")
        self.root = Path(root).expanduser().resolve()
        self.size = size
        self.framing = Framing(size, policy, smallest, roi)
        self.masks = masks
        self.max_value = max_value
        self._frames: dict[str, tuple[int, int]] = {}
        self.marked: dict[str, float] = {}  # by a prepared image's path, which share of its pixels is defective
        self.cache = Path(cache).absolute() if cache is not None else cache_dir() / "images"
        self._layout = np.dtype(
            [
                ("crc", "<u4"),  # of all that follows
                ("stamps", "<i8", (2, 2)),  # (size, mtime_ns) of image and mask
                ("image", "u1", (size or 1, size or 1, 3)),
                ("mask", "u1", (size or 1, size or 1)),
            ]
        )

    def load(self, record: Record) -> tuple[Array, Array]:
        """The record's image (H, W, 3) and mask (H, W), of `size` where there is one.

        The mask of a normal image, and of one that is still to be painted, is NORMAL but where its mask says IGNORE;
        IGNORE for a defective one without a mask or whose mask is empty at this size; IGNORE in the borders of the
        policy `pad`.

        Raises:
            DataError: if the image or its mask cannot be read, or they differ in size.
        """
        defective = bool(record.label) and record.painted is None
        image = self.root / record.path
        mask = self.root / record.mask if record.mask else None  # of a normal image it says where not to look
        key: list[Any] = [
            str(image),
            mask and str(mask),
            defective,
            self.size,
            self.framing.policy,
            self.max_value,
            FORMAT,
        ]
        if self.framing.roi is not None or self.masks != PLAIN:  # entries made before there were these stay found
            key += [self.framing.roi, self.masks.threshold, self.masks.ignore]
        if mask is not None and (mask.suffix.lower() == ".json" or self.masks.ignore is not None):
            key.append(MASK_FORMAT)
        path = self.cache / (hashlib.sha256(json.dumps(key).encode()).hexdigest()[:40] + ".bin")
        # taken before the files are read: whatever changes them meanwhile makes the entry stale, not wrong
        stamps = np.array([stamp(image), stamp(mask) if mask else ABSENT], np.int64)
        if self.size is None:
            pair = self._decode(image, mask if stamps[1, 1] != ABSENT[1] else None, defective)
            self._frames[record.path] = pair[1].shape[0], pair[1].shape[1]
            return pair
        entry = _read(path, self._layout, stamps)
        if entry is None:
            pair = self._decode(image, mask if stamps[1, 1] != ABSENT[1] else None, defective)
            entry = _entry(self._layout, stamps, *pair)
            _write(path, entry)
        return entry["image"][0], entry["mask"][0]

    def frame(self, record: Record) -> tuple[int, int]:
        """Height and width of what `load` returns for the record."""
        if self.size is not None:
            return self.size, self.size
        if record.path not in self._frames:
            self.load(record)
        return self._frames[record.path]

    def prepare(self, records: Iterable[Record], *, progress: bool = False, workers: int = WORKERS) -> None:
        """Bring what is missing into the cache, with `workers` threads.

        Raises:
            DataError: if files cannot be read, once all others are done; it lists them.
        """
        unique = {(record.path, record.mask, record.label, record.painted is None): record for record in records}
        wanted = list(unique.values())
        with ThreadPoolExecutor(max(1, workers)) as pool:

            def finish() -> Iterator[Future[str | None]]:
                for start in range(0, len(wanted), AT_ONCE):  # a million futures are 2 GiB
                    yield from as_completed([pool.submit(self._complaint, r) for r in wanted[start : start + AT_ONCE]])

            try:
                finished: Iterable[Any] = finish()
                if progress:
                    finished = _with_progress(finished, len(wanted))
                found = sorted(complaint for future in finished if (complaint := future.result()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # or Ctrl-C would wait for the whole dataset
                raise
        if found:
            listed = [*found[:LISTED], *([f"... and {len(found) - LISTED} more"] if len(found) > LISTED else [])]
            raise DataError(
                f"{len(found)} of {len(unique)} images cannot be used. Mend or remove them, then run again:\n  "
                + "\n  ".join(listed)
            )

    def _complaint(self, record: Record) -> str | None:
        try:
            _, mask = self.load(record)
            self.marked[record.path] = float(np.mean(mask == DEFECTIVE))
        except DataError as error:
            return str(error)
        return None

    def _decode(self, image: Path, mask: Path | None, defective: bool) -> tuple[Array, Array]:
        pixels = read_image(image, max_value=self.max_value)
        size = pixels.shape[0], pixels.shape[1]
        marked = read_mask(mask, size=size, rule=self.masks, image=image) if mask else np.zeros(size, np.uint8)
        if not defective:
            marked = np.where(marked == IGNORE, np.uint8(IGNORE), np.uint8(NORMAL))
        try:
            resized, marks = self.framing.pair(pixels, marked)
        except DataError as error:
            raise DataError(f"{image}: {error}.") from None
        if defective and not (marks == DEFECTIVE).any():  # empty in the file, or too small or outside at this size
            marks[:] = IGNORE
        return resized, marks


def stamp(path: Path) -> tuple[int, int]:
    """(size, mtime_ns) of a file, or ABSENT."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}). Check the path and its permissions.") from error
    return status.st_size, status.st_mtime_ns


def _read(path: Path, layout: np.dtype[Any], stamps: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
    """A cache entry, or None if it is missing, stale, damaged or something else. Nothing in it is executed."""
    try:
        entry = np.fromfile(path, layout, count=1)  # plain bytes: a third of the time that a .npy takes
    except OSError:
        return None
    trusted = len(entry) == 1 and np.array_equal(entry["stamps"][0], stamps) and entry["crc"][0] == _checksum(entry)
    return entry if trusted else None


def _entry(layout: np.dtype[Any], stamps: npt.NDArray[np.int64], image: Array, mask: Array) -> npt.NDArray[Any]:
    entry = np.empty(1, layout)
    entry["stamps"], entry["image"], entry["mask"] = stamps, image, mask
    entry["crc"] = _checksum(entry)
    return entry


def _checksum(entry: npt.NDArray[Any]) -> int:
    return zlib.crc32(entry.view(np.uint8)[entry.dtype["crc"].itemsize :].data)


def _write(path: Path, entry: npt.NDArray[Any]) -> None:
    """Put the entry in its place whole or not at all; a cache that cannot be written is said once."""
    part = path.with_name(f".{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(entry.tobytes())
        part.replace(path)
    except OSError as error:
        with _complaining:
            known = path.parent in _complained
            _complained.add(path.parent)
        if not known:
            logger.warning(
                "The image cache %s cannot be written (%s): images are decoded each time, which is slow. "
                "Set %s to a folder with room.",
                *(path.parent, error.strerror, CACHE_VARIABLE),
            )
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _with_progress(finished: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(finished, "Decoding images", total, console=Console(stderr=True, force_jupyter=False))
