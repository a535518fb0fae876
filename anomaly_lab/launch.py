"""Starting the processes that train one model together, on this machine or, by torchrun, on several."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pickle
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from anomaly_lab.errors import LabError, RunError
from anomaly_lab.hardware import under_torchrun
from anomaly_lab.ranks import rank

_PATIENCE = timedelta(days=1)  # with the first rank, which may have many images to decode
_GRACE = 10  # seconds to end in, once asked
_PR_SET_PDEATHSIG = 1  # of prctl(2)

Work = Callable[..., Any]


def on_ranks(count: int, work: Work, *arguments: Any) -> Any:
    """What `work(*arguments)` returns on the first of `count` processes that run it together.

    Where torchrun has started the processes, on these, however many they are.

    Raises:
        LabError: as raised by the first rank that did.
        RunError: if a process ended in any other way.
    """
    if under_torchrun():
        _tell((work, arguments))
        return work(*arguments)
    if count == 1:
        return work(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        return _spawn(count, Path(folder), work, arguments)


@contextlib.contextmanager
def lead() -> Iterator[bool]:
    """A block for the first of the processes that torchrun has started; the others work for it meanwhile.

    Yields whether this is the first one.
    """
    dist.init_process_group(timeout=_PATIENCE)
    if rank() > 0:
        _be_quiet()
        while (task := _hear()) is not None:
            work, arguments = task
            work(*arguments)
        yield False
    else:
        yield True
        _tell(None)
    dist.destroy_process_group()  # not after an error: torchrun ends the others


def _tell(task: tuple[Work, tuple[Any, ...]] | None) -> None:
    dist.broadcast_object_list([task])


def _hear() -> tuple[Work, tuple[Any, ...]] | None:
    box: list[Any] = [None]
    dist.broadcast_object_list(box)
    task: tuple[Work, tuple[Any, ...]] | None = box[0]
    return task


def _spawn(count: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> Any:
    task = (count, folder, os.getpid(), work, arguments)
    context = spawn(_one, task, nprocs=count, join=False)  # type: ignore[no-untyped-call]  # torch's
    try:
        with _interrupted_by(signal.SIGTERM):
            while not context.join():
                pass
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise _cause(folder, error) from None
    finally:
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join(_GRACE)
            process.kill()
    return pickle.loads((folder / "result").read_bytes())


def _one(number: int, count: int, folder: Path, parent: int, work: Work, arguments: tuple[Any, ...]) -> None:
    """A rank's life."""
    _die_with(parent)
    if number == 0:
        from anomaly_lab.cli import log_to_console

        log_to_console()
    else:
        _be_quiet()
    join(number, count, folder / "store")
    try:
        result = work(*arguments)
    except LabError as error:
        (folder / f"error-{number}").write_bytes(pickle.dumps(error))
        raise
    except Exception:
        (folder / f"traceback-{number}").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    if number == 0:
        (folder / "result").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def join(number: int, count: int, store: Path) -> None:
    """Become one of `count` processes on this machine that train together, and meet the others by a file.

    No port is needed that another program may take meanwhile.
    """
    os.environ |= {"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}  # Lightning reads them
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    dist.init_process_group(init_method=f"file://{store}", rank=number, world_size=count, timeout=_PATIENCE)


def _cause(folder: Path, error: Exception) -> LabError | RuntimeError:
    """What one rank raised first; the others fail for want of it."""
    said = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    if said:
        cause: LabError = pickle.loads(said[0].read_bytes())
        return cause
    if isinstance(error, ProcessRaisedException):
        told = sorted(folder.glob("traceback-*"), key=lambda path: path.stat().st_mtime_ns)
        return RuntimeError(told[0].read_text(encoding="utf-8") if told else str(error))
    return RunError(f"One of the processes that train together was ended ({error}): out of memory, perhaps.")


def _be_quiet() -> None:
    """The first rank speaks for all."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, whatever ends that: nobody else holds the run's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Make a signal a keyboard interrupt, so that the ranks are ended too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(number, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
