"""The figure of a run's scores, class by class: how far the defective images lie above the normal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.style import COLOURS, DARK, GREY, counted, panels, plain, set_heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]

MAX_CLASSES = 8
HEAVY_TAIL = 10  # from this ratio of the 99.5th percentile to the median on, scores are drawn on a log axis


def score_figure(table: ScoreTable, metrics: Mapping[str, Any], title: str = "") -> Figure:
    """Histograms of the primary score, one row per class over the normal images' (grey), with the deploy threshold.

    Bars are shares of their class, so that classes of different size compare. At most eight defect classes, the
    largest, have a row of their own; the rest are pooled. A few scores far from all others are counted in the
    end bins; if many are, the axis is logarithmic.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    scores, threshold, normal = table.primary_scores, metrics.get("threshold"), table.label == 0
    classes = _score_classes(table)
    edges, is_log = _score_bins(scores, threshold, [float(np.median(scores[members])) for _, members in classes])
    shown = np.clip(scores, edges[0], edges[-1])
    size = 6.4, 0.85 if len(classes) > 1 else 2.5
    figure, grid = panels(len(classes), 1, size, (0.75, 1.75, 0.65, 0.55), (0, 0.22), sharex=True, sharey=True)
    rows = grid[:, 0]
    for rank, (axes, (name, members)) in enumerate(zip(rows, classes, strict=True)):
        if normal.any():
            axes.stairs(_shares(shown[normal], edges), edges, fill=True, color=GREY)
        if not (members & normal).any():
            colour = COLOURS[rank % len(COLOURS)]
            axes.stairs(_shares(shown[members], edges), edges, color=colour, linewidth=1.8)
        text = f"{plain(name, 22)}\n{counted(int(members.sum()))}"
        if threshold is not None:
            text += f"\n{(scores[members] > threshold).mean():.0%} flagged"
            axes.axvline(threshold, color="black", linewidth=1.3, linestyle="--")
        axes.text(1.02, 1, text, transform=axes.transAxes, va="top", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_visible(rank == len(classes) - 1)
    rows[0].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))  # the rows share it
    rows[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if is_log:
        rows[-1].set_xscale("log")
    rows[-1].set_xlim(edges[0], edges[-1])
    rows[-1].set_xlabel(f"score {plain(table.primary)}, higher = more anomalous{' (log axis)' if is_log else ''}")
    figure.supylabel("share of the class", fontsize=10)
    notes = ["grey: normal images"] if normal.any() else []
    if threshold is not None:
        beyond = "" if edges[0] <= threshold <= edges[-1] else ", beyond the axis"
        notes.append(f"dashed: threshold {threshold:.4g}{beyond}")
    if clipped := int((shown != scores).sum()):
        extreme = scores[np.abs(scores - shown).argmax()]
        notes.append(f"{counted(clipped)} beyond the axis, as far as {extreme:.3g}, in the end bins")
    set_heading(figure, "Scores by class", title)
    # with y given, matplotlib does not measure all ticks to find a free place
    rows[0].set_title(" · ".join(notes), loc="left", y=1, fontsize=9, color=DARK)
    return figure


def _score_bins(scores: Values, threshold: float | None, middles: Sequence[float]) -> tuple[Values, bool]:
    """The edges of 30 bins, and whether they are evenly spaced on a log axis; `middles` are never cut off."""
    highest = np.percentile(scores, 99.5, method="lower")
    is_log = bool(scores.min() > 0 and highest > HEAVY_TAIL * np.median(scores))
    values = np.log10(scores) if is_log else scores
    low, high = np.percentile(values, 0.5, method="higher"), np.percentile(values, 99.5, method="lower")
    slack = 0.25 * (high - low)  # cut off only what would squeeze all the rest
    low, high = (end if abs(end - cut) <= slack else cut for end, cut in ((values.min(), low), (values.max(), high)))
    ends = np.log10(middles) if is_log else np.asarray(middles)
    low, high = min(low, *ends), max(high, *ends)
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


def _shares(scores: Values, edges: Values) -> Values:
    return np.asarray(np.histogram(scores, edges)[0] / len(scores))
