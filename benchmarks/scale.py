"""What grows with the number of images and of runs, at a tenth and at the whole of it: `python -m benchmarks.scale`.

Images are names without content, runs are made up: what is measured is everything but reading pictures and training.
Each size has a process of its own. Linear is a ratio of about ten.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from anomaly_lab.data.folder import ImageFolder
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split, make_split
from anomaly_lab.files import read_json, write_json
from anomaly_lab.metrics.image import image_metrics
from anomaly_lab.metrics.scores import ScoreTable

Result = TypeVar("Result")
Steps = dict[str, dict[str, float]]  # of each step its seconds, and the process's peak memory in MiB after it

_TESTED = 50  # images of a made-up run
_SEEDS = 5


def main() -> int:
    """Measure both sizes of both, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000, help="names in a folder (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=10_000, help="in one folder (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to put them for the time (default: the system's)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anomaly-lab-scale-", dir=given.folder) as name:
        if given.measure:
            what, count = given.measure
            json.dump({"images": of_images, "runs": of_runs}[what](int(count), Path(name)), sys.stdout)
            return 0
        for what, count in (("images", given.images), ("runs", given.runs)):
            tenth, whole = (_measured(what, size, Path(name)) for size in (count // 10, count))
            Console().print(_table(what, count, tenth, whole), "")
    return 0


def of_images(count: int, folder: Path) -> Steps:
    """Scanning, splitting, writing and scoring `count` images, a tenth of them defective."""
    for index in range(count):
        place = folder / "images" / ("good" if index % 10 else "scratch") / f"{index // 1000:04}"
        if index % 1000 < 2:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:07}.png").touch()
    steps: Steps = {}
    records = _timed(steps, "scan the folder", ImageFolder(folder / "images").scan)
    split = _timed(steps, "split", lambda: make_split(records, SplitOptions()))
    _timed(steps, "write split.json", lambda: write_json(folder / "split.json", split.to_json()))
    _timed(steps, "read and check it", lambda: Split.from_json(read_json(folder / "split.json")))
    packed = _timed(steps, "pack it for another process", lambda: pickle.dumps(split))
    _timed(steps, "unpack it there", lambda: pickle.loads(packed))
    table = _timed(steps, "score table", lambda: _scores(records))
    _timed(steps, "write scores.csv", lambda: table.to_csv(folder / "scores.csv"))
    _timed(steps, "read it", lambda: ScoreTable.from_csv(folder / "scores.csv"))
    _timed(steps, "image metrics with an interval", lambda: image_metrics(table, val=None))
    return steps


def of_runs(count: int, folder: Path) -> Steps:
    """Listing `count` finished runs, and a report on them."""
    from anomaly_lab.cli import main as command

    for index in range(count):
        _make_run(folder / "runs" / "folder" / "ae" / f"{index:08x}-s{index % _SEEDS}", index)
    steps: Steps = {}
    for name, arguments in (
        ("anomaly-lab runs", ["runs"]),
        ("anomaly-lab report", ["report", f"output={folder / 'report.html'}"]),
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = _timed(
                steps, name, lambda arguments=arguments: command([*arguments, f"runs_dir={folder / 'runs'}"])
            )
        if status:
            raise RuntimeError(f"{name} ended with status {status}")
    return steps


def _timed(steps: Steps, name: str, do: Callable[[], Result]) -> Result:
    started = time.process_time()
    result = do()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    steps[name] = {"seconds": time.process_time() - started, "peak": peak}
    return result


def _measured(what: str, count: int, folder: Path) -> Steps:
    command = [sys.executable, "-m", "benchmarks.scale", "--folder", str(folder), "--measure", what, str(count)]
    steps: Steps = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return steps


def _scores(records: list[Record]) -> ScoreTable:
    label = np.array([record.label for record in records])
    return ScoreTable(
        index=np.arange(len(records)),
        path=[record.path for record in records],
        label=label,
        defect=[record.defect for record in records],
        group=[""] * len(records),
        scores={"mean": np.random.default_rng(0).normal(size=len(records)) + label},
        primary="mean",
    )


def _make_run(path: Path, index: int) -> None:
    """A finished run with a latent size of its own for each of `_SEEDS` seeds."""
    path.mkdir(parents=True)
    records = [Record(f"{i}.png", "scratch" if i % 5 == 0 else "good") for i in range(_TESTED)]
    table = _scores(records)
    config: dict[str, Any] = {
        "model": {"name": "ae", "latent_dim": index // _SEEDS + 1},
        "dataset": {"name": "folder"},
        "trainer": {},
        "seed": index % _SEEDS,
    }
    metrics, reasons = image_metrics(table, val=None, bootstrap=10)
    (path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_json(path / "split.json", Split({"test": tuple(records)}, SplitOptions()).to_json())
    write_json(path / "metrics.json", {"status": "finished", "metrics": metrics, "reasons": reasons, "seconds": {}})
    table.to_csv(path / "scores.csv")


def _table(what: str, count: int, tenth: Steps, whole: Steps) -> Table:
    shown = Table(title=f"{count:,} {what}", title_justify="left", box=None, padding=(0, 2))
    for column in ("", f"{count // 10:,}", f"{count:,}", "ratio", "peak memory"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, step in whole.items():
        seconds = tenth[name]["seconds"], step["seconds"]
        ratio = f"{seconds[1] / seconds[0]:.1f}" if seconds[0] > 0.05 else "-"
        shown.add_row(name, *(f"{each:.1f} s" for each in seconds), ratio, f"{step['peak']:,.0f} MiB")
    return shown


if __name__ == "__main__":
    sys.exit(main())
