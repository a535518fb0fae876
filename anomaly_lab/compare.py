"""`anomaly-lab compare RUN_A RUN_B`: what differs between two runs, and what that did to their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.arguments import option_of, own_options, run_dirs
from anomaly_lab.errors import ConfigError, RunError
from anomaly_lab.files import csv_text, write_text
from anomaly_lab.metrics.image import bootstrap_aurocs, missing_class
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.metrics.statistics import LEVEL
from anomaly_lab.reporting.comparison import SIDES, Comparison, Paired, comparison
from anomaly_lab.runs import Run, flat_options

_RESAMPLES = 2000
_LISTS = ("train_normal", "unlabelled", "labelled", "val", "tune", "test")


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab compare RUN_A RUN_B [output=FILE.csv]`."""
    from rich.console import Console

    runs = run_dirs(arguments)
    if unknown := sorted({option_of(text) for text in arguments if "=" in text} - {"run", "output"}):
        raise ConfigError(f"compare has no option {unknown[0]}: it takes two run directories, and output=FILE.csv.")
    if len(runs) != 2:
        raise ConfigError("compare takes two run directories, and output=FILE.csv for all images: compare RUN_A RUN_B.")
    a, b = (Run(Path(path)) for path in runs)
    found = compare(a, b)
    Console().print(comparison(found))
    if output := own_options(arguments, ["output"]).get("output"):
        write(found, Path(output))
    return 0


def compare(a: Run, b: Run) -> Comparison:
    """Two runs side by side.

    Raises:
        RunError: if one is no run directory, or not finished, or they share no test image.
    """
    for run in (a, b):
        run.check_finished()
    contents = [run.read() for run in (a, b)]
    config = _differences(*(flat_options(run.config()) for run in (a, b)))
    versions = _differences(*(flat_options({"git_sha": c.get("git_sha"), **c.get("versions", {})}) for c in contents))
    splits, files = ({content.get(f"{name}_sha256") for content in contents} for name in ("split", "data"))
    other_files = len(splits) == 1 and len(files) == 2
    return Comparison((a.path, b.path), config, versions, _split(a, b), other_files, _scores(a, b))


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> what each has, None where it has nothing."""
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _split(a: Run, b: Run) -> dict[str, tuple[int, int, int]]:
    """List -> how many images both have, and how many only one; lists that are the same are left out."""
    lists = [{name: {r.path for r in records} for name, records in run.split().lists.items()} for run in (a, b)]
    found = {}
    for name in _LISTS:
        here, there = (one.get(name, set()) for one in lists)
        if here != there:
            found[name] = (len(here & there), len(here - there), len(there - here))
    return found


def _scores(a: Run, b: Run) -> Paired:
    """The primary scores of the test images that both have, with the side of the threshold to deploy each is on."""
    tables = [ScoreTable.from_csv(run.scores_file) for run in (a, b)]
    for run, table in zip((a, b), tables, strict=True):
        if not len(table):
            raise RunError(f"{run.scores_file} has no row: anomaly-lab evaluate {run.path} writes it anew.")
    places = [{path: row for row, path in enumerate(table.path)} for table in tables]
    shared = [path for path in tables[0].path if path in places[1]]
    if not shared:
        raise RunError(f"{a.path} and {b.path} were tested on no image in common.")
    rows = [np.array([place[path] for path in shared]) for place in places]
    label = tables[0].label[rows[0]]
    if (label != tables[1].label[rows[1]]).any():
        raise RunError(f"{a.path} and {b.path} label the same images differently: they are of two datasets.")
    scores = [table.primary_scores[row] for table, row in zip(tables, rows, strict=True)]
    thresholds = [run.threshold(table.primary) for run, table in zip((a, b), tables, strict=True)]
    aurocs = interval = None
    if missing_class(label) is None:
        from sklearn.metrics import roc_auc_score

        aurocs = tuple(float(roc_auc_score(label, score)) for score in scores)
        groups = [tables[0].group[row] or tables[0].path[row] for row in rows[0]]
        # the same seed draws the same images for both
        drawn = [bootstrap_aurocs(label, score, groups, _RESAMPLES, seed=0) for score in scores]
        ends = np.quantile(drawn[1] - drawn[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = (float(ends[0]), float(ends[1]))
    names = tuple(table.primary for table in tables)
    defect = [tables[0].defect[row] for row in rows[0]]
    return Paired(shared, label, defect, scores, names, thresholds, aurocs, interval, _sides(label, scores, thresholds))


def _sides(
    label: npt.NDArray[Any], scores: Sequence[npt.NDArray[Any]], thresholds: Sequence[float | None]
) -> dict[str, list[int]] | None:
    """Rows of the images that one run calls defective and the other does not, by what that means; the images whose
    ranks moved most come first."""
    if any(threshold is None for threshold in thresholds):
        return None
    first, second = (score > threshold for score, threshold in zip(scores, thresholds, strict=True))
    ranks = [np.argsort(np.argsort(score)) / len(score) for score in scores]
    order = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable")
    cases = {(1, False): "found", (1, True): "missed", (0, True): "cleared", (0, False): "alarmed"}
    found: dict[str, list[int]] = {name: [] for name in SIDES}
    for row in order.tolist():
        if first[row] != second[row]:
            found[cases[int(label[row]), bool(first[row])]].append(row)
    return found


def write(found: Comparison, path: Path) -> None:
    """Write one row for each shared test image: path, label, defect, both scores, and which side it changed to."""
    pairs = found.scores
    sides = {row: name for name, rows in (pairs.sides or {}).items() for row in rows}
    rows = []
    for row, name in enumerate(pairs.paths):
        a, b = (f"{score[row]:.9g}" for score in pairs.scores)
        about = {"path": name, "label": int(pairs.label[row]), "defect": pairs.defect[row]}
        rows.append({**about, "score_a": a, "score_b": b, "changed": sides.get(row, "")})
    write_text(path, csv_text(rows))
