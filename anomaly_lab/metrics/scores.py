"""The scores of one set of images as a table, and its file scores.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import RunError, TrainingError

_REQUIRED = ("index", "path", "label", "defect", "score")
PIXEL_COUNTS = ("TP", "FP", "FN", "TN")  # of an image, at the threshold
_TEXTUAL = frozenset({"index", "path", "label", "defect", "group"})


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """N images with their labels and named scores, higher = more anomalous; `primary` names the score that counts.

    Raises:
        TrainingError: if a score is NaN or infinite; the text names the image.
    """

    index: npt.NDArray[np.int64]  # (N,) the row in the split
    path: Sequence[str]
    label: npt.NDArray[np.int64]  # (N,) 1 = defective
    defect: Sequence[str]
    group: Sequence[str]  # the physical part; empty: the image is a part of its own
    scores: dict[str, npt.NDArray[np.float64]]  # each (N,)
    primary: str
    counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # PIXEL_COUNTS (N,) each, or none

    def __post_init__(self) -> None:
        columns: list[Any] = [
            self.path,
            self.label,
            self.defect,
            self.group,
            *self.scores.values(),
            *self.counts.values(),
        ]
        if any(len(column) != len(self) for column in columns):
            raise ValueError(f"the columns are not all of {len(self)} rows: {[len(column) for column in columns]}")
        if self.primary not in self.scores:
            raise ValueError(f"the primary score {self.primary} is not among {sorted(self.scores)}")
        if reserved := (_TEXTUAL | {*PIXEL_COUNTS}) & self.scores.keys():
            raise ValueError(f"no score can be named {sorted(reserved)}")
        for name, values in self.scores.items():
            if len(bad := np.flatnonzero(~np.isfinite(values))):
                raise TrainingError(
                    f"the score {name} of {self.path[bad[0]]} is {values[bad[0]]} ({len(bad)} of {len(self)} images): "
                    "the model has diverged, try a smaller learning rate"
                )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def primary_scores(self) -> npt.NDArray[np.float64]:
        """The score that counts, (N,)."""
        return self.scores[self.primary]

    def to_csv(self, path: Path) -> None:
        """Write index, path, label, defect, group, `score` (the primary one), each named score and pixel count.

        Scores have nine significant digits, so float32 values come back as they were.
        """
        named = {name: values for name, values in self.scores.items() if name != "score"}
        columns = [self.primary_scores, *named.values()]
        # names that are not UTF-8 on disk travel as surrogates
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            plain = csv.writer(file, lineterminator="\n")
            quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
            plain.writerow(["index", "path", "label", "defect", "group", "score", *named, *self.counts])
            for row, (name, defect, group) in enumerate(zip(self.path, self.defect, self.group, strict=True)):
                # csv quotes a carriage return only where it is part of the line terminator
                writer = quoting if "\r" in name + defect + group else plain
                scores = (f"{column[row]:.9g}" for column in columns)
                counts = (int(column[row]) for column in self.counts.values())
                writer.writerow([int(self.index[row]), name, int(self.label[row]), defect, group, *scores, *counts])

    @classmethod
    def from_csv(cls, path: Path) -> ScoreTable:
        """Read a table as `to_csv` writes it; a further column is a pixel count by its name, or a named score.

        The primary score is the first named one that equals `score` in every row, else `score` itself. A file
        without the column `group` has empty groups.

        Raises:
            RunError: if the file is missing or is no such table; the text names the line.
        """
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                return _read(csv.reader(file, strict=True), path)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        except csv.Error as error:
            raise RunError(f"{path}: not a CSV file ({error})") from None


def _read(reader: Any, path: Path) -> ScoreTable:
    header: list[str] = next(reader, [])
    if missing := [name for name in _REQUIRED if name not in header]:
        raise RunError(f"{path}, line 1: no column {', '.join(missing)}; the columns are {', '.join(header) or 'none'}")
    if len(set(header)) < len(header):
        raise RunError(f"{path}, line 1: a column stands twice in {', '.join(header)}")
    named = [name for name in header if name not in _TEXTUAL]
    counted = [name for name in PIXEL_COUNTS if name in header]
    rows: dict[int, tuple[str, int, str, str]] = {}  # path, label, defect and group
    values: list[list[float]] = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise RunError(f"{where}: {len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        index = _whole(row["index"], "the index", where)
        if index in rows:
            raise RunError(f"{where}: the index {index} stands twice")
        if row["label"] not in ("0", "1"):
            raise RunError(f"{where}: the label is {row['label']!r}, not 0 (normal) or 1 (defective)")
        rows[index] = row["path"], int(row["label"]), row["defect"], row.get("group", "")
        values.append(
            [_whole(row[name], name, where) if name in counted else _number(row[name], name, where) for name in named]
        )

    matrix = np.array(values, np.float64).reshape(len(rows), len(named))
    scores = {name: matrix[:, column] for column, name in enumerate(named)}
    counts = {name: scores.pop(name).astype(np.int64) for name in counted}
    score = scores.pop("score")
    primary = next((name for name, column in scores.items() if np.array_equal(column, score)), "score")
    return ScoreTable(
        index=np.fromiter(rows, np.int64),
        path=[path for path, _, _, _ in rows.values()],
        label=np.array([label for _, label, _, _ in rows.values()], np.int64),
        defect=[defect for _, _, defect, _ in rows.values()],
        group=[group for _, _, _, group in rows.values()],
        scores={"score": score, **scores} if primary == "score" else scores,
        primary=primary,
        counts=counts,
    )


def _whole(text: str, name: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):  # what a float64 holds exactly
        raise RunError(f"{where}: {name} is {text!r}, not a whole number from 0")
    return int(text)


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise RunError(f"{where}: {name} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise RunError(f"{where}: {name} is {text}, not a finite number")
    return value
