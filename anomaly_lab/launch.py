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
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from anomaly_lab.console import log_to_console
from anomaly_lab.errors import LabError, RunError
from anomaly_lab.hardware import under_torchrun
from anomaly_lab.ranks import rank

_PATIENCE = timedelta(days=1)  # with the first rank, which may have many images to decode
_GRACE = 60  # seconds to end in, once asked: for the step and the checkpoint
_PR_SET_PDEATHSIG = 1  # of prctl(2)

Work = Callable[..., Any]

_broken: list[BaseException] = []  # what ended the work of processes that torchrun has started


def on_ranks(count: int, work: Work, *arguments: Any) -> Any:
    """What `work(*arguments)` returns on the first of `count` processes that run it together.

    Where torchrun has started the processes, on these, however many they are.

    Raises:
        LabError: as raised by the first rank that did.
        RunError: if a process ended in any other way.
    """
    if under_torchrun():
        return _with_the_others(work, arguments)
    if count == 1:
        return work(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        return _spawn(count, Path(folder), work, arguments)


@contextlib.contextmanager
def lead() -> Iterator[bool]:
    """A block for the first of the processes that torchrun has started; the others work for it meanwhile.

    Yields whether this is the first one. After an error the others may wait anywhere: the process ends, and with it
    torchrun ends them.
    """
    dist.init_process_group(timeout=_PATIENCE)
    if rank() > 0:
        _be_quiet()
        while (task := _hear()) is not None:
            work, arguments = task
            try:
                work(*arguments)
            except Exception:
                time.sleep(_GRACE)  # the first one says what is wrong, and ends this
                leave(1)
        yield False
    else:
        yield True
        if _broken:
            leave(1)
        _tell(None)
    dist.barrier()  # before either hangs up
    dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process at once: on the ordinary way out threads of the process group may still run, which aborts it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _with_the_others(work: Work, arguments: tuple[Any, ...]) -> Any:
    if _broken:
        raise RunError("Another job failed, after which the processes cannot go on together: give the command again.")
    _tell((work, arguments))
    try:
        return work(*arguments)
    except BaseException as error:
        _broken.append(error)
        raise


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
    with _interrupted_by(signal.SIGTERM):
        try:
            while not context.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise _cause(folder, error) from None
        finally:
            for process in context.processes:
                process.terminate()
            deadline = time.monotonic() + _GRACE
            for process in context.processes:
                process.join(max(0.0, deadline - time.monotonic()))
                process.kill()
    return pickle.loads((folder / "result").read_bytes())


def _one(number: int, count: int, folder: Path, parent: int, work: Work, arguments: tuple[Any, ...]) -> None:
    """A rank's life."""
    _die_with(parent)
    if number == 0:
        log_to_console()
    else:
        _be_quiet()
    join(number, count, folder / "store")
    try:
        result = work(*arguments)
    except Exception as error:
        said = error if isinstance(error, LabError) else RuntimeError(f"{type(error).__name__}: {error}")
        said.add_note(traceback.format_exc())
        (folder / f"error-{number}").write_bytes(pickle.dumps((isinstance(error, LabError), said)))
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


def _cause(folder: Path, error: ProcessRaisedException | ProcessExitedException) -> Exception:
    """What one rank raised first, with its traceback as a note; the others fail for want of it."""
    files = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    # a sentence for the user before what a rank says whose peer is gone
    said = sorted((pickle.loads(path.read_bytes()) for path in files), key=lambda pair: not pair[0])
    if said:
        cause: Exception = said[0][1]
        return cause
    if getattr(error, "signal_name", None):
        return RunError(f"One of the processes that train together was ended by {error}: out of memory, perhaps.")
    return RunError(
        f"One of the processes that train together ended: {error}. A script that trains on several devices needs "
        "`if __name__ == '__main__':` around what it does."
    )


def _be_quiet() -> None:
    """The first rank speaks for all."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _die_with(parent: int) -> None:
    """End with the parent, whatever ends that, by the kernel's hand on Linux: nobody else holds the run's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Make a signal a keyboard interrupt, so that the ranks are ended too."""

    def interrupt(*_: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
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
