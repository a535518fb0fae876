"""The list of runs in the terminal, in 80 columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anomaly_lab.reporting.tables import number, printable
from anomaly_lab.runs import Run

_STYLES = {"failed": "bold red", "unreadable": "bold red", "interrupted": "yellow", "running": "green"}


@dataclass(frozen=True)
class Entry:
    """A run as a list shows it.

    Attributes:
        status: as `Run.status`, or `unreadable` where its metrics.json is damaged.
        changed: when its metrics.json was written, in seconds since 1970.
        size: of all its files, in bytes.
        content: of metrics.json.
    """

    run: Run
    status: str
    changed: float
    size: int
    content: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """With its category."""
        return self.run.path.parts[-3]

    @property
    def model(self) -> str:
        """The method."""
        return self.run.path.parts[-2]


def run_list(entries: Sequence[Entry], runs_dir: Path) -> RenderableType:
    """One row for each run; below it, how many of each status there are and what disk space they use."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in ("dataset", "model", "run", "status", "AUROC", "MiB", "changed"):
        table.add_column(heading, justify="right" if heading in ("AUROC", "MiB") else "left", overflow="fold")
    causes = []
    for entry in entries:
        metrics = entry.content.get("metrics", {})
        auroc, on_val = metrics.get("image_auroc"), metrics.get("val_image_auroc")
        table.add_row(
            printable(entry.dataset),
            printable(entry.model),
            entry.run.path.name,
            Text(entry.status, style=_STYLES.get(entry.status, "")),
            number(auroc) if auroc is not None or on_val is None else f"{number(on_val)} on val",
            f"{entry.size / 2**20:.1f}",
            time.strftime("%m-%d %H:%M", time.localtime(entry.changed)),
        )
        if entry.status == "failed":
            causes.append(f"{entry.run.path.name}: {str(entry.content.get('cause')).splitlines()[0]}")
    counted = Counter(entry.status for entry in entries)
    told = ", ".join(f"{count} {status}" for status, count in sorted(counted.items())) or "no runs"
    size = sum(entry.size for entry in entries) / 2**30
    lines = [*causes, f"{told}, {size:.2f} GiB below {runs_dir}"]
    return Group(table, Text(), Text(printable("\n".join(lines)))) if entries else Text(printable(lines[-1]))


def sweep_list(sweeps: Sequence[tuple[str, str]]) -> RenderableType:
    """One line for each sweep at work: when it was started, and how far it is."""
    return Text("\n".join(f"Sweep of {started}: {told}" for started, told in sweeps))
