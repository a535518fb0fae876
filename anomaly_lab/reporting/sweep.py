"""The table of a sweep's jobs, and their means over seeds, in 80 columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anomaly_lab.metrics.image import is_segmenter
from anomaly_lab.reporting.tables import MISSING, duration, is_below, number, parts, printable

Row = Mapping[str, Any]

SEEDS = ("seed", "dataset.split_seed")  # options that repeat a job rather than change it
DONE = ("finished", "skipped")


def sweep_table(rows: Sequence[Row]) -> RenderableType:
    """One row per job of a multirun; below it, why the failed ones failed, and the means over seeds.

    A row has `overrides` (list of str), `status`, `run` (its directory, or None), for a failed job `cause`, of which
    the first line is shown, and of one that is done `metrics` and `seconds` as in metrics.json; `tested`, if given,
    says which images it was tested on. Overrides that all jobs share, and the folder that holds all runs, are named
    once, below the table. Beside a segmenter, the IoU of defects and AUPRO stand in place of F1; where no job has
    anything defective to test on, the AUROC on val stands in place of all.
    """
    known = [row["metrics"] for row in rows if row.get("metrics")]
    by_pixels = any(map(is_segmenter, known))
    shown = {"IoU of\ndefects": "pixel_iou_defect", "AUPRO": "pixel_aupro"} if by_pixels else {"F1": "image_f1"}
    ranked = {"AUROC": "image_auroc", "floor\n(1-NN)": "floor_knn_auroc"}
    notes = [f"{'IoU' if by_pixels else 'F1'} is the one at the threshold to deploy"]
    if known and all(metrics.get("image_auroc") is None for metrics in known):
        shown, ranked = {}, {"AUROC on val\n(painted)": "val_image_auroc"}
        notes = ["nothing defective to test on: choose by val"]
    shared = _shared_overrides(rows)
    parent = _common_folder(rows)
    heads = [f"{text}\n[95% CI]" if text == "AUROC" else text for text in (*ranked, *shown)]
    table = _table(*heads, "time", before=("job", "status"))
    table.add_column("run", overflow="fold")
    is_any_below = False
    for row in rows:
        metrics = row.get("metrics") or {}
        own = [printable(text) for text in row["overrides"] if text not in shared]
        run, failed = _below_folder(row.get("run"), parent), row["status"] == "failed"
        auroc, floor = metrics.get("image_auroc"), metrics.get("floor_knn_auroc")
        is_any_below |= is_below(auroc, floor)
        table.add_row(
            Text("\n".join(own) or MISSING),
            Text(row["status"], style="bold red" if failed else ""),
            *(
                Text(("! " if is_below(auroc, floor) else "") + "\n".join(parts(auroc, metrics.get("image_auroc_ci"))))
                if name == "image_auroc"
                else Text(number(metrics.get(name)))
                for name in (*ranked.values(), *shown.values())
            ),
            Text(duration(sum(row["seconds"].values()) if row.get("seconds") else None)),
            Text(run),
        )
        if failed:
            notes.append(f"failed: {' '.join(own) or run}: {_first_line(row.get('cause'))}")
    if is_any_below:
        notes.insert(1, "! below the thumbnail floor (1-NN)")
    if (sets := len({row["tested"] for row in rows if row.get("tested")})) > 1:
        notes.append(f"! the jobs were tested on {sets} different lists of images")
    if any(row["status"] == "skipped" for row in rows):
        notes.append("skipped: it was finished before")
    if shared:
        notes.append(f"all jobs: {' '.join(shared)}")
    if parent:
        notes.append(f"runs below {parent}")
    table.caption = Text(printable("\n".join(notes)), style="not italic")
    over_seeds = _over_seeds(rows, shared, {**ranked, **shown})
    return table if over_seeds is None else Group(table, Text(), over_seeds)


def _over_seeds(rows: Sequence[Row], shared: Sequence[str], shown: Mapping[str, str]) -> Table | None:
    """Mean and standard deviation of runs that differ in their seeds only; None if no two do."""
    alike: dict[tuple[str, ...], dict[Any, Row]] = {}
    for row in rows:
        options = {text: text.lstrip("+").partition("=")[0] for text in row["overrides"] if text not in shared}
        same = tuple(text for text, option in options.items() if option not in SEEDS)
        if row.get("metrics") and row["status"] in DONE:
            alike.setdefault(same, {})[row.get("run")] = row["metrics"]
    if all(len(group) < 2 for group in alike.values()):
        return None
    table = _table("seeds", *shown, before=("mean ± standard deviation",))
    for same, group in alike.items():
        cells = [_spread([metrics.get(name) for metrics in group.values()]) for name in shown.values()]
        table.add_row(Text(printable("\n".join(same)) or "all jobs"), str(len(group)), *map(Text, cells))
    return table


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return number(known[0]) if len(values) == 1 and known else MISSING
    return f"{mean(known):.3f} ± {stdev(known):.3f}"


def _table(*numbers: str, before: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption_justify="left")
    for heading in before:
        table.add_column(heading, overflow="fold", no_wrap=heading == "status")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _first_line(cause: str | None) -> str:
    lines = (cause or "").strip().splitlines()
    return lines[0] if lines else "no cause was recorded"


def _shared_overrides(rows: Sequence[Row]) -> list[str]:
    """What every one of several jobs has among its overrides."""
    if len(rows) < 2:
        return []
    return [text for text in rows[0]["overrides"] if all(text in row["overrides"] for row in rows)]


def _common_folder(rows: Sequence[Row]) -> str:
    folders = [str(PurePath(row["run"]).parent) for row in rows if row.get("run")]
    # Paths that are partly relative, or on several drives, have none in common.
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:
        return ""


def _below_folder(run_dir: str | os.PathLike[str] | None, parent: str) -> str:
    if not run_dir:
        return MISSING
    return str(PurePath(run_dir).relative_to(parent)) if parent else str(run_dir)
