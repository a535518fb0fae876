"""What the figures share: colours, axes placed in inches, and names from outside as matplotlib can draw them.

Nothing here uses pyplot, so no figure outlives its caller. Everything has a fixed place: laying out a figure
automatically takes as long as drawing it twice.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
# Okabe and Ito's colours, told apart by colour-blind readers; without the yellow, which fades in print.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, DARK = "0.78", "0.3"
OUTLINE = "#F0E442"

Box = tuple[float, float, float, float]  # left, top, width, height in inches


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty page of width x height inches, whose one invisible axes counts inches from the top left corner.

    Many small pictures are drawn faster on one axes than with axes of their own.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    page.set_axis_off()
    return figure, page


def paste(page: Axes, picture: npt.NDArray[Any], box: Box, **look: Any) -> None:
    """Draw a picture, (H, W, 3), or a map, (H, W), over a box (left, top, width, height) of a sheet.

    A map with more pixels than the sheet has there shows the highest of those that share a place: a mean would hide
    what is small.
    """
    left, top, width, height = box
    if picture.ndim == 2:
        picture = _maxima(picture, (height * DPI, width * DPI))
    # smoothing a picture shown much larger than it is would hide a decoder's checkerboard
    enlarged = min(height * DPI / picture.shape[0], width * DPI / picture.shape[1])
    smoothing = "nearest" if enlarged >= 2 else "auto"
    page.imshow(picture, extent=(left, left + width, top + height, top), aspect="auto", interpolation=smoothing, **look)


def outline(page: Axes, region: npt.NDArray[np.bool_], box: Box, *, grow: bool = False) -> None:
    """Draw the line around a region (H, W) of a picture pasted over the box; nothing around an empty one.

    With `grow` the line runs a little outside of the region, so that thin cracks stay visible.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke
    from scipy.ndimage import binary_dilation

    if not region.any():
        return
    if grow:
        region = binary_dilation(region, iterations=max(1, min(region.shape) // 50))
    inside = np.pad(region.astype(np.float32), 1)  # a border of zeros closes lines at the image's edge
    left, top, width, height = box
    down, across = ((np.arange(-1, size + 1) + 0.5) / size for size in region.shape)
    line = page.contour(
        left + across * width, top + down * height, inside, levels=[0.5], colors=OUTLINE, linewidths=1.1
    )
    line.set(path_effects=[withStroke(linewidth=2.2, foreground="black")])
    line.set_clip_path(Rectangle((left, top), width, height, transform=page.transData))


def panels(
    down: int,
    across: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    gap: tuple[float, float] = (0, 0),
    **shared: Any,
) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure with `down` x `across` axes of one size, and the array of these axes; all lengths in inches.

    `size` and `gap` are horizontal, then vertical; `margins` are left, right, top, bottom.
    """
    from matplotlib.figure import Figure

    left, right, top, bottom = margins
    width = left + across * size[0] + (across - 1) * gap[0] + right
    height = top + down * size[1] + (down - 1) * gap[1] + bottom
    places = {"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": bottom / height}
    spaces = {"wspace": gap[0] / size[0], "hspace": gap[1] / size[1]}
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(down, across, squeeze=False, gridspec_kw=places | spaces, **shared)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, np.asarray(axes)


def set_heading(figure: Figure, what: str, title: str = "") -> None:
    """Write what a figure shows, and of which run, into its top left corner."""
    text = f"{what}, {plain(title)}" if title else what
    width, height = figure.get_size_inches()
    figure.suptitle(text, x=0.12 / width, y=1 - 0.1 / height, ha="left", va="top", fontsize=12)


def counted(count: int) -> str:
    """A number of images in words."""
    return f"{count} image{'' if count == 1 else 's'}"


def plain(text: str, length: int = 80, *, keep_end: bool = False) -> str:
    """A name from outside as matplotlib can draw it: no formulas, no characters without a glyph, not too long."""
    if len(text) > length:
        text = f"…{text[1 - length :]}" if keep_end else f"{text[: length - 1]}…"
    return "".join(char if ord(char) in _drawable() else "?" for char in text).replace("$", r"\$")


def _maxima(values: npt.NDArray[Any], most: tuple[float, float]) -> npt.NDArray[Any]:
    """The maxima of equal blocks of values (H, W), at most as many rows and columns of them as said."""
    height, width = values.shape
    high, wide = (math.ceil(side / limit) for side, limit in zip(values.shape, most, strict=True))
    padded = np.pad(values, ((0, -height % high), (0, -width % wide)), mode="edge")
    maxima: npt.NDArray[Any] = padded.reshape(len(padded) // high, high, -1, wide).max((1, 3))
    return maxima


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
