"""`anomaly-lab threshold RUN_DIR`: choose the threshold that a run is used with, on held-out images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lab.arguments import own_options, require_options, run_dirs
from anomaly_lab.errors import ConfigError, RunError, require
from anomaly_lab.files import write_json
from anomaly_lab.metrics.image import confusion_rates
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.metrics.thresholds import by_cost, by_false_alarms
from anomaly_lab.reporting.thresholds import threshold_table
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_NUMBERS = {  # option -> what it may be, both ends excluded
    "false_alarms": (0.0, 1.0),
    "miss_cost": (0.0, np.inf),
    "false_alarm_cost": (0.0, np.inf),
    "defect_rate": (0.0, 1.0),
}
_COSTS = ("miss_cost", "false_alarm_cost", "defect_rate")
_WORTH = 0.95  # a cost above this share of that without any scores is no gain
_OPTIONS = ("run", "reset", "score", *_NUMBERS)


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab threshold RUN_DIR [OPTIONS]`: choose, and show what is in use."""
    from rich.console import Console

    require_options("threshold", [text for text in arguments if "=" in text], _OPTIONS)
    runs = run_dirs(arguments)
    if len(runs) != 1:
        raise ConfigError("threshold takes one run directory: threshold RUN_DIR false_alarms=0.01.")
    run, asked = Run(Path(runs[0])), own_options(arguments, _OPTIONS)
    run.check_finished()
    reset = asked.pop("reset", "false")
    require("reset", reset, ("true", "false"))
    if reset == "true":
        run.threshold_file.unlink(missing_ok=True)
    asked.pop("run", None)
    if asked:
        before = run.threshold()
        score = asked.pop("score", None)
        write_json(run.threshold_file, choose(run, _numbers(asked), score))
        told = "none" if before is None else f"{before:.4g}"
        log.info("Kept in %s, for predict, export and report; before: %s.", run.threshold_file, told)
    Console().print(threshold_table(run.read(), run.chosen_threshold(), title="/".join(run.path.parts[-3:])))
    return 0


def choose(run: Run, asked: Mapping[str, float], score: str | None = None) -> dict[str, Any]:
    """What threshold.json holds, for `false_alarms`, or for `miss_cost`, `false_alarm_cost` and `defect_rate`.

    It is of the score that counts, or of another of the method's, which the run is then used with. Normal images are
    those of val, and of tune where there is one; defective ones those of tune, else val's painted copies.

    Raises:
        RunError: if the run has no such images.
        ConfigError: if the method has no such score.
    """
    tables = {
        name: ScoreTable.from_csv(path)
        for name in ("val", "tune")
        if (path := run.path / f"scores-{name}.csv").exists()
    }
    test = ScoreTable.from_csv(run.scores_file)
    score = score or test.primary
    require("score", score, test.scores)
    normals, normal_parts = _of_label(list(tables.values()), 0, score)
    if not len(normals):
        raise RunError(
            f"{run.path} has no held-out normal images to choose a threshold on: train with dataset.val_count=50, for "
            "example."
        )
    about: dict[str, Any] = {"normals": len(normals), "normal_parts": len(set(normal_parts)), "asked": dict(asked)}
    warnings = []
    if "false_alarms" in asked:
        found = by_false_alarms(normals, normal_parts, asked["false_alarms"])
        needed = int(np.ceil(1 / asked["false_alarms"] - 1 - 1e-9))
        if (count := len(set(normal_parts))) < needed:
            what = "images" if count == len(normals) else "parts"
            warnings.append(
                f"{count} held-out normal {what} cannot promise {asked['false_alarms']:g}: {needed} are needed "
                "(dataset.val_count)"
            )
    else:
        source = "tune" if "tune" in tables and tables["tune"].label.any() else "val"
        defects, defect_parts = _of_label([tables[source]] if source in tables else [], 1, score)
        if not len(defects):
            raise RunError(
                f"{run.path} has no defective images apart from the test to weigh misses by: dataset.tuning=0.5 sets "
                "half of them aside."
            )
        about |= {"defects": len(defects), "defect_parts": len(set(defect_parts)), "defects_from": source}
        if source == "val":
            warnings.append("misses are of painted defects; dataset.tuning=0.5 sets real ones aside")
        found = by_cost(
            normals,
            defects,
            (normal_parts, defect_parts),
            miss=asked["miss_cost"],
            false_alarm=asked["false_alarm_cost"],
            defect_rate=asked["defect_rate"],
        )
        every, none = (1 - asked["defect_rate"]) * asked["false_alarm_cost"], asked["defect_rate"] * asked["miss_cost"]
        name, blind = min((every, "every"), (none, "no"))[::-1]
        if found.cost is not None and found.cost > _WORTH * blind:
            warnings.append(f"the scores are hardly worth it: calling {name} image defective costs {blind:.3g}")
    values = asdict(found)
    return {
        "threshold": values.pop("value"),
        **values,
        **about,
        "warnings": warnings,
        "score": score,
        "test": _on_test(test, found.value, score),
    }


def _on_test(test: ScoreTable, threshold: float, score: str) -> dict[str, float]:
    """The rates on the test images, those that its classes allow."""
    rates = confusion_rates(test.label, test.scores[score] > threshold)
    has_normal, has_defective = (bool((test.label == label).any()) for label in (0, 1))
    needs = {"sensitivity": has_defective, "specificity": has_normal}
    return {name: value for name, value in rates.items() if needs.get(name, has_normal and has_defective)}


def _of_label(tables: Sequence[ScoreTable], label: int, score: str) -> tuple[Any, list[str]]:
    """Scores and parts of the normal or of the defective images of several lists."""
    scores = [table.scores[score][table.label == label] for table in tables]
    parts = [
        group or path
        for table in tables
        for group, path, one in zip(table.group, table.path, table.label, strict=True)
        if one == label
    ]
    return np.concatenate([np.empty(0), *scores]), parts


def _numbers(asked: Mapping[str, str]) -> dict[str, float]:
    """The options as numbers, of one way to choose."""
    numbers = {}
    for name, text in asked.items():
        low, high = _NUMBERS[name]
        try:
            numbers[name] = float(text)
        except ValueError:
            numbers[name] = np.nan
        if not low < numbers[name] < high:
            raise ConfigError(f"{name}={text} has to be a number above 0{f' and below {high:g}' if high < 2 else ''}.")
    if "false_alarms" in numbers and len(numbers) > 1:
        raise ConfigError("A threshold is chosen by false_alarms, or by costs, not by both.")
    if not numbers:
        raise ConfigError("A score is chosen together with its threshold: score=NAME false_alarms=0.01, for example.")
    if "false_alarms" not in numbers and (missing := [name for name in _COSTS if name not in numbers]):
        raise ConfigError(
            f"{missing[0]} is missing: by costs, a threshold needs miss_cost, false_alarm_cost and defect_rate, the "
            "share of defective pictures where it is used."
        )
    return numbers
