"""The threshold a run is used with, and what to expect of it, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def threshold_table(run: Mapping[str, Any], chosen: Mapping[str, Any] | None, title: str) -> RenderableType:
    """What is in use: `chosen` is what threshold.json holds, None where the run's own threshold counts.

    `run` is what metrics.json holds.
    """
    metrics = run["metrics"]
    if chosen is None or "asked" not in chosen:  # written by hand, it may hold the value alone
        value = metrics.get("threshold") if chosen is None else chosen["threshold"]
        own = "the run's own" if chosen is None else "that of threshold.json"
        return Text(
            f"{title}: the threshold is {value:.4g}, {own}."
            if value is not None
            else f"{title}: no threshold, {run.get('reasons', {}).get('threshold', 'the run has none')}."
        )
    table = Table(title=f"{title}, score {chosen['score']}", title_justify="left", show_header=False, box=None)
    for row in threshold_rows(chosen):
        table.add_row(*row)
    rates = ", ".join(f"{name} {value:.3f}" for name, value in chosen["test"].items())
    parts: list[RenderableType] = [table, Text(f"On the test images, which chose nothing: {rates}.")]
    parts += [Text(f"! {warning}", style="yellow") for warning in chosen["warnings"]]
    return Group(*parts)


def threshold_rows(chosen: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What to expect of a chosen threshold: what, how much, its 95% interval, and what that is of."""
    asked = chosen["asked"]
    if "false_alarms" in asked:
        rule = f"for at most {asked['false_alarms']:.3g} false alarms"
    else:
        miss, false_alarm, rate = (f"{asked[name]:g}" for name in ("miss_cost", "false_alarm_cost", "defect_rate"))
        rule = f"of least cost: a miss {miss}, a false alarm {false_alarm}, of {rate} defective images"
    rows = [
        ("threshold", f"{chosen['threshold']:.4g}", _interval(chosen["interval"], "{:.4g}"), rule),
        (
            "false alarms",
            f"{chosen['false_alarms']:.1%}",
            _interval(chosen["false_alarms_interval"], "{:.1%}"),
            f"{chosen['normals']} held-out normal images of {chosen['normal_parts']} parts",
        ),
    ]
    if chosen["misses"] is not None:
        kind = "painted" if chosen["defects_from"] == "val" else "defective"
        where = f"{chosen['defects']} {kind} images of {chosen['defect_parts']} parts, set aside"
        rows.append(("misses", f"{chosen['misses']:.1%}", _interval(chosen.get("misses_interval"), "{:.1%}"), where))
        rows.append(("cost of an image", f"{chosen['cost']:.3g}", _interval(chosen["cost_interval"], "{:.3g}"), ""))
    return rows


def _interval(ends: Sequence[float | None] | None, style: str) -> str:
    if ends is None:
        return ""
    low, high = ("open" if end is None else style.format(end) for end in ends)
    return f"[{low}, {high}]"
