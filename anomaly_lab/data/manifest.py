"""A dataset described by a CSV file: which pictures there are, and what is known of each."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from anomaly_lab.data.layouts import warn_unmatched
from anomaly_lab.data.records import GOOD, PARTS, DefectDataset, Record
from anomaly_lab.errors import ConfigError, DataError

COLUMNS = ("path", "label", "mask", "group", "split")
NORMAL_LABELS = ("good", "normal", "ok", "0", "0.0", "")
SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
UNNAMED = "defect"  # of a picture whose label is 1


class Manifest(DefectDataset):
    """Pictures listed in a CSV file with the columns path and label and, as far as known, mask, group and split.

    - path: of the picture, below the root.
    - label: good (or normal, ok, 0, nothing), or the kind of defect (1: a defect of no name).
    - mask: below the root: a picture, a LabelMe or a COCO file (polygons.py); of a good one it says where not to look.
    - group: the physical part that it shows; parts of one name stay on one side of the split.
    - split: train, val or test for every picture, where somebody has divided them already; else the split is drawn.

    Args:
        root: the folder that the paths start below; None: that of the manifest.
        manifest: the CSV file.
    """

    name = "manifest"
    folder = ""
    how_to_get = (
        "Name your CSV file: dataset.manifest=FILE.csv; `anomaly-lab manifest DIR` writes one for common layouts."
    )
    licence = "your own"

    def __init__(
        self, root: str | os.PathLike[str] | None = None, manifest: str | os.PathLike[str] | None = None
    ) -> None:
        if manifest is None:
            raise ConfigError(f"dataset=manifest: {self.how_to_get}")
        self.manifest = Path(manifest).expanduser()
        super().__init__(self.manifest.parent if root is None else root)

    def scan(self) -> list[Record]:
        """The records of the file, each checked: its picture and its mask are there."""
        rows = self._rows()
        records: dict[str, Record] = {}
        for line, row in rows:
            record = self._record(row, f"{self.manifest}, line {line}")
            if record.path in records:
                raise DataError(f"{self.manifest}, line {line}: {record.path} stands twice.")
            records[record.path] = record
        if not records:
            raise DataError(f"{self.manifest} lists no picture.")
        if len(parts := {record.part is None for record in records.values()}) > 1:
            raise DataError(f"{self.manifest}: the column split has to be filled for every picture, or for none.")
        if any(record.mask for record in records.values()):
            without = [path for path, record in records.items() if record.label and not record.mask]
            warn_unmatched(self.name, without, [])
        assert len(parts) == 1
        return [records[path] for path in sorted(records)]

    def _rows(self) -> Sequence[tuple[int, Mapping[str, str]]]:
        try:
            with self.manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                header = reader.fieldnames or []
                if missing := [name for name in ("path", "label") if name not in header]:
                    raise DataError(
                        f"{self.manifest}, line 1: no column {' and '.join(missing)}; the columns are "
                        f"{', '.join(header) or 'none'}."
                    )
                rows = []
                for row in reader:
                    if None in row or None in row.values():
                        raise DataError(f"{self.manifest}, line {reader.line_num}: not as many cells as columns.")
                    rows.append((reader.line_num, row))
                return rows
        except FileNotFoundError:
            raise DataError(f"dataset.manifest={self.manifest} is no file.") from None
        except OSError as error:
            raise DataError(f"{self.manifest}: cannot be read ({error.strerror}).") from None
        except csv.Error as error:
            raise DataError(f"{self.manifest}: not a CSV file ({error}).") from None

    def _record(self, row: Mapping[str, str], where: str) -> Record:
        cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
        path, mask = (_below(cells[name].replace("\\", "/"), where) for name in ("path", "mask"))
        if path is None:
            raise DataError(f"{where}: path is empty.")
        root = self.root
        for name in filter(None, (path, mask)):
            if not (root / name).is_file():
                raise DataError(f"{where}: {root / name} is no file. Paths start below {root} (dataset.root).")
        label = cells["label"]
        defect = GOOD if label.lower() in NORMAL_LABELS else UNNAMED if label in ("1", "1.0") else label
        split = cells["split"].lower()
        if split and split not in SPLITS:
            raise DataError(f"{where}: split={split} has to be one of {', '.join(PARTS)}.")
        return Record(
            path=path,
            defect=defect,
            mask=mask,
            group=cells["group"],
            part=SPLITS[split] if split else None,
        )


def _below(text: str, where: str) -> str | None:
    """A path below the root as it is kept, None where there is none.

    Raises:
        DataError: if it leads out of the root.
    """
    if not text:
        return None
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(f"{where}: {text} is no path below the dataset's folder.")
    return path.as_posix()
