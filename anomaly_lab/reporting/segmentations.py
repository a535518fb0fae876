"""The figure of segmentations, in the form of P2's Figure 6: the best, the median and the worst test images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.style import DARK, outline, paste, plain, set_heading, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, GAP = 1.35, 0.07  # of the pictures, in inches
LEFT, TOP, HEADING = 1.75, 0.75, 0.32


def defect_ious(table: ScoreTable) -> npt.NDArray[np.float64]:
    """IoU of the defect class of each image (N,); NaN where the table has no counts or the truth has no defect."""
    if not table.counts:
        return np.full(len(table), np.nan)
    tp, fp, fn = (table.counts[name] for name in ("TP", "FP", "FN"))
    with np.errstate(invalid="ignore"):
        return np.where(tp + fn > 0, tp / (tp + fp + fn), np.nan)


def best_median_worst(table: ScoreTable, each: int = 3) -> dict[str, list[int]]:
    """Rows of the images whose defects are segmented best, half as well as the others, and worst; none stands twice."""
    ious = defect_ious(table)
    ranked = [int(row) for row in np.argsort(-ious, kind="stable") if not np.isnan(ious[row])]
    each = min(each, len(ranked) // 3) or min(1, len(ranked))
    middle = (len(ranked) - each) // 2
    found = {"best": ranked[:each], "median": ranked[middle : middle + each], "worst": ranked[len(ranked) - each :]}
    taken: set[int] = set()
    for name, rows in found.items():
        found[name] = [row for row in rows if row not in taken]
        taken.update(rows)
    return found


def segmentation_figure(
    gallery: Mapping[str, npt.NDArray[Any]], table: ScoreTable, metrics: Mapping[str, Any], title: str = ""
) -> Figure | None:
    """Input, reconstruction, difference, truth and anomaly map of the best, the median and the worst images.

    `gallery` is what predictions/gallery.npz holds; what it lacks has no column. The map has the line of the
    metric `pixel_threshold`. None where no image of the gallery has a true defect and pixel counts.
    """
    position = {int(index): place for place, index in enumerate(gallery["index"])}
    blocks = {
        name: [(row, position[int(table.index[row])]) for row in rows if int(table.index[row]) in position]
        for name, rows in best_median_worst(table).items()
    }
    blocks = {name: rows for name, rows in blocks.items() if rows}
    if not blocks or "anomaly_map" not in gallery:
        return None
    ious, threshold = defect_ious(table), metrics.get("pixel_threshold")
    columns = ["input", *(["reconstruction", "difference"] if "reconstruction" in gallery else []), "truth", "map"]
    shown = [place for rows in blocks.values() for _, place in rows]
    scale = _scale(gallery["anomaly_map"][shown], threshold)
    note = f"map from {scale[0]:.3g} (black) to {scale[1]:.3g}"
    if "reconstruction" in gallery:
        difference, white = _difference(gallery, shown)
        gallery = {**gallery, "difference": difference}
        note += f" · difference white from {white:.2g}"
    rows_in_all = sum(map(len, blocks.values()))
    tall = SIDE * float(np.clip(gallery["image"].shape[1] / gallery["image"].shape[2], 0.5, 2.5))  # room for the text
    height = TOP + len(blocks) * HEADING + rows_in_all * (tall + GAP) + 0.53
    figure, page = sheet(LEFT + len(columns) * (SIDE + GAP) + 0.1, height)
    set_heading(figure, "Segmentations", title)
    for number, name in enumerate(columns):
        page.text(LEFT + number * (SIDE + GAP) + SIDE / 2, TOP - 0.08, name, ha="center", fontsize=10, color=DARK)
    top = TOP
    for name, rows in blocks.items():
        page.text(0.12, top + HEADING - 0.1, f"{name} of {int((~np.isnan(ious)).sum())}", fontsize=11, weight="bold")
        top += HEADING
        for row, place in rows:
            file = plain(PurePath(table.path[row]).name, 24, keep_end=True)
            text = f"{plain(table.defect[row], 22)}\n{file}\nIoU of the defect {ious[row]:.3f}"
            page.text(0.12, top + 0.1, text, va="top", fontsize=8, linespacing=1.4)
            for number, column in enumerate(columns):
                box = (LEFT + number * (SIDE + GAP), top, SIDE, tall)
                picture, look = _picture(gallery, place, column, scale)
                paste(page, picture, box, **look)
                if column == "map" and threshold is not None:
                    outline(page, gallery["anomaly_map"][place] >= threshold, box)
            top += tall + GAP
    if threshold is not None:
        note += f" · yellow line: threshold {threshold:.4g}"
    for text, above in (
        (f"{note} · grey in the truth: not scored", 0.12),
        ("IoU of each image; metrics.json pools the pixels of all, normal images too", 0.3),
    ):
        page.text(0.12, height - above, text, fontsize=9, color=DARK)
    return figure


def _picture(
    gallery: Mapping[str, npt.NDArray[Any]], place: int, column: str, scale: tuple[float, float]
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    if column == "truth":
        mask = gallery["mask"][place]
        return np.where(mask == 1, 255, np.where(mask == 0, 0, 110)), {"cmap": "gray", "vmin": 0, "vmax": 255}
    if column == "map":
        return gallery["anomaly_map"][place], {"cmap": "magma", "vmin": scale[0], "vmax": scale[1]}
    return gallery["image" if column == "input" else column][place], {}


def _difference(gallery: Mapping[str, npt.NDArray[Any]], shown: list[int]) -> tuple[npt.NDArray[np.uint8], float]:
    """P2 Eq. 3 with its three channels, (N, H, W, 3), brightened; and the difference of [0, 1] that is white in it."""
    image, made = (gallery[name].astype(np.int16) for name in ("image", "reconstruction"))
    difference = np.abs(image - made)
    white = max(float(np.percentile(difference[shown], 99.8)), 1.0)
    return np.minimum(difference * (255 / white), 255).astype(np.uint8), white / 255


def _scale(maps: npt.NDArray[Any], threshold: float | None) -> tuple[float, float]:
    """The ends of the colours; the threshold is between them, so a map that stays far below it is dark."""
    low, high = float(maps.min()), float(np.percentile(maps, 99.8))
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    return low, high if high > low else low + 1.0
