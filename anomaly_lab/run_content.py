"""What metrics.json may hold: looked at before anything is made of a file that is damaged, or a stranger's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_STATUSES = ("running", "failed", "finished")
_PARTS = {"metrics": dict, "reasons": dict, "seconds": dict, "versions": dict, "tags": list}
_TEXTS = ("cause", "config_hash", "split_sha256", "data_sha256", "checkpoint")
_WORDS = ("image_score", "pixel_threshold_rule")  # metrics that are words
_BY_NAME = ("image_counts", "per_defect", "score_quantiles", "pixel_recall_by_area")  # and those of several values


def what_is_wrong(content: Any) -> str | None:
    """What keeps the content of a metrics.json from being that of a run; None if nothing does."""
    if not isinstance(content, dict) or content.get("status") not in _STATUSES:
        return f"its status is none of {', '.join(_STATUSES)}"
    for name, kind in _PARTS.items():
        is_needed = content["status"] == "finished" and name == "metrics"
        if not isinstance(content.get(name, None if is_needed else kind()), kind):
            return f"{name} is no {'list' if kind is list else 'mapping'}"
    for name in _TEXTS:
        if not isinstance(content.get(name, ""), str):
            return f"{name} is no text"
    if not all(isinstance(tag, str) for tag in content.get("tags", ())):
        return "a tag is no text"
    values = {part: content.get(part, {}) for part in ("seconds", "reasons", "versions")}
    for name, value in values["seconds"].items():
        if not _is_number(value):
            return f"seconds.{name} is no number"
    for part in ("reasons", "versions"):
        for name, value in values[part].items():
            if not isinstance(value, str):
                return f"{part}.{name} is no text"
    for name, value in content.get("metrics", {}).items():
        if not _is_metric(name, value):
            return f"metrics.{name} is {str(value)[:30]!r}, and no such value"
    return None


def _is_metric(name: str, value: Any) -> bool:
    own = name.removeprefix("val_").removeprefix("tune_")
    if own in _WORDS:
        return isinstance(value, str)
    if own == "pixel_recall_by_area" and value is None:
        return True  # of images without a mask
    if own in _BY_NAME:
        return isinstance(value, Mapping) and all(
            all(_is_value(*item) for item in part.items()) if isinstance(part, Mapping) else _is_value(key, part)
            for key, part in value.items()
        )
    return _is_value(name, value)


def _is_value(name: str, value: Any) -> bool:
    """Whether it is a number, an interval where the name says so, or nothing."""
    if value is None:
        return True
    if name.endswith(("_ci", "_interval")):
        may_be_open = name.endswith("_interval")
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(_is_number(end) or (end is None and may_be_open) for end in value)
        )
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
