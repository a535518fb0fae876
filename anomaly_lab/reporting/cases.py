"""The figure of best and worst cases: which images a run ranks at the ends, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import RunError
from anomaly_lab.metrics.image import is_segmenter
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.style import DARK, Box, outline, paste, plain, set_heading, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]

SIDE, GAP = 1.45, 0.07  # of the pictures
LEFT, TOP, ABOVE = 0.45, 0.4, 1.04  # of all pictures; above the first line; above a line's pictures
FRAME = "#D55E00"
CASES = (  # label, from the highest score down, heading
    (1, True, "Defects with the highest scores"),
    (1, False, "Defects with the lowest scores"),
    (0, True, "Normals with the highest scores"),
    (0, False, "Normals with the lowest scores"),
)


def cases_figure(
    gallery: Mapping[str, npt.NDArray[Any]],
    table: ScoreTable,
    metrics: Mapping[str, Any],
    title: str = "",
    per_group: int = 4,
) -> Figure:
    """Best and worst cases: the highest and lowest scores among defective and among normal images of the gallery.

    `gallery` is what predictions/gallery.npz holds: `index` (N,), `image` (N, H, W, 3) uint8, and where they exist
    `reconstruction` (N, H, W, 3) uint8, `anomaly_map` (N, H, W), `mask` (N, H, W). A column is one image: the input
    with its mask's outline, and below it the reconstruction and their mean absolute difference over channels (in
    [0, 1]), or, where there is none or the method scores by it, the anomaly map. All of a figure share one colour
    scale.

    Raises:
        RunError: if the gallery holds an image that the table does not.
    """
    in_table = gallery_rows(gallery["index"], table)
    scores, threshold = table.primary_scores, metrics.get("threshold")
    chosen = _choose_cases(table.label[in_table], scores[in_table], per_group)
    positions = sorted({position for line in chosen for _, column in line for position in column})
    below = "anomaly map" if is_segmenter(metrics) or "reconstruction" not in gallery else "difference"
    maps, (low, high) = _maps_below(gallery, positions, below)
    if maps and below == "anomaly map":  # one that stays far below its threshold is dark
        high = max(high, metrics.get("pixel_threshold") or high)
    rows: dict[str, Any] = {"input": gallery["image"]}
    if "reconstruction" in gallery:
        rows["reconstruction"] = gallery["reconstruction"]
    if maps:
        rows[below] = maps

    tall = SIDE * float(np.clip(gallery["image"].shape[1] / gallery["image"].shape[2], 0.4, 2.5))
    block, line_height = per_group * (SIDE + GAP) + 0.3, ABOVE + len(rows) * (tall + GAP)
    width = LEFT + block * max(len(line) for line in chosen) + (0.95 if maps else 0)
    height = TOP + line_height * len(chosen) + 0.4
    figure, page = sheet(width, height)
    set_heading(figure, "Best and worst cases", title)
    for number, line in enumerate(chosen):
        top = TOP + number * line_height
        tops = {name: top + ABOVE + rank * (tall + GAP) for rank, name in enumerate(rows)}
        for name, y in tops.items():
            page.text(LEFT - 0.1, y + tall / 2, name, rotation=90, ha="right", va="center", fontsize=9, color=DARK)
        for which, (heading, column) in enumerate(line):
            start = LEFT + which * block
            page.text(start, top + 0.42, heading, fontsize=11, fontweight="bold")
            for place, position in enumerate(column):
                x, row = start + place * (SIDE + GAP), in_table[position]
                file = plain(PurePath(table.path[row]).name, 21, keep_end=True)
                rank = f"{scores[row]:.4g} · above {(scores < scores[row]).mean():.1%}"
                page.text(x, top + 0.98, f"{plain(table.defect[row], 20)}\n{file}\n{rank}", fontsize=8)
                for name, y in tops.items():
                    paste(page, rows[name][position], (x, y, SIDE, tall), cmap="magma", vmin=low, vmax=high)
                box = (x, tops["input"], SIDE, tall)
                if "mask" in gallery:
                    outline(page, gallery["mask"][position] == 1, box, grow=True)
                if threshold is not None and scores[row] > threshold:
                    _frame(page, box)
    if maps:
        length = min(3.0, line_height - ABOVE)
        place_of_bar = ((width - 0.9) / width, 1 - (TOP + ABOVE + length) / height, 0.15 / width, length / height)
        label = "mean absolute difference" if below == "difference" else below
        _colour_bar(figure, place_of_bar, (low, high), label)
    notes = [f"numbers: score {plain(table.primary)}, and above which share of the test images it is"]
    if "mask" in gallery and (gallery["mask"][positions] == 1).any():
        notes.append("yellow line: true defect")
    if threshold is not None:
        notes.append(f"thick frame: above the threshold {threshold:.4g}")
    page.text(LEFT, height - 0.15, " · ".join(notes), fontsize=9, color=DARK)
    return figure


def gallery_rows(index: npt.NDArray[np.int64], table: ScoreTable) -> npt.NDArray[np.int64]:
    """The row in the table of each image of a gallery.

    Raises:
        RunError: if the table lacks one.
    """
    row_of = {int(number): row for row, number in enumerate(table.index)}
    if strangers := [int(number) for number in index if int(number) not in row_of]:
        raise RunError(
            f"The gallery's image {strangers[0]} is not in scores.csv: `anomaly-lab evaluate` makes both anew."
        )
    return np.array([row_of[int(number)] for number in index], np.int64)


def _choose_cases(labels: npt.NDArray[Any], scores: Values, per_group: int) -> list[list[tuple[str, list[int]]]]:
    """Positions for each heading, in one line for the defective and one for the normal; no image stands twice."""
    lines = []
    for label in (1, 0):
        members = [int(i) for i in np.argsort(scores, kind="stable") if labels[i] == label]
        most, least = min(per_group, -(-len(members) // 2)), min(per_group, len(members) // 2)
        ends = {True: members[::-1][:most], False: members[:least]}
        line = [(text, ends[top]) for of, top, text in CASES if of == label and ends[top]]
        if line:
            lines.append(line)
    return lines


def _maps_below(
    gallery: Mapping[str, npt.NDArray[Any]], positions: Sequence[int], below: str
) -> tuple[dict[int, Values], tuple[float, float]]:
    """What is shown below each chosen input, in [0, 1] if it is a difference, and the ends of the common scale."""
    if below == "difference":
        pairs = {i: (gallery["image"][i] / 255.0, gallery["reconstruction"][i] / 255.0) for i in positions}
        maps = {i: np.abs(image - made).mean(-1) for i, (image, made) in pairs.items()}
    elif "anomaly_map" in gallery:
        maps = {i: gallery["anomaly_map"][i].astype(np.float64) for i in positions}
    else:
        return {}, (0.0, 1.0)
    values = np.stack(list(maps.values()))
    low = 0.0 if below == "difference" else float(values.min())
    high = float(np.percentile(values, 99.5))
    return maps, (low, high if high > low else low + 1.0)


def _frame(page: Axes, box: Box) -> None:
    from matplotlib.patches import Rectangle

    page.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor=FRAME, linewidth=3))


def _colour_bar(figure: Figure, place: Box, scale: tuple[float, float], label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(*scale), "magma"), cax=figure.add_axes(place), extend="max")
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)
