"""Kills a command at a random moment of what it is about, such as the middle of a write.

The command runs in a fork of a process that has imported all it needs, so that no kill is wasted on imports. It tells
by shared memory which phase it is in; the killer waits for one and then a random while.
"""

import io
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback

import torch

from anomaly_lab import files, fit, jobs, runs
from anomaly_lab.callbacks import SeedEachBatch
from anomaly_lab.cli import main
from anomaly_lab.trainer import WholeCheckpoints

PHASES = ("start", "epoch", "checkpoint", "metrics", "stages", "scoring")
_LASTS = {"start": 0.2, "epoch": 0.05, "checkpoint": 0.06, "metrics": 0.06, "stages": 0.3, "scoring": 0.4}  # seconds
_PIECES = 20  # in which a file is written, slowly
_OTHER = -1


class Phase:
    """Which phase a process is in, and how often it came into each, in memory that outlives it."""

    def __init__(self):
        self.now = multiprocessing.Value("i", _OTHER, lock=False)
        self.entered = multiprocessing.Array("i", len(PHASES), lock=False)

    def enter(self, name):
        self.now.value = PHASES.index(name)
        self.entered[self.now.value] += 1

    def leave(self):
        self.now.value = _OTHER

    def during(self, name, function):
        def wrapped(*args, **kwargs):
            before = self.now.value
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.now.value = before

        return wrapped

    def after(self, name, function):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            self.enter(name)
            return result

        return wrapped


def run(command, phase=None):
    """A process that runs a command line, telling its phases."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command, phase))
    process.start()
    return process


def finish(command, seconds=120):
    """Run a command to its end, undisturbed; its exit status."""
    process = run(command)
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def kill(command, wanted, rng=random, times=1):
    """Run a command and kill it within a phase that it came into so often; the phase in which that struck it.

    None if it ended before.
    """
    phase = Phase()
    process = run(command, phase)
    index, deadline = PHASES.index(wanted), time.monotonic() + 120
    while process.is_alive() and not (phase.now.value == index and phase.entered[index] >= times):
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, _LASTS[wanted]))
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    return PHASES[phase.now.value] if phase.now.value != _OTHER else "between"


def _child(command, phase):
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    try:
        if phase is not None:
            _tell(phase)
        status = main(command)
    except BaseException:
        traceback.print_exc()
        status = 99
    os._exit(status)


def _tell(phase):
    """Let the phases be known, and writing take its time."""
    runs.Run.start = phase.after("start", runs.Run.start)
    SeedEachBatch.on_train_batch_start = phase.after("epoch", SeedEachBatch.on_train_batch_start)
    WholeCheckpoints.save_checkpoint = phase.during("checkpoint", WholeCheckpoints.save_checkpoint)
    jobs.FirstStage.train = phase.after("stages", jobs.FirstStage.train)
    fit.score = phase.during("scoring", fit.score)
    write = files.write_text
    slowly = phase.during("metrics", write)
    files.write_text = lambda path, text: (slowly if path.name == "metrics.json" else write)(path, text)

    save = torch.save

    def save_slowly(content, file):
        buffer = io.BytesIO()
        save(content, buffer)
        _write_slowly(file, buffer.getvalue())

    torch.save = save_slowly
    fdopen = os.fdopen

    def open_slowly(handle, mode, **options):
        file = fdopen(handle, mode, **options)
        return _Slow(file) if phase.now.value == PHASES.index("metrics") else file

    os.fdopen = open_slowly


class _Slow:
    """A text file that is written in pieces."""

    def __init__(self, file):
        self._file = file

    def write(self, text):
        _write_slowly(self._file, text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def _write_slowly(file, content):
    step = len(content) // _PIECES + 1
    for start in range(0, len(content), step):
        file.write(content[start : start + step])
        file.flush()
        time.sleep(_LASTS["checkpoint"] / _PIECES)
