"""What the report shows, gathered from run directories, and the page made of it."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import RunError
from anomaly_lab.files import read_json
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.cases import gallery_rows
from anomaly_lab.reporting.figures import read_gallery
from anomaly_lab.reporting.page.groups import Group, Name, group_runs, name_all, over_size
from anomaly_lab.reporting.page.pictures import Gallery, file_as_webp
from anomaly_lab.reporting.run_list import Entry
from anomaly_lab.reporting.tables import duration, printable
from anomaly_lab.reporting.thresholds import threshold_rows
from anomaly_lab.runs import Run

_COLUMNS = {  # of the leaderboard: metric -> heading
    "image_auroc": "AUROC",
    "floor_knn_auroc": "floor",
    "image_f1": "F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_iou_defect": "IoU of defects",
}
_FLOOR = "floor_knn_auroc"
_POINTS = 200  # of a curve
_DETAILED = 500  # runs of which the page has the configuration
_LEAKS = 1000  # pixels, width of the leakage figure


@dataclass(frozen=True)
class Source:
    """What a report is made of.

    Attributes:
        runs_dir: the folder.
        entries: its runs.
        shown: the run whose scores and pictures are shown; None: there is none to show.
        pictures: a folder beside the page for full-size pictures; None: thumbnails only.
        title: of the page.
    """

    runs_dir: Path
    entries: Sequence[Entry]
    shown: Run | None
    pictures: Path | None
    title: str


def page(source: Source) -> tuple[str, list[str]]:
    """The page as HTML, and what could not be shown, in sentences."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    gaps: list[str] = []
    finished: list[tuple[Entry, dict[str, Any]]] = []
    for entry in source.entries:
        if entry.status != "finished":
            continue
        try:
            finished.append((entry, entry.run.config()))
        except RunError as error:
            gaps.append(str(error))
    groups = group_runs(finished)
    names = name_all(groups)
    shown = _shown(source, gaps)
    strips = shown.pop("strips", [])
    data = {
        "groups": [
            {
                "dataset": names[group].tested,
                "name": names[group].method,
                **_curves(group, gaps),
            }
            for group in groups
        ],
        "sizes": [_line(line, names) for line in over_size(groups)],
        "shown": shown,
    }
    environment = Environment(
        loader=PackageLoader("anomaly_lab.reporting.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["metric"] = lambda value: "—" if value is None else f"{value:.3f}"
    here = files("anomaly_lab.reporting.page")
    text = environment.get_template("page.html.j2").render(
        title=source.title,
        made=time.strftime("%Y-%m-%d %H:%M"),
        columns=_COLUMNS,
        rows=[_row(group, names[group]) for group in groups],
        datasets=list(dict.fromkeys(name.tested for name in names.values())),
        tables=_paper_tables(source.runs_dir / "tables", gaps),
        shown=shown,
        has_sizes=bool(data["sizes"]),
        details=[_details(entry, config) for entry, config in finished[:_DETAILED]],
        left_out=max(0, len(finished) - _DETAILED),
        others=[entry for entry in source.entries if entry.status != "finished"],
        gaps=gaps,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        data=_as_json(data),
        strips="\n".join(strips),
    )
    return printable(text), gaps


def _as_json(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside of a script element, whatever the file names in it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _row(group: Group, name: Name) -> dict[str, Any]:
    """A row of the leaderboard."""
    floor, auroc = group.spread(_FLOOR), group.spread("image_auroc")
    seconds = [sum(entry.content["seconds"].values()) for entry in group.runs if entry.content.get("seconds")]
    return {
        "dataset": name.tested,
        "model": group.model,
        "options": name.method.removeprefix(group.model),
        "seeds": len(group.runs),
        "spreads": [group.spread(metric) for metric in _COLUMNS],
        "is_below": bool(floor and auroc and auroc.mean < floor.mean),
        "seconds": float(np.mean(seconds)) if seconds else None,
        "time": duration(float(np.mean(seconds))) if seconds else "—",
    }


def _curves(group: Group, gaps: list[str]) -> dict[str, Any]:
    """ROC and precision-recall curve of a group's first run, thinned."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    run = group.runs[0].run
    try:
        table = ScoreTable.from_csv(run.scores_file)
    except RunError as error:
        gaps.append(str(error))
        return {}
    if len(np.unique(table.label)) < 2:
        return {}
    false, true, _ = roc_curve(table.label, table.primary_scores)
    precision, recall, _ = precision_recall_curve(table.label, table.primary_scores)
    return {
        "seed": group.runs[0].content.get("seed"),
        "roc": _thinned(false, true),
        "pr": _thinned(recall[::-1], precision[::-1]),
        "share": float(table.label.mean()),
    }


def _thinned(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> list[list[float]]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return [x[kept].round(4).tolist(), y[kept].round(4).tolist()]


def _line(line: Sequence[Group], names: Mapping[Group, Name]) -> dict[str, Any]:
    """AUROC over the latent size."""
    spreads = [(group.options["model.latent_dim"], group.spread("image_auroc")) for group in line]
    known = [(size, of) for size, of in spreads if of is not None]
    floor = line[0].spread(_FLOOR)
    name = names[line[0]]
    method = " ".join(text for text in name.method.split() if not text.startswith("latent_dim="))
    return {
        "name": f"{name.tested}: {method}",
        "size": [size for size, _ in known],
        "mean": [of.mean for _, of in known],
        "deviation": [of.deviation or 0.0 for _, of in known],
        "floor": None if floor is None else floor.mean,
    }


def _shown(source: Source, gaps: list[str]) -> dict[str, Any]:
    """Scores and pictures of the chosen run."""
    run = source.shown
    if run is None:
        return {}
    content, chosen = run.read(), None
    try:
        chosen = run.chosen_threshold()
    except RunError as error:
        gaps.append(str(error))
    try:
        table = ScoreTable.from_csv(run.scores_file)
    except RunError as error:
        gaps.append(str(error))
        return {}
    metrics = content["metrics"]
    threshold = chosen["threshold"] if chosen else metrics.get("threshold")
    # a threshold for use may be of another of the method's scores
    name = chosen.get("score") if chosen else None
    name = name if name in table.scores else table.primary
    shown: dict[str, Any] = {
        "run": "/".join(run.path.parts[-3:]),
        "score": name,
        "threshold": threshold,
        "chosen": chosen if chosen and "asked" in chosen else None,
        "expected": threshold_rows(chosen) if chosen and "asked" in chosen else [],
        "path": [os.fsencode(path).decode("utf-8", "replace") for path in table.path],
        "label": table.label.tolist(),
        "defect": list(table.defect),
        "scores": [float(f"{value:.7g}") for value in table.scores[name]],
        "leakage": None,
        "leaks": None,
        "kinds": [],
        "places": [],
        "full": None,
        "strips": [],
    }
    try:
        leakage = read_json(run.leakage_file)
        shown["leakage"] = leakage["sentence"]
    except (OSError, ValueError, KeyError):
        gaps.append(f"{run.leakage_file} cannot be read.")
    if (figure := run.path / "figures" / "leakage.png").exists():
        shown["leaks"] = file_as_webp(figure, _LEAKS)
    arrays = read_gallery(run.path / "predictions" / "gallery.npz")
    if len(arrays.get("index", ())):
        by_pixel = metrics.get("pixel_threshold") if metrics.get("pixel_threshold_rule") == "method" else None
        gallery = Gallery(arrays, by_pixel)
        shown["kinds"] = gallery.kinds
        shown["places"] = gallery_rows(arrays["index"], table).tolist()
        shown["index"] = [int(index) for index in arrays["index"]]
        shown["strips"] = gallery.strips()
        if source.pictures is not None:
            gallery.write(source.pictures)
            shown["full"] = source.pictures.name
    return shown


def _paper_tables(folder: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """What `reproduce` left below a runs folder: printed numbers beside ours."""
    tables = []
    for path in sorted(folder.rglob("table.csv")):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["mean"] or row["printed"]]
            head = (path.parent / "table.md").read_text(encoding="utf-8").splitlines()
            titles = [line.removeprefix("# ") for line in head[:3] if line]
            notes = [line.removeprefix("- ") for line in head if line.startswith("- ")]
            for row in rows:
                for name in ("mean", "deviation", "low", "high", "printed"):
                    row[name] = float(row[name]) if row[name] else None
        except (OSError, ValueError, KeyError, csv.Error) as error:
            gaps.append(f"{path} cannot be shown: {error}.")
            continue
        name = path.parent.relative_to(folder).as_posix()
        tables.append({"name": name, "title": ", ".join(titles), "rows": rows, "notes": notes})
    return tables


def _details(entry: Entry, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of a single run."""
    import yaml

    content = entry.content
    try:
        counts = {name: len(records) for name, records in entry.run.split().lists.items()}
    except RunError:
        counts = {}
    return {
        "name": "/".join(entry.run.path.parts[-3:]),
        "auroc": content.get("metrics", {}).get("image_auroc"),
        "interval": content.get("metrics", {}).get("image_auroc_ci"),
        "config": yaml.safe_dump(_without_machine(config), sort_keys=False, allow_unicode=True),
        "split": ", ".join(f"{name} {count}" for name, count in counts.items()),
        "split_sha256": content.get("split_sha256"),
        "versions": ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items()),
        "git_sha": content.get("git_sha"),
        "tags": ", ".join(content.get("tags", ())),
    }


def _without_machine(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the folders of whoever made it: a report is handed on."""
    shown = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    shown.pop("runs_dir", None)
    for part, name in (("dataset", "root"), ("dataset", "manifest"), ("model", "autoencoder")):
        shown.get(part, {}).pop(name, None)
    return shown
