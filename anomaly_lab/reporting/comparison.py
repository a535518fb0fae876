"""Two runs side by side in the terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anomaly_lab.reporting.tables import MISSING, printable

SIDES = {
    "found": "defects that only B finds",
    "missed": "defects that only A finds",
    "cleared": "false alarms of A only",
    "alarmed": "false alarms of B only",
}
_LISTED = 4  # images of each kind


@dataclass(frozen=True)
class Paired:
    """The test images that two runs share.

    Attributes:
        paths: (N).
        label: (N,) 1 = defective.
        defect: (N).
        scores: of A and B, (N,) each.
        names: of the score that counts, in A and B.
        thresholds: to deploy, of A and B; None where it is not known.
        aurocs: on these images; None where a class is missing.
        interval: of the difference B less A, by the bootstrap over groups of test images.
        sides: see SIDES: rows of the images that changed sides; None without thresholds.
    """

    paths: Sequence[str]
    label: npt.NDArray[Any]
    defect: Sequence[str]
    scores: Sequence[npt.NDArray[Any]]
    names: Sequence[str]
    thresholds: Sequence[float | None]
    aurocs: Sequence[float] | None
    interval: tuple[float, float] | None
    sides: Mapping[str, Sequence[int]] | None


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs: options, versions, lists of the split (both, only A, only B), files, scores."""

    runs: tuple[Path, Path]
    config: Mapping[str, tuple[Any, Any]]
    versions: Mapping[str, tuple[Any, Any]]
    split: Mapping[str, tuple[int, int, int]]
    other_files: bool  # under the same names
    scores: Paired


def comparison(found: Comparison) -> RenderableType:
    """What differs in options, versions and split, and the scores of the test images that both have."""
    parts: list[RenderableType] = [Text(f"A  {found.runs[0]}\nB  {found.runs[1]}"), Text()]
    for title, rows in (("options", found.config), ("versions", found.versions)):
        if rows:
            shown = [
                (name, *(MISSING if value is None else str(value) for value in pair)) for name, pair in rows.items()
            ]
            parts += [_table((title, "A", "B"), shown), Text()]
        else:
            parts += [Text(f"The same {title}.")]
    if found.split:
        rows_of = [(name, *map(str, counts)) for name, counts in found.split.items()]
        parts += [_table(("images of", "both", "only A", "only B"), rows_of), Text()]
    else:
        files = "The same split by name, of other files: scores of different pictures are paired below!"
        parts += [Text(files if found.other_files else "The same split."), Text()]
    return Group(*parts, *_scores(found.scores))


def _scores(pairs: Paired) -> list[RenderableType]:
    from scipy.stats import spearmanr

    normal, defective = (int((pairs.label == label).sum()) for label in (0, 1))
    lines = [f"On {normal} normal and {defective} defective test images that both have:"]
    if pairs.aurocs is not None and pairs.interval is not None:
        difference = pairs.aurocs[1] - pairs.aurocs[0]
        low, high = pairs.interval
        lines.append(
            f"AUROC {pairs.aurocs[0]:.3f} (A, {pairs.names[0]}) and {pairs.aurocs[1]:.3f} (B, {pairs.names[1]})"
        )
        lines.append(f"B less A {difference:+.3f}, 95% interval over the test images [{low:+.3f}, {high:+.3f}]")
    if len(pairs.paths) > 2 and all(np.ptp(score) > 0 for score in pairs.scores):
        lines.append(f"rank correlation of the scores {spearmanr(*pairs.scores)[0]:.3f}")
    parts: list[RenderableType] = [Text("\n".join(lines)), Text()]
    if pairs.sides is None:
        return [*parts, Text("No image can change sides: a run has no threshold.")]
    rows = []
    for name, meaning in SIDES.items():
        members = pairs.sides[name]
        shown = [f"{pairs.paths[row]} ({pairs.defect[row]})" for row in members[:_LISTED]]
        more = [f"and {len(members) - _LISTED} more"] if len(members) > _LISTED else []
        rows.append((meaning, str(len(members)), "\n".join([*shown, *more])))
    return [*parts, _table(("changed sides", "images", "ranks moved most"), rows)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    return table
