"""The table of the terminal: one run's result, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MISSING = "—"
CHANCE = 0.5
TRUST = "threshold_trust"  # among the reasons: a warning about a value that is there
FEW_IMAGES = 10  # of a class in the test, under which its numbers say little, whatever their interval
NAMES_LISTED = 3  # metrics named beside a reason that they share
RATES = {"precision": "precision", "sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1"}
THRESHOLDS = {  # the suffix of the metric names -> what the column is called, and what it takes
    "": "val_quantile\n(to deploy)",
    "_defect_ratio": "defect_ratio\n(needs labels)",
    "_oracle": "oracle\n(best F1)",
}
PIXELS = {  # the metric -> what its row is called
    "pixel_iou_defect": "IoU of defects",
    "pixel_miou": "IoU, mean of defect and background",
    "train_pixel_miou": "  the same on the labelled images",
    "floor_empty_miou": "  floor: marking nothing",
    "pixel_mae": "wrong pixels an image",
    "pixel_auroc": "AUROC",
    "pixel_aupro": "AUPRO, to FPR 0.3",
    "pixel_threshold": "threshold of the map",
}
OTHER_SETS = {"val_image_auroc": "AUROC on val (painted)", "tune_image_auroc": "AUROC on tune"}
FLOORS = {"floor_knn_auroc": "thumbnail", "floor_pca_auroc": "PCA"}
FLOOR_TEXTS = {"floor_knn_auroc": "nearest thumbnail", "floor_pca_auroc": "PCA residual"}


def number(value: float | None) -> str:
    """A value with three decimals; a dash for one that could not be computed."""
    return MISSING if value is None else f"{value:.3f}"


def interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """A value with its confidence interval, such as `0.642 [0.59, 0.69]`."""
    return " ".join(parts(value, bounds))


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits: `42 s`, `35 min`, `2.3 h`."""
    if seconds is None:
        return MISSING
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def auroc_remark(value: float | None, metrics: Mapping[str, Any]) -> str:
    """What has to be said beside a whole test set's AUROC: below chance, and below which floors."""
    floors = [text for name, text in FLOORS.items() if is_below(value, metrics.get(name))]
    below = ["chance"] if is_below(value, CHANCE) else []
    if len(floors) == len(FLOORS):
        below.append("both floors")
    elif floors:
        below.append(f"the {floors[0]} floor")
    return f"! below {' and '.join(below)}" if below else ""


def result_table(metrics: Mapping[str, Any], reasons: Mapping[str, str], title: str = "") -> RenderableType:
    """The short result of a run: ranking quality, the three thresholds, each defect type, and what is missing why.

    `metrics` and `reasons` are those of metrics.json. A metric that is null is a dash, with its reason below; rows and
    columns of nothing but dashes are left out.
    """
    parts: list[RenderableType] = []
    if title:
        parts += [Text(title, style="bold"), Text()]
    parts += [_ranking(metrics), *_at_thresholds(metrics), *_pixels(metrics)]
    if metrics.get("per_defect"):
        parts += [Text(), _per_defect(metrics["per_defect"])]
    if trust := reasons.get(TRUST):
        parts += [Text(), Text(f"! {trust}", style="bold")]
    if missing := {name: reason for name, reason in reasons.items() if metrics.get(name) is None and name != TRUST}:
        parts += [Text(), *_reasons(missing)]
    return Group(*parts)


def _ranking(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", style="bold")
    auroc = metrics.get("image_auroc")
    score = metrics.get("image_score")
    table.add_row(
        Text(f"AUROC of {score}" if score else "AUROC", style="bold"),
        Text(interval(auroc, metrics.get("image_auroc_ci")), style="bold"),
        Text(auroc_remark(auroc, metrics)),
    )
    for name, value in metrics.items():
        if name.startswith("image_auroc_") and name != "image_auroc_ci" and value is not None:
            other = name.removeprefix("image_auroc_")
            if other != score:
                table.add_row(Text(f"  score {other}"), Text(number(value)), Text(auroc_remark(value, metrics)))
    for name, text in FLOOR_TEXTS.items():
        if metrics.get(name) is not None:
            table.add_row(Text(f"  floor: {text}"), Text(number(metrics[name])), Text())
    if counts := metrics.get("image_counts"):
        table.add_row(
            Text("tested on"), Text(f"{counts['normal']} normal, {counts['defective']} defective"), Text(_few(counts))
        )
    if metrics.get("image_ap") is not None:
        table.add_row(Text("average precision"), Text(number(metrics["image_ap"])), Text())
    for name, text in OTHER_SETS.items():
        if metrics.get(name) is not None:
            counts = metrics.get(name.replace("auroc", "counts"))
            of = f" of {counts['normal']} and {counts['defective']}" if counts else ""
            remark = _few(counts or {}) or auroc_remark(metrics[name], {})
            table.add_row(Text(text), Text(number(metrics[name]) + of), Text(remark))
    return table


def _few(counts: Mapping[str, int]) -> str:
    few = 0 < min(counts.values(), default=0) < FEW_IMAGES
    return "! few: one image more or less changes this" if few else ""


def _at_thresholds(metrics: Mapping[str, Any]) -> list[RenderableType]:
    floor = metrics.get("floor_all_f1")
    known = {
        (rate, suffix): value
        for rate in RATES
        for suffix in THRESHOLDS
        if (value := metrics.get(f"image_{rate}{suffix}")) is not None
    }
    by_normals = "threshold_normals" in metrics  # else the threshold is the method's own
    parts: list[RenderableType] = [Text()]
    if known:
        suffixes = [suffix for suffix in THRESHOLDS if any(suffix == other for _, other in known)]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("threshold", no_wrap=True)
        for suffix in suffixes:
            own = suffix == "" and not by_normals
            table.add_column("the method's\n(to deploy)" if own else THRESHOLDS[suffix], justify="right", no_wrap=True)
        for rate in [rate for rate in RATES if any(rate == other for other, _ in known)]:
            values = [known.get((rate, suffix)) for suffix in suffixes]
            marks = ["! " if rate == "f1" and is_below(value, floor) else "" for value in values]
            cells = [Text(mark + number(value)) for mark, value in zip(marks, values, strict=True)]
            table.add_row(Text(RATES[rate]), *cells)
        parts.append(table)
    if metrics.get("threshold") is not None:
        rule = "val_quantile" if by_normals else "the method"
        parts.append(Text(f"{rule} calls an image defective when its score is above {_threshold(metrics)}"))
        called = {(0.0, 1.0): "no", (1.0, 0.0): "every"}
        rates = (metrics.get("image_sensitivity"), metrics.get("image_specificity"))
        if rates in called:
            hint = "" if by_normals else ": train longer (trainer.max_epochs)"
            parts.append(Text(f"! it calls {called[rates]} test image defective{hint}", style="bold"))
    if floor is not None:
        f1 = [metrics.get(f"image_f1{suffix}") for suffix in THRESHOLDS]
        mark = "! below the floor: " if any(is_below(value, floor) for value in f1) else "floor: "
        parts.append(Text(f"{mark}calling every image defective has F1 {floor:.3f}"))
    return parts if len(parts) > 1 else []


def _pixels(metrics: Mapping[str, Any]) -> list[RenderableType]:
    """The pixel metrics at the method's threshold, and at the one that is best on the test set."""
    if all(metrics.get(name) is None for name in ("pixel_auroc", "pixel_miou", "pixel_mae")):
        return []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("pixels", no_wrap=True)
    for heading in ("threshold\n(to deploy)", "largest TPR - FPR\n(oracle)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, text in PIXELS.items():
        found, oracle = metrics.get(name), metrics.get(f"{name}_oracle")
        if found is not None or oracle is not None:
            style = "{:.0f}" if name == "pixel_mae" else "{:.4g}" if name == "pixel_threshold" else "{:.3f}"
            cells = [MISSING if value is None else style.format(value) for value in (found, oracle)]
            if name == "pixel_miou" and is_below(found, metrics.get("floor_empty_miou")):
                cells[0] = f"! {cells[0]}"
            table.add_row(text, *(cells if f"{name}_oracle" in metrics else [cells[0], ""]))
    parts: list[RenderableType] = [Text(), table]
    if areas := metrics.get("pixel_recall_by_area"):
        parts += [Text(), _by_area(areas)]
    return parts


def _by_area(areas: Mapping[str, Mapping[str, Any]]) -> Table:
    """Small defects are the ones that are missed: one row for each size that there is."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("defects by area\nin pixels as scored", no_wrap=True)
    for heading in ("how many", "with a marked\npixel", "share of\npixels marked"):
        table.add_column(heading, justify="right", no_wrap=True)
    for area, row in areas.items():
        if row["count"]:
            table.add_row(area, str(row["count"]), str(row["found"]), f"{row['pixel_recall']:.0%}")
    return table


def _per_defect(per_defect: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("defect", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("AUROC", justify="right", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, style="bold")

    def worst_first(name: str) -> tuple[bool, float, str]:
        value = per_defect[name].get("image_auroc")
        return value is None, value if value is not None else 0.0, name

    for name in sorted(per_defect, key=worst_first):
        value, count, found = (per_defect[name].get(key) for key in ("image_auroc", "count", "sensitivity"))
        cells = [MISSING if count is None else str(count), number(value), MISSING if found is None else f"{found:.0%}"]
        table.add_row(Text(printable(name)), *map(Text, cells), Text(auroc_remark(value, {})))
    return table


def _threshold(metrics: Mapping[str, Any]) -> str:
    """The threshold with the interval of its quantile, of which an end may be open."""
    text = f"{metrics['threshold']:.4g}"
    if bounds := metrics.get("threshold_interval"):
        low, high = ("no bound" if end is None else f"{end:.4g}" for end in bounds)
        text += f"\n(95% interval of that threshold: {low} to {high})"
    return text


def _reasons(reasons: Mapping[str, str]) -> list[RenderableType]:
    """Each reason once, above the metrics it stands for."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    lines: list[RenderableType] = []
    for reason, which in names.items():
        listed = ", ".join(which[:NAMES_LISTED])
        more = f" and {len(which) - NAMES_LISTED} more" if len(which) > NAMES_LISTED else ""
        lines += [Text(f"{MISSING} {reason}"), Padding(Text(f"{listed}{more}", style="dim"), (0, 0, 0, 2))]
    return lines


def parts(value: float | None, bounds: Sequence[float] | None) -> list[str]:
    """The value, and its interval if there is one."""
    if value is None or bounds is None:
        return [number(value)]
    return [number(value), f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"]


def printable(text: str) -> str:
    """A name from outside; a file name that is not UTF-8 travels as surrogates, which no terminal takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_below(value: float | None, limit: float | None) -> bool:
    """Whether both are there, and the value is the lower one."""
    return value is not None and limit is not None and value < limit
