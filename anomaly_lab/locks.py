"""Who works in a folder: locks of the kernel's, which die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from anomaly_lab.errors import RunError

_TRIES = 20  # to open the lock of a folder that others delete meanwhile


class RunBusyError(RunError):
    """Another process is working in this folder."""


def is_held(folder: Path) -> bool:
    """Whether a living process holds a folder."""
    try:
        handle = (folder / ".lock").open()
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: looking must not keep anyone out
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder; the lock is the kernel's, so it dies with its process.

    Raises:
        RunBusyError: if another process holds it.
        RunError: if the folder cannot be written.
    """
    tries = 0
    while True:
        tries += 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / ".lock").open("w")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and tries < _TRIES:  # whoever held the folder has just deleted it
                continue
            raise RunError(f"{folder} cannot be written: {error}. Choose another folder.") from None
        with handle:
            _lock(handle, folder)
            if _is_there(handle, folder):
                yield
                return


def _lock(handle: TextIO, folder: Path) -> None:
    for patience in (0.01, 0.05, 0.2, None):  # somebody may just be looking
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if patience is None:
                raise RunBusyError(f"{folder} is being worked on by another process.") from None
            time.sleep(patience)


def _is_there(handle: TextIO, folder: Path) -> bool:
    """Whether the file that is locked is still the one that others will open."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), (folder / ".lock").stat())
    except FileNotFoundError:
        return False
