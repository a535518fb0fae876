"""What a run's JSON files may hold: looked at before anything is made of one that is damaged, or a stranger's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_STATUSES = ("running", "failed", "finished")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _named(check: Check, *needed: str) -> Check:
    """A mapping of such values, which has these names among others."""
    return lambda value: isinstance(value, Mapping) and {*needed} <= {*value} and all(map(check, value.values()))


def _listed(check: Check, length: int | None = None) -> Check:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(check, value))


_number = _or_none(_is_number)
_interval = _or_none(_listed(_number, 2))

# what a threshold is asked for by
_WAYS: tuple[set[str], ...] = ({"false_alarms"}, {"miss_cost", "false_alarm_cost", "defect_rate"})

_PARTS: dict[str, Check] = {
    "reasons": _named(_is_text),
    "seconds": _named(_is_number),
    "versions": _named(_is_text),
    "tags": _listed(_is_text),
    "seed": _is_number,
    **dict.fromkeys(("cause", "config_hash", "split_sha256", "data_sha256", "checkpoint"), _is_text),
}
_METRICS: dict[str, Check] = {  # all others are numbers, or null with a reason
    "image_score": _is_text,
    "pixel_threshold_rule": _is_text,
    "image_auroc_ci": _or_none(_listed(_is_number, 2)),
    "threshold_interval": _interval,
    **dict.fromkeys(
        ("image_counts", "val_image_counts", "tune_image_counts"), _named(_is_number, "normal", "defective")
    ),
    "per_defect": _named(_named(_number, "image_auroc", "count")),
    "score_quantiles": _or_none(_named(_is_number)),
    "pixel_recall_by_area": _or_none(
        _named(lambda row: _named(_number, "count", "found", "pixel_recall")(row) and _of_regions(row))
    ),
}
_THRESHOLD: dict[str, Check] = {
    "threshold": _is_number,
    "asked": lambda asked: _named(_is_number)(asked) and any(names <= {*asked} for names in _WAYS),
    "warnings": _listed(_is_text),
    "test": _named(_is_number),
    "score": _is_text,
    "defects_from": _is_text,
    **dict.fromkeys(("normals", "normal_parts", "defects", "defect_parts", "false_alarms"), _is_number),
    **dict.fromkeys(("misses", "cost"), _number),
    **dict.fromkeys(("interval", "false_alarms_interval", "misses_interval", "cost_interval"), _interval),
}
_EXPECTED = (
    *("interval", "false_alarms", "false_alarms_interval", "normals", "normal_parts", "misses", "test", "warnings"),
    "score",
)
_OF_MISSES = ("defects_from", "defects", "defect_parts", "cost", "cost_interval")


def _of_regions(row: Mapping[str, Any]) -> bool:
    """Whether a row of regions says how much of them was marked, if there are any."""
    return None not in (row["count"], row["found"]) and not (row["count"] and row["pixel_recall"] is None)


def wrong_in_metrics(content: Any) -> str | None:
    """What keeps the content of a metrics.json from being that of a run; None if nothing does."""
    if not isinstance(content, dict) or content.get("status") not in _STATUSES:
        return f"its status is none of {', '.join(_STATUSES)}"
    metrics = content.get("metrics", None if content["status"] == "finished" else {})
    if not isinstance(metrics, dict):
        return "metrics is no mapping"
    for name, value in metrics.items():
        own = name.removeprefix("val_").removeprefix("tune_").removeprefix("train_")
        if not _METRICS.get(own, _number)(value):
            return f"metrics.{name} is {_short(value)}"
    return _first_wrong(content, _PARTS)


def wrong_in_threshold(content: Any) -> str | None:
    """The same of a threshold.json."""
    if not isinstance(content, dict) or "threshold" not in content:
        return "it has no threshold"
    if "asked" in content:
        needed = _EXPECTED if content.get("misses") is None else (*_EXPECTED, *_OF_MISSES)
        if missing := [name for name in needed if name not in content]:
            return f"it has no {missing[0]}"
        if content["misses"] is not None and content["cost"] is None:
            return "it has misses without their cost"
    return _first_wrong(content, _THRESHOLD)


def _first_wrong(content: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    wrong = next((name for name, check in checks.items() if name in content and not check(content[name])), None)
    return None if wrong is None else f"{wrong} is {_short(content[wrong])}"


def _short(value: Any) -> str:
    text = type(value).__name__ if isinstance(value, int) and abs(value) >= 2**63 else repr(value)
    return text if len(text) < 40 else f"{text[:39]}…"
