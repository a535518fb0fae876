"""The figures of a run: `draw_all` for a run directory, and those of its ROC, its training and its data's leaks.

Each figure is a function from plain data to a matplotlib Figure; cases.py and histogram.py hold the larger ones.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import RunError
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.cases import cases_figure
from anomaly_lab.reporting.histogram import score_figure
from anomaly_lab.reporting.segmentations import segmentation_figure
from anomaly_lab.reporting.style import COLOURS, DPI, GREY, panels, paste, plain, set_heading, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]  # (H, W, 3)
Pair = tuple[Image, Image, float, str, str]  # train image, test image, correlation, train path, test path
Row = dict[str, float]

MAX_PAIRS = 8
LOG_RATIO = 10  # of the largest to the smallest loss: from here on a loss is drawn on a log axis


def draw_all(run_dir: Path, metrics: Mapping[str, Any] | None = None, title: str | None = None) -> list[Path]:
    """Draw what a run directory allows into its figures/, and say which files were written.

    roc.png needs both classes in scores.csv, cases.png a gallery, segmentations.png one with maps of defects whose
    pixels were counted, curves.png a curves.csv. `metrics` are those of
    metrics.json unless given; the title comes from the directory's place, `<dataset>/<model>/<hash8>-s<seed>`.

    Raises:
        RunError: if one of the run's files is missing or damaged.
    """
    if metrics is None:
        from anomaly_lab.runs import Run

        metrics = Run(run_dir).read().get("metrics", {})
    title = _run_title(run_dir) if title is None else title
    table = ScoreTable.from_csv(run_dir / "scores.csv")
    gallery = read_gallery(run_dir / "predictions" / "gallery.npz")
    curves = _read_curves(run_dir / "curves.csv")
    figures = {}
    if len(np.unique(table.label)) == 2:
        figures["roc"] = roc_figure(table, metrics, title)
    if len(table):
        figures["scores"] = score_figure(table, metrics, title)
    if len(gallery.get("index", ())):
        figures["cases"] = cases_figure(gallery, table, metrics, title)
        if (segmented := segmentation_figure(gallery, table, metrics, title)) is not None:
            figures["segmentations"] = segmented
    if curves:
        figures["curves"] = curves_figure(curves, title)

    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        # zlib's usual level 6 takes twice the time to save a tenth of the bytes
        figure.savefig(folder / f"{name}.png", dpi=DPI, pil_kwargs={"compress_level": 3})
    return [folder / f"{name}.png" for name in figures]


def roc_figure(table: ScoreTable, metrics: Mapping[str, Any], title: str = "") -> Figure:
    """ROC curves: the primary score bold with the deploy threshold's operating point, the other scores thin.

    `metrics` gives `threshold`, `image_auroc_ci` and `floor_knn_auroc`, each as far as it is known. The table
    needs normal and defective images.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, grid = panels(1, 1, (5.6, 5.6), (0.65, 0.25, 0.5, 0.55))
    axes = grid[0, 0]
    names = [table.primary, *(name for name in table.scores if name != table.primary)]
    for rank, name in enumerate(names):
        false_rate, true_rate, _ = roc_curve(table.label, table.scores[name])
        label = f"{plain(name)} {roc_auc_score(table.label, table.scores[name]):.3f}"
        if rank == 0 and (bounds := metrics.get("image_auroc_ci")):
            label += f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        look: dict[str, Any] = {"linewidth": 1.3, "linestyle": ("--", "-.", ":")[rank % 3]}
        if rank == 0:
            look = {"linewidth": 3, "zorder": 4}
        axes.plot(false_rate, true_rate, color=COLOURS[rank % len(COLOURS)], label=label, **look)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance 0.500")
    if (floor := metrics.get("floor_knn_auroc")) is not None:
        axes.plot([], [], linestyle="none", label=f"floor, nearest thumbnail {floor:.3f}")
    if (threshold := metrics.get("threshold")) is not None:
        flagged = table.primary_scores > threshold
        found, alarms = flagged[table.label == 1].mean(), flagged[table.label == 0].mean()
        label = f"threshold {threshold:.4g}: finds {found:.0%}\nof defective, flags {alarms:.0%} of normal"
        point: dict[str, Any] = {"color": "black", "markersize": 9, "markerfacecolor": "white", "markeredgewidth": 2}
        axes.plot([alarms], [found], "o", clip_on=False, zorder=5, label=label, **point)
    axes.legend(loc="lower right", fontsize=9, title="AUROC", alignment="left")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("share of normal images flagged (false positive rate)")
    axes.set_ylabel("share of defective images found (sensitivity)")
    axes.grid(color="0.92")
    set_heading(figure, "ROC curves", title)
    return figure


def leakage_figure(pairs: Sequence[Pair]) -> Figure:
    """Near-duplicates across train and test, at most eight pairs, the training image left and the test image right."""
    shown = list(pairs)[:MAX_PAIRS]
    side, gap, block = 1.1, 0.05, 4.6
    figure, page = sheet(2 * block, 0.5 + (side + 0.12) * max(1, -(-len(shown) // 2)))
    left_out = f" ({len(shown)} of {len(pairs)} pairs)" if len(pairs) > len(shown) else ""
    set_heading(figure, f"Nearly the same image in training and in test{left_out}")
    for number, (train, test, correlation, train_path, test_path) in enumerate(shown):
        line, column = divmod(number, 2)
        left, top = 0.12 + column * block, 0.5 + line * (side + 0.12)
        for picture in (train, test):
            scale = side / max(picture.shape[:2])
            paste(page, picture, (left, top, picture.shape[1] * scale, picture.shape[0] * scale))
            left += side + gap
        first, second = (plain(path, 30, keep_end=True) for path in (train_path, test_path))
        text = f"correlation {correlation:.3f}\ntrain, left:\n{first}\ntest, right:\n{second}"
        page.text(left + gap, top, text, va="top", fontsize=8, linespacing=1.4)
    return figure


def curves_figure(rows: Sequence[Row], title: str = "") -> Figure:
    """Training curves over epochs, one panel for each column but `epoch` and `seconds`; missing values are left out.

    A term that is 0 throughout, since its weight is 0, has no panel.
    """
    from matplotlib.ticker import MaxNLocator

    columns = dict.fromkeys(key for row in rows for key in row if key not in ("epoch", "seconds"))
    names = [name for name in columns if any(row.get(name) != 0 for row in rows)]
    across = min(3, max(1, len(names)))
    down = max(1, -(-len(names) // across))
    size = (2.9, 1.9) if across > 1 else (5.6, 2.4)  # a lone panel leaves room for the title
    figure, grid = panels(down, across, size, (0.75, 0.2, 0.7, 0.55), (0.75, 0.6), sharex=True)
    set_heading(figure, "Training curves", title)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.set_axis_off()
            continue
        points = [(row["epoch"], row[names[number]]) for row in rows if np.isfinite(row.get(names[number], np.nan))]
        if points:
            epochs, values = np.array(points).T
            marker = "o" if len(points) < 15 else ""
            axes.plot(epochs, values, color=COLOURS[1], linewidth=1.6, marker=marker, markersize=3)
            says = f"{values[-1]:.4g} at the end"
            if values.min() > 0 and values.max() / values.min() > LOG_RATIO:
                axes.set_yscale("log")
        else:
            says = "no finite value"
        # with y given, matplotlib does not measure all ticks to find a free place; a factor of the ticks goes right
        axes.set_title(f"{plain(names[number], 30)}: {says}", loc="left", y=1, fontsize=9)
        axes.yaxis.get_offset_text().set(x=1, ha="right", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.grid(color="0.92")
    figure.supxlabel("epoch", fontsize=10)
    return figure


def _run_title(run_dir: Path) -> str:
    *_, dataset, model, name = ("", "", *run_dir.absolute().parts)
    match = re.fullmatch(r"[0-9a-f]{8}-s(\d+)", name)
    return f"{dataset} · {model} · seed {match[1]}" if match else name


def read_gallery(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of predictions/gallery.npz, none where there is no such file.

    Raises:
        RunError: if it is damaged, or no gallery.
    """
    if not path.exists():
        return {}
    try:
        # given a path, np.load would leave a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            gallery = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}): `anomaly-lab evaluate` makes it anew.") from None
    if not {"index", "image"} <= gallery.keys() or len({len(array) for array in gallery.values()}) != 1:
        raise RunError(f"{path} is not a gallery: its arrays are {', '.join(gallery) or 'none'}.")
    return gallery


def _read_curves(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # a last line that was cut off has no epoch, or fewer cells than there are columns
            rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read as training curves ({error}).") from None
    return [row for row in rows if "epoch" in row]
