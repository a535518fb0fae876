"""The figures of a run: each a function from plain data to a matplotlib Figure, and `draw_all` for a run directory.

Nothing here uses pyplot, so no figure outlives its caller.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import RunError
from anomaly_lab.metrics.scores import ScoreTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]  # (H, W, 3)
Values = npt.NDArray[np.float64]
Pair = tuple[Image, Image, float, str, str]  # train image, test image, correlation, train path, test path
Row = dict[str, float]

DPI = 150
# Okabe and Ito's colours, told apart by colour-blind readers; without the yellow, which fades in print.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, DARK, OUTLINE, FRAME = "0.78", "0.3", "#F0E442", "#D55E00"
MAX_CLASSES = MAX_PAIRS = 8
HEAVY_TAIL = 10  # from this ratio of the 99.5th percentile to the median on, scores are drawn on a log axis
CASES = (  # label, from the highest score down, heading
    (1, True, "Defects ranked highest: clear hits"),
    (1, False, "Defects ranked lowest: likely misses"),
    (0, True, "Normals ranked highest: likely false alarms"),
    (0, False, "Normals ranked lowest: clearly normal"),
)


def draw_all(run_dir: Path, metrics: Mapping[str, Any] | None = None, title: str | None = None) -> list[Path]:
    """Draw what a run directory allows into its figures/, and say which files were written.

    roc.png needs both classes in scores.csv, cases.png a gallery, curves.png a curves.csv. `metrics` are those of
    metrics.json unless given; the title comes from the directory's place, `<dataset>/<model>/<hash8>-s<seed>`.

    Raises:
        RunError: if one of the run's files is missing or damaged.
    """
    if metrics is None:
        from anomaly_lab.runs import Run

        metrics = Run(run_dir).read().get("metrics", {})
    title = _run_title(run_dir) if title is None else title
    table = ScoreTable.from_csv(run_dir / "scores.csv")
    figures = {}
    if len(np.unique(table.label)) == 2:
        figures["roc"] = roc_figure(table, metrics, title)
    if len(table):
        figures["scores"] = score_figure(table, metrics, title)
    gallery = run_dir / "predictions" / "gallery.npz"
    if gallery.exists() and len((pictures := _read_gallery(gallery))["index"]):
        figures["cases"] = cases_figure(pictures, table, metrics, title)
    curves = run_dir / "curves.csv"
    if curves.exists() and (rows := _read_curves(curves)):
        figures["curves"] = curves_figure(rows, title)

    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in figures]


def roc_figure(table: ScoreTable, metrics: Mapping[str, Any], title: str = "") -> Figure:
    """ROC curves: the primary score bold with the deploy threshold's operating point, the other scores thin.

    `metrics` gives `threshold`, `image_auroc_ci` and `floor_knn_auroc`, each as far as it is known. The table
    needs normal and defective images.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = _figure(6.4, 6.8)
    axes = figure.add_subplot()
    names = [table.primary, *(name for name in table.scores if name != table.primary)]
    for rank, name in enumerate(names):
        false_rate, true_rate, _ = roc_curve(table.label, table.scores[name])
        label = f"{_plain(name)} {roc_auc_score(table.label, table.scores[name]):.3f}"
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
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("share of normal images flagged (false positive rate)")
    axes.set_ylabel("share of defective images found (sensitivity)")
    axes.grid(color="0.92")
    _bare(axes)
    axes.set_title(_heading("ROC curves", title), loc="left", fontsize=12)
    return figure


def score_figure(table: ScoreTable, metrics: Mapping[str, Any], title: str = "") -> Figure:
    """Histograms of the primary score, one row per class over the normal images' (grey), with the deploy threshold.

    Bars are shares of their class, so that classes of different size compare. At most eight defect classes, the
    largest, have a row of their own; the rest are pooled. A few scores far from all others are counted in the
    end bins; if many are, the axis is logarithmic.
    """
    from matplotlib.ticker import PercentFormatter

    scores, threshold, normal = table.primary_scores, metrics.get("threshold"), table.label == 0
    edges, is_log = _score_bins(scores, threshold)
    shown = np.clip(scores, edges[0], edges[-1])
    classes = _score_classes(table)
    figure = _figure(8.6, 1.7 + (1.05 if len(classes) > 1 else 2) * len(classes))
    rows = figure.subplots(len(classes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for rank, (axes, (name, members)) in enumerate(zip(rows, classes, strict=True)):
        if normal.any():
            axes.hist(shown[normal], edges, weights=_shares(normal), color=GREY, histtype="stepfilled")
        if not (members & normal).any():
            look = {"color": COLOURS[rank % len(COLOURS)], "histtype": "step", "linewidth": 1.8}
            axes.hist(shown[members], edges, weights=_shares(members), **look)
        text = f"{_plain(name, 22)}\n{_counted(int(members.sum()))}"
        if threshold is not None:
            text += f"\n{(scores[members] > threshold).mean():.0%} flagged"
            axes.axvline(threshold, color="black", linewidth=1.3, linestyle="--")
        axes.text(1.02, 1, text, transform=axes.transAxes, va="top", fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(labelsize=8)
        _bare(axes)
    if is_log:
        rows[-1].set_xscale("log")
    rows[-1].set_xlim(edges[0], edges[-1])
    rows[-1].set_xlabel(f"score {_plain(table.primary)}, higher = more anomalous{' (log axis)' if is_log else ''}")
    figure.supylabel("share of the class", fontsize=10)
    notes = ["grey: normal images"] if normal.any() else []
    if threshold is not None:
        beyond = "" if edges[0] <= threshold <= edges[-1] else ", beyond the axis"
        notes.append(f"dashed: threshold {threshold:.4g}{beyond}")
    if clipped := int((shown != scores).sum()):
        extreme = scores[np.abs(scores - shown).argmax()]
        notes.append(f"{_counted(clipped)} beyond the axis, up to {extreme:.3g}, in the end bins")
    figure.suptitle(_heading("Scores by class", title), x=0.01, ha="left", fontsize=12)
    rows[0].set_title(" · ".join(notes), loc="left", fontsize=9, color=DARK)
    return figure


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
    [0, 1]), or else the anomaly map. All of a figure share one colour scale.

    Raises:
        RunError: if the gallery holds an image that the table does not.
    """
    row_of = {int(index): row for row, index in enumerate(table.index)}
    if strangers := [int(index) for index in gallery["index"] if int(index) not in row_of]:
        raise RunError(
            f"The gallery's image {strangers[0]} is not in scores.csv: `anomaly-lab evaluate` makes both anew."
        )
    in_table = np.array([row_of[int(index)] for index in gallery["index"]], np.int64)
    scores, threshold = table.primary_scores, metrics.get("threshold")
    chosen = _choose_cases(table.label[in_table], scores[in_table], per_group)
    positions = sorted({position for line in chosen for _, column in line for position in column})
    maps, scale = _difference_maps(gallery, positions)
    rows = ["image", *(["reconstruction"] if "reconstruction" in gallery else []), *(["map"] if maps else [])]

    # Inches, from the left and from the top: so many small pictures are quicker placed than laid out.
    side, gap = 1.45, 0.07
    tall = side * float(np.clip(gallery["image"].shape[1] / gallery["image"].shape[2], 0.4, 2.5))
    block, line_height = per_group * (side + gap) + 0.3, 0.9 + len(rows) * (tall + gap)
    width = 0.45 + block * max(len(line) for line in chosen) + (0.75 if maps else 0)
    height = 0.5 + line_height * len(chosen) + 0.4
    figure = _figure(width, height, layout=None)

    def say(x: float, y: float, text: str, **look: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **look)

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    say(0.45, 0.4, _heading("Best and worst cases", title), fontsize=14)
    drawn = None
    for number, line in enumerate(chosen):
        top = 0.5 + number * line_height
        for kind, name in enumerate(rows):
            middle = top + 0.9 + kind * (tall + gap) + tall / 2
            text = {"image": "input", "map": "difference" if "reconstruction" in gallery else "anomaly map"}.get(
                name, name
            )
            say(0.35, middle, text, rotation=90, ha="right", va="center", fontsize=9, color=DARK)
        for which, (heading, column) in enumerate(line):
            start = 0.45 + which * block
            say(start, top + 0.42, heading, fontsize=11, fontweight="bold")
            for place_in_line, position in enumerate(column):
                x = start + place_in_line * (side + gap)
                row = int(in_table[position])
                above = (scores < scores[row]).mean()
                say(
                    x, top + 0.84, f"{_plain(table.defect[row], 20)}\n{scores[row]:.4g} · above {above:.1%}", fontsize=8
                )
                for kind, name in enumerate(rows):
                    axes = place(x, top + 0.9 + kind * (tall + gap), side, tall)
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                    if name == "map":
                        drawn = axes.imshow(maps[position], cmap="magma", vmin=scale[0], vmax=scale[1])
                        continue
                    axes.imshow(gallery[name][position])
                    if name == "image":
                        if "mask" in gallery:
                            _outline(axes, gallery["mask"][position])
                        if threshold is not None and scores[row] > threshold:
                            axes.spines[:].set(visible=True, color=FRAME, linewidth=3)
    if drawn is not None:
        bar = figure.colorbar(drawn, cax=place(width - 0.7, 1.4, 0.15, min(3.0, line_height - 0.9)), extend="max")
        bar.ax.tick_params(labelsize=8)
        bar.set_label("mean absolute difference" if "reconstruction" in gallery else "anomaly map", fontsize=9)
    notes = [f"numbers: score {_plain(table.primary)}, and above which share of the test images it is"]
    if "mask" in gallery and (gallery["mask"][positions] == 1).any():
        notes.append("yellow line: true defect")
    if threshold is not None:
        notes.append(f"thick frame: above the threshold {threshold:.4g}")
    say(0.45, height - 0.15, " · ".join(notes), fontsize=9, color=DARK)
    return figure


def leakage_figure(pairs: Sequence[Pair]) -> Figure:
    """Near-duplicates across train and test, at most eight pairs, the training image left and the test image right."""
    shown = list(pairs)[:MAX_PAIRS]
    lines = (len(shown) + 1) // 2
    figure = _figure(10, 1 + 2.7 * max(lines, 1))
    left_out = f" ({len(shown)} of {len(pairs)} pairs)" if len(pairs) > len(shown) else ""
    figure.suptitle(f"Nearly the same image in training and in test{left_out}", x=0.01, ha="left", fontsize=12)
    if not shown:
        return figure
    grid = figure.add_gridspec(lines, 5, width_ratios=(1, 1, 0.15, 1, 1))
    for number, (train, test, correlation, train_path, test_path) in enumerate(shown):
        line, right = divmod(number, 2)
        sides = (("train", train, train_path), ("test", test, test_path))
        for offset, (side, image, path) in enumerate(sides):
            axes = figure.add_subplot(grid[line, 3 * right + offset])
            axes.imshow(image, cmap="gray")
            axes.set_axis_off()
            axes.set_anchor("NW")
            note = f", correlation {correlation:.3f}" if side == "test" else ""
            axes.set_title(f"{side}{note}\n{_plain(path, 28, keep_end=True)}", loc="left", fontsize=8)
    return figure


def curves_figure(rows: Sequence[Row], title: str = "") -> Figure:
    """Training curves over epochs, one panel for each column but `epoch` and `seconds`; missing values are left out."""
    from matplotlib.ticker import MaxNLocator

    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in ("epoch", "seconds")]
    across = min(3, max(1, len(names)))
    down = max(1, -(-len(names) // across))
    figure = _figure(1 + 3.6 * across, 0.7 + 2.5 * down)
    figure.suptitle(_heading("Training curves", title), x=0.01, ha="left", fontsize=12)
    panels = figure.subplots(down, across, sharex=True, squeeze=False).flat
    for number, axes in enumerate(panels):
        if number >= len(names):
            axes.set_axis_off()
            continue
        points = [(row["epoch"], row[names[number]]) for row in rows if np.isfinite(row.get(names[number], np.nan))]
        if points:
            epochs, values = np.array(points).T
            marker = "o" if len(points) < 15 else ""
            axes.plot(epochs, values, color=COLOURS[1], linewidth=1.6, marker=marker, markersize=3)
            axes.set_title(f"{_plain(names[number], 30)}: {values[-1]:.4g} at the end", loc="left", fontsize=9)
            if values.min() > 0 and values.max() / values.min() > HEAVY_TAIL:
                axes.set_yscale("log")
        else:
            axes.set_title(f"{_plain(names[number], 30)}: no finite value", loc="left", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.grid(color="0.92")
        _bare(axes)
    figure.supxlabel("epoch", fontsize=10)
    return figure


def _score_bins(scores: Values, threshold: float | None) -> tuple[Values, bool]:
    """The edges of 30 bins, and whether they are evenly spaced on a log axis."""
    highest = np.percentile(scores, 99.5, method="lower")
    is_log = bool(scores.min() > 0 and highest > HEAVY_TAIL * np.median(scores))
    values = np.log10(scores) if is_log else scores
    low, high = np.percentile(values, 0.5, method="higher"), np.percentile(values, 99.5, method="lower")
    slack = 0.25 * (high - low)  # cut off only what would squeeze all the rest
    low, high = (end if abs(end - cut) <= slack else cut for end, cut in ((values.min(), low), (values.max(), high)))
    span = high - low
    if span <= 1e-6 * max(abs(low), abs(high), 1e-30):
        span = max(abs(high), 1e-3) / 10
        low, high = low - span / 2, high + span / 2
    if threshold is not None and (threshold > 0 or not is_log):
        at = np.log10(threshold) if is_log else threshold
        if low - span <= at <= high + span:
            low, high = min(low, at), max(high, at)
    edges = np.linspace(low - 0.01 * span, high + 0.01 * span, 31)
    return (10**edges if is_log else edges), is_log


def _score_classes(table: ScoreTable) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Normal images, then each defect type, with the smallest ones pooled where there are too many."""
    normal = table.label == 0
    defect = np.array(table.defect, object)
    counts = {name: int(((defect == name) & ~normal).sum()) for name in dict.fromkeys(defect[~normal])}
    largest = sorted(sorted(counts), key=lambda name: -counts[name])[:MAX_CLASSES]
    classes = [(name, (defect == name) & ~normal) for name in sorted(largest)]
    if rest := counts.keys() - set(largest):
        classes.append((f"other ({len(rest)} types)", np.isin(table.defect, list(rest)) & ~normal))
    return [("all normal", normal), *classes] if normal.any() else classes


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


def _difference_maps(
    gallery: Mapping[str, npt.NDArray[Any]], positions: Sequence[int]
) -> tuple[dict[int, Values], tuple[float, float]]:
    """What is shown below each chosen input, in [0, 1] if it is a difference, and the ends of the common scale."""
    if "reconstruction" in gallery:
        pairs = {i: (gallery["image"][i] / 255.0, gallery["reconstruction"][i] / 255.0) for i in positions}
        maps = {i: np.abs(image - made).mean(-1) for i, (image, made) in pairs.items()}
    elif "anomaly_map" in gallery:
        maps = {i: gallery["anomaly_map"][i].astype(np.float64) for i in positions}
    else:
        return {}, (0.0, 1.0)
    values = np.stack(list(maps.values()))
    low = 0.0 if "reconstruction" in gallery else float(values.min())
    high = float(np.percentile(values, 99.5))
    return maps, (low, high if high > low else low + 1.0)


def _outline(axes: Axes, mask: npt.NDArray[np.uint8]) -> None:
    """A line a little outside the defective pixels, so that thin cracks stay visible; nothing in an empty mask."""
    from scipy.ndimage import binary_dilation

    if not (mask == 1).any():
        return
    grown = binary_dilation(mask == 1, iterations=max(1, min(mask.shape) // 50))
    inside = np.pad(grown.astype(np.float32), 1)  # a border of zeros closes lines at the image's edge
    rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
    limits = axes.get_xlim(), axes.get_ylim()
    for colour, width in (("black", 2.2), (OUTLINE, 1.1)):
        axes.contour(columns, rows, inside, levels=[0.5], colors=colour, linewidths=width)
    axes.set(xlim=limits[0], ylim=limits[1])


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]  # a literal in matplotlib's types


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _shares(members: npt.NDArray[np.bool_]) -> Values:
    count = int(members.sum())
    return np.full(count, 1 / count)


def _counted(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _heading(what: str, title: str) -> str:
    return f"{what}, {_plain(title)}" if title else what


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _plain(text: str, length: int = 80, *, keep_end: bool = False) -> str:
    """A name from outside as matplotlib can draw it: no formulas, no characters without a glyph, not too long."""
    if len(text) > length:
        text = f"…{text[1 - length :]}" if keep_end else f"{text[: length - 1]}…"
    return "".join(char if ord(char) in _drawable() else "?" for char in text).replace("$", r"\$")


def _run_title(run_dir: Path) -> str:
    *_, dataset, model, name = ("", "", *run_dir.absolute().parts)
    match = re.fullmatch(r"[0-9a-f]{8}-s(\d+)", name)
    return f"{dataset} · {model} · seed {match[1]}" if match else name


def _read_gallery(path: Path) -> dict[str, npt.NDArray[Any]]:
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
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # a last line that was cut off has no epoch, or fewer cells than there are columns
            rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read as training curves ({error}).") from None
    return [row for row in rows if "epoch" in row]
