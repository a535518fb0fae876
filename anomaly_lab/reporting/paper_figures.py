"""The papers' figures, drawn from runs and images: one function each, from plain data to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.metrics.statistics import Spread
from anomaly_lab.reporting.style import COLOURS, DARK, GREY, outline, panels, paste, plain, set_heading, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = npt.NDArray[np.uint8]  # (H, W, 3)

SIDE, GAP, LEFT, TOP = 1.1, 0.06, 1.6, 0.5  # of pictures in rows, in inches
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_RATES = np.linspace(0, 1, 201)


def mean_roc(tables: Sequence[ScoreTable]) -> tuple[npt.NDArray[np.float64], float]:
    """The mean over seeds of the sensitivity at each of 201 false positive rates, and of the AUROC."""
    from sklearn.metrics import roc_auc_score, roc_curve

    curves = []
    for table in tables:
        false_rate, true_rate, _ = roc_curve(table.label, table.primary_scores)
        curves.append(np.interp(_RATES, false_rate, true_rate))
    return np.mean(curves, 0), float(np.mean([roc_auc_score(t.label, t.primary_scores) for t in tables]))


def roc_figure(tables: Mapping[str, Mapping[str, Sequence[ScoreTable]]], title: str) -> Figure:
    """ROC curves of all methods, averaged over seeds, one panel for each dataset: dataset -> method -> tables."""
    across = min(2, len(tables))
    down = -(-len(tables) // across)
    figure, grid = panels(down, across, (4.4, 4.4), (0.65, 0.25, 0.75, 0.55), (0.7, 0.75))
    for axes, (dataset, methods) in zip(grid.flat, tables.items(), strict=False):
        for rank, (method, of_seeds) in enumerate(methods.items()):
            if of_seeds:
                curve, auroc = mean_roc(of_seeds)
                look = {"color": COLOURS[rank % len(COLOURS)], "linestyle": _LINES[rank % len(_LINES)]}
                axes.plot(_RATES, curve, linewidth=2, label=f"{plain(method)} ({auroc:.2f})", **look)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        axes.legend(loc="lower right", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="false positive rate", ylabel="sensitivity")
        axes.set_title(plain(dataset), loc="left", y=1, fontsize=11)
        axes.grid(color="0.92")
    for axes in grid.flat[len(tables) :]:
        axes.set_axis_off()
    set_heading(figure, title)
    return figure


def lines_figure(
    spreads: Mapping[str, Mapping[str, Spread | None]],
    printed: Mapping[str, Mapping[str, float]],
    floors: Mapping[str, float],
    title: str,
    of: str,
) -> Figure:
    """A value over settings, one line for each dataset with its standard deviation over seeds; printed values are
    hollow, and each dataset's floor is a dotted line. All are dataset -> setting -> value."""
    settings = list(dict.fromkeys(name for values in spreads.values() for name in values))
    figure, grid = panels(1, 1, (6.0, 4.2), (0.7, 2.4, 0.6, 0.6))
    axes = grid[0, 0]
    for rank, (dataset, values) in enumerate(spreads.items()):
        look = {"color": COLOURS[rank % len(COLOURS)], "marker": _MARKERS[rank % len(_MARKERS)]}
        known = [(settings.index(name), spread) for name, spread in values.items() if spread is not None]
        if known:
            places, means = [place for place, _ in known], [spread.mean for _, spread in known]
            reach = [spread.deviation or 0.0 for _, spread in known]
            axes.errorbar(places, means, reach, label=plain(dataset), linewidth=1.8, capsize=3, **look)
            if dataset in floors:
                label = f"{plain(dataset)}, thumbnail floor"
                axes.axhline(floors[dataset], color=look["color"], linestyle=":", linewidth=1.2, label=label)
        if printed.get(dataset):
            places = [settings.index(name) for name in printed[dataset] if name in settings]
            label = f"{plain(dataset)}, printed"
            hollow = {"markerfacecolor": "white", "markersize": 9, "linestyle": "none"}
            axes.plot(places, [printed[dataset][settings[p]] for p in places], label=label, **look, **hollow)
    axes.set_xticks(range(len(settings)), settings)
    axes.set_ylabel(of)
    axes.grid(color="0.92")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, borderaxespad=0, frameon=False)
    set_heading(figure, title)
    return figure


def latents_figure(z: npt.NDArray[Any], z_hat: npt.NDArray[Any], label: npt.NDArray[Any], title: str) -> Figure:
    """t-SNE of z, z_hat and z - z_hat (N, d), normal and defective images told apart by colour and mark."""
    from sklearn.manifold import TSNE

    figure, grid = panels(1, 3, (3.1, 3.1), (0.25, 0.25, 0.8, 0.45), (0.25, 0))
    named = {"(a) z": z, "(b) z_hat": z_hat, "(c) z - z_hat": z - z_hat}
    for axes, (name, vectors) in zip(grid.flat, named.items(), strict=True):
        perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors.astype(np.float64))
        for value, kind, colour, mark in ((0, "normal", COLOURS[1], "o"), (1, "defective", COLOURS[0], "x")):
            chosen = places[label == value]
            axes.scatter(*chosen.T, s=12, c=colour, marker=mark, linewidths=0.9, label=f"{kind} ({len(chosen)})")
        axes.set_title(name, loc="left", y=1, fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=9, frameon=False)
    set_heading(figure, title)
    return figure


@dataclass(frozen=True)
class Tile:
    """A picture or a map of a grid.

    Attributes:
        picture: (H, W, 3) uint8, or a map (H, W).
        mask: (H, W), outlined where it is 1.
        look: of a map, for `imshow`.
    """

    picture: npt.NDArray[Any]
    mask: npt.NDArray[Any] | None = None
    look: Mapping[str, Any] = field(default_factory=dict)


def grid_figure(
    rows: Mapping[str, Sequence[Tile | None]], columns: Sequence[str], title: str, note: str = ""
) -> Figure:
    """Pictures in named rows and columns; an empty place is one that nothing is known of."""
    from matplotlib.patches import Rectangle

    width = LEFT + len(columns) * (SIDE + GAP) + 0.1
    above = TOP + (0.25 if any(columns) else 0)
    height = above + len(rows) * (SIDE + GAP) + (0.35 if note else 0.1)
    figure, page = sheet(max(width, 5.5), height)
    set_heading(figure, title)
    for number, name in enumerate(columns):
        place = LEFT + number * (SIDE + GAP) + SIDE / 2
        page.text(place, above - 0.07, plain(name, 18), ha="center", fontsize=9, color=DARK)
    for line, (name, tiles) in enumerate(rows.items()):
        top = above + line * (SIDE + GAP)
        page.text(0.12, top + SIDE / 2, plain(name, 22), va="center", fontsize=9)
        for number, tile in enumerate(tiles):
            box = (LEFT + number * (SIDE + GAP), top, SIDE, SIDE)
            if tile is None:
                page.text(box[0] + SIDE / 2, top + SIDE / 2, "not kept", ha="center", fontsize=8, color=DARK)
                continue
            paste(page, tile.picture, box, **tile.look)
            if tile.picture.ndim == 2:  # where all is white, an edge is needed
                page.add_patch(Rectangle(box[:2], SIDE, SIDE, fill=False, edgecolor=GREY, linewidth=0.8))
            if tile.mask is not None:
                outline(page, tile.mask == 1, box, grow=True)
    if note:
        page.text(0.12, height - 0.12, note, fontsize=8, color=DARK)
    return figure
