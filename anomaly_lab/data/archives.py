"""Unpacking a dataset's archive, which may be anybody's: it writes into its own folder, and all of it or nothing."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from anomaly_lab.errors import DataError

_SMALL = 200 * 2**20  # bytes that any archive may unfold to
_RATIO = 100  # to which a larger one may: pictures are compressed already
_PIECE = 2**20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


class _Member(NamedTuple):
    """A file in an archive."""

    name: str
    open: Callable[[], IO[bytes]]


@contextmanager
def unpacked(archive: Path, beside: Path) -> Iterator[Path]:
    """The content of a zip or tar file, in a folder beside another one that is gone when the block ends.

    Raises:
        DataError: if it is no archive or damaged, leads out of its folder, holds links or devices, or unfolds beyond
            measure; nothing is left then.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}-", dir=beside.parent) as name:
        folder, left = Path(name), max(_SMALL, _RATIO * archive.stat().st_size)
        try:
            with _members(archive) as members:
                for member in members:
                    left -= _write(member, folder / _place(member.name, archive), left, archive)
        except FileExistsError as error:
            raise DataError(f"{archive}: {error.filename} stands in it twice. Nothing was unpacked.") from None
        # of a damaged file each kind of compression says so in its own way, and zipfile of an encrypted one in another
        except (*_DAMAGED, OSError, RuntimeError) as error:
            raise DataError(f"{archive}: cannot be unpacked ({error}). Nothing was unpacked.") from None
        yield folder


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield _of_zip(file, archive)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield _of_tar(file, archive)
    else:
        raise DataError(f"{archive}: neither a zip nor a tar file.")


def _of_zip(file: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in file.infolist():
        mode = info.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and stat.S_IFMT(mode):
            raise DataError(f"{archive}: {info.filename!r} is no plain file. Nothing was unpacked.")
        if not info.is_dir():
            yield _Member(info.filename, partial(file.open, info))


def _of_tar(file: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in file:
        if not (info.isreg() or info.isdir()):
            raise DataError(f"{archive}: {info.name!r} is a link or a device. Nothing was unpacked.")
        if info.isreg():
            yield _Member(info.name, partial(file.extractfile, info))  # type: ignore[arg-type]  # of a plain file, not None


def _place(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name or "\\" in name:
        raise DataError(f"{archive}: {name!r} leads out of the folder. Nothing was unpacked.")
    return path


def _write(member: _Member, path: Path, left: int, archive: Path) -> int:
    """Write a file, at most `left` bytes whatever it says of itself; returns how many."""
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, path.open("xb") as target:
        while piece := source.read(_PIECE):
            written += len(piece)
            if written > left:
                raise DataError(f"{archive}: unfolds to more than pictures do. Nothing was unpacked.")
            target.write(piece)
    return written


def move_into(folder: Path, target: Path) -> None:
    """Bring what a folder holds to where it belongs; another one there may already have other parts of it.

    Raises:
        DataError: if something of these names is there; nothing is moved then.
    """
    if not target.exists():
        folder.replace(target)
        return
    there = sorted(path.name for path in folder.iterdir() if (target / path.name).exists())
    if there:
        raise DataError(f"{target} has {', '.join(there)} already: move it away, or give another root=DIR.")
    for path in sorted(folder.iterdir()):
        shutil.move(path, target / path.name)
