"""`anomaly-lab runs`: the runs of a folder with their state and size, the sweeps at work, and cleaning what failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from anomaly_lab.arguments import own_options, require_options
from anomaly_lab.errors import ConfigError, RunError, nearest
from anomaly_lab.locks import RunBusyError, is_held
from anomaly_lab.reporting.run_list import Entry, run_list, sweep_list
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_OPTIONS = ("runs_dir", "status", "model", "dataset", "seed", "tag", "clean")
_STATUSES = ("finished", "running", "interrupted", "failed", "unreadable")
_CLEANABLE = ("failed", "interrupted", "unreadable")


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab runs ARGUMENTS`."""
    from rich.console import Console

    asked = parse(arguments)
    runs_dir = Path(asked.get("runs_dir", "runs"))
    if not runs_dir.is_dir():
        raise ConfigError(f"runs_dir={runs_dir} is no folder.")
    entries = [entry for entry in find(runs_dir) if _fits(entry, asked)]
    if "clean" in asked:
        return clean(entries, asked["clean"])
    console = Console()
    if sweeps := at_work(runs_dir):
        console.print(sweep_list(sweeps), "")
    console.print(run_list(entries, runs_dir))
    return 0


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The options of the command line.

    Raises:
        ConfigError: if one is unknown, or has no known value.
    """
    require_options("runs", arguments, _OPTIONS)
    asked = own_options(arguments, _OPTIONS)
    for key, known in (("status", _STATUSES), ("clean", _CLEANABLE)):
        if key in asked and asked[key] not in known:
            raise ConfigError(f"{key}={asked[key]} is unknown. {nearest(asked[key], known)}")
    return asked


def find(runs_dir: Path) -> Iterator[Entry]:
    """All runs below a folder, by dataset, model and name."""
    for path in sorted(runs_dir.glob("*/*/*/config.yaml")):
        run = Run(path.parent)
        try:
            content, status = run.read(), str(run.status())
        except RunError:
            content, status = {}, "unreadable"
        # whoever looks whether a run is finished touches its lock
        files = []
        for file in run.path.rglob("*"):
            with suppress(FileNotFoundError):  # a temporary one, whose writer has just renamed it
                if file.is_file() and file.name != ".lock":
                    files.append(file.stat())
        changed = max((file.st_mtime for file in files), default=0.0)
        yield Entry(run, status, changed, sum(file.st_size for file in files), content)


def _fits(entry: Entry, asked: Mapping[str, str]) -> bool:
    return (
        asked.get("status", entry.status) == entry.status
        and asked.get("model", entry.model) == entry.model
        and asked.get("dataset", entry.dataset) in (entry.dataset, entry.dataset.partition("-")[0])
        and asked.get("seed", str(entry.content.get("seed"))) == str(entry.content.get("seed"))
        and ("tag" not in asked or asked["tag"] in entry.content.get("tags", ()))
    )


def clean(entries: Sequence[Entry], status: str) -> int:
    """Delete the runs of a status that nobody works on; says which, and what space that gives back."""
    freed = 0
    for entry in entries:
        if entry.status != status:
            continue
        with suppress(RunBusyError), entry.run.lock():
            if _is_still(entry.run, status):
                entry.run.delete()
                freed += entry.size
                log.info("deleted %s", entry.run.path)
    log.info("%.1f MiB given back.", freed / 2**20)
    return 0


def _is_still(run: Run, status: str) -> bool:
    """Whether a run that is held here has the status yet: what is running and held by nobody else was interrupted."""
    try:
        now = run.read().get("status")
    except RunError:
        now = "unreadable"
    return now == ("running" if status == "interrupted" else status)


def at_work(runs_dir: Path) -> list[tuple[str, str]]:
    """The sweeps that a process works on: when each was started, and how far it is."""
    from anomaly_lab.sweep import progress

    folders = [path.parent for path in sorted((runs_dir / ".sweeps").glob("*/jobs.json"))]
    return [
        (time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "jobs.json").stat().st_mtime)), progress(folder))
        for folder in folders
        if is_held(folder)
    ]
