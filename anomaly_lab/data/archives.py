"""Unpacking a dataset's archive, which may be anybody's: it writes into its own folder, and all of it or nothing."""

from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
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
    with folder_beside(beside) as folder:
        left = max(_SMALL, _RATIO * archive.stat().st_size)
        try:
            with _members(archive) as members:
                for member in members:
                    left -= _write(member, folder / _place(member.name, archive), left, archive)
        except FileExistsError as error:
            twice = Path(error.filename).relative_to(folder)
            raise DataError(f"{archive}: {twice} stands in it twice. Nothing was unpacked.") from None
        # of a damaged file each kind of compression says so in its own way, and zipfile of an encrypted one in another
        except (*_DAMAGED, OSError, RuntimeError) as error:
            what = "it is encrypted" if "encrypted" in str(error) else error
            raise DataError(f"{archive}: cannot be unpacked ({what}). Nothing was unpacked.") from None
        yield folder


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder to fill and then to move to `target`; it is gone when the block ends, and what a killed process
    left of it when the next one comes.

    Raises:
        DataError: if another process is at the same place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(f".{target.name}.unpacked")
    handle = _held(whole, target)
    try:
        shutil.rmtree(whole / "all", ignore_errors=True)
        (whole / "all").mkdir()
        yield whole / "all"
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        os.close(handle)


def _held(folder: Path, target: Path) -> int:
    """A handle that holds a folder, made if it is not there; the lock is the kernel's and dies with its process."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # a link would lead elsewhere
        except FileNotFoundError:  # another process has just been done with it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(handle)
            if folder.exists() and os.path.samestat(held, folder.lstat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise DataError(f"{target}: another process is bringing it there.") from None
        os.close(handle)  # what was there when it was opened is gone


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
        if not info.filename.endswith(("/", "\\")):  # no folder, on Windows either
            yield _Member(info.filename, partial(file.open, info))


def _of_tar(file: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in file:
        if not (info.isreg() or info.isdir()):
            raise DataError(f"{archive}: {info.name!r} is a link or a device. Nothing was unpacked.")
        if info.isreg():
            yield _Member(info.name, partial(file.extractfile, info))  # type: ignore[arg-type]  # of a plain file, not None


def _place(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))  # as Windows parts a path, some programs do in archives too
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name:
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
    require_free(target, [path.name for path in folder.iterdir()])
    for path in sorted(folder.iterdir()):
        shutil.move(path, target / path.name)


def require_free(target: Path, names: Iterable[str]) -> None:
    """See that a folder, which need not be there, can take files and folders of these names.

    Raises:
        DataError: if not.
    """
    if target.exists() and not target.is_dir():
        raise DataError(f"{target} is a file, and was to be the dataset's folder: give another root=DIR.")
    there = sorted(name for name in names if (target / name).exists())
    if there:
        shown = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise DataError(f"{target} has {shown} already: move it away, or give another root=DIR.")
