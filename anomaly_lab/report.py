"""`anomaly-lab report`: one HTML page of a folder of runs, which opens anywhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from anomaly_lab.arguments import own_options, require_options
from anomaly_lab.errors import ConfigError, RunError, require
from anomaly_lab.files import write_text
from anomaly_lab.list_runs import find
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.page.build import Source, page
from anomaly_lab.reporting.run_list import Entry
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_OPTIONS = ("runs_dir", "output", "run", "images", "title", "model", "dataset", "tag")
LARGEST = 25  # MiB that a page is meant to stay under


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab report ARGUMENTS`."""
    require_options("report", arguments, _OPTIONS)
    asked = own_options(arguments, _OPTIONS)
    runs_dir = Path(asked.get("runs_dir", "runs"))
    if not runs_dir.is_dir():
        raise ConfigError(f"runs_dir={runs_dir} is no folder.")
    require("images", asked.get("images", "thumbnails"), ("thumbnails", "folder"))
    output = Path(asked.get("output", runs_dir / "report.html"))
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"output={output} has to be a file that ends with .html.")
    entries = [
        entry
        for entry in find(runs_dir)
        if asked.get("model", entry.model) == entry.model
        and asked.get("dataset", entry.dataset) in (entry.dataset, entry.dataset.partition("-")[0])
        and ("tag" not in asked or asked["tag"] in entry.content.get("tags", ()))
    ]
    finished = sum(entry.status == "finished" for entry in entries)
    if not finished:
        filters = " ".join(f"{name}={asked[name]}" for name in ("dataset", "model", "tag") if name in asked)
        damaged = next((entry.run.metrics_file for entry in entries if entry.status == "unreadable"), None)
        where = f"{damaged} is unreadable" if damaged else "runs lie at DIR/dataset/method/run"
        raise RunError(f"{runs_dir} has no finished run to report on{filters and f' with {filters}'}: {where}.")
    shown = _named(asked["run"]) if "run" in asked else _latest(entries)
    pictures = output.parent / f"{output.stem}_images" if asked.get("images") == "folder" else None
    text, gaps = page(
        Source(runs_dir, entries, shown, pictures, asked.get("title", f"Runs in {runs_dir.resolve().name}"))
    )
    write_text(output, text)
    for gap in gaps:
        log.warning("%s", gap)
    size = output.stat().st_size / 2**20
    log.info("%d finished %s: %s (%.1f MiB)", finished, "run" if finished == 1 else "runs", output, size)
    if shown is not None:
        log.info("Scores and pictures are those of %s; run=RUN_DIR shows another.", shown.path)
    if size > LARGEST:
        log.warning("The page is larger than %d MiB: run= with a smaller gallery makes it lighter.", LARGEST)
    return 0


def _named(path: str) -> Run:
    run = Run(Path(path))
    run.check_finished()
    return run


def _is_readable(run: Run) -> bool:
    try:
        return len(ScoreTable.from_csv(run.scores_file)) > 0
    except RunError:
        return False


def _latest(entries: Sequence[Entry]) -> Run | None:
    """The finished run that was changed last and has pictures, or else any; no score has a say in it."""

    def rank(entry: Entry) -> tuple[bool, float]:
        return (entry.run.path / "predictions" / "gallery.npz").exists(), entry.changed

    finished = sorted((entry for entry in entries if entry.status == "finished"), key=rank, reverse=True)
    return next((entry.run for entry in finished if _is_readable(entry.run)), None)
