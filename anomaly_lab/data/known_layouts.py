"""Folder layouts that people have, as rows of a manifest: what each dataset's publisher calls normal, and its masks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from anomaly_lab.data.images import read_image
from anomaly_lab.data.layouts import below, masks_below, place, scan_parts, subfolders
from anomaly_lab.data.polygons import Annotated, Points, read_annotations
from anomaly_lab.data.records import GOOD, Record, image_files
from anomaly_lab.errors import DataError

Row = dict[str, str]  # the columns of manifest.py


def visa(root: Path) -> Iterator[Row]:
    """VisA, one object or all: `split_csv/1cls.csv` beside the objects' folders. Its masks count from 1."""
    table = next(iter(sorted(root.glob("split_csv/1cls.csv"))), None)
    if table is None:
        raise DataError(f"{root} is not VisA's folder: split_csv/1cls.csv is missing.")
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not (root / row["image"]).exists():
                continue  # not all objects have to be there
            label = GOOD if row["label"] == "normal" else "anomaly"
            yield _row(row["image"], label, row["mask"], split=row["split"], folder=row["object"])


def btad(root: Path) -> Iterator[Row]:
    """BTAD, one product (`01`) or all: `train/ok`, `test/ok`, `test/ko`, `ground_truth/ko`."""
    for product in _products(root, lambda folder: (folder / "train" / "ok").is_dir(), "train/ok"):
        masks = masks_below(product / "ground_truth")
        for path in image_files(product, recursive=True):
            split, kind, *below = (*path.relative_to(product).parts, "")
            if split in ("train", "test") and any(below):
                mask = masks.get(place(path, product / split)) if kind == "ko" else None
                yield _row(_below(root, path), GOOD if kind == "ok" else kind, _below(root, mask), split=split)


def mvtec(root: Path) -> Iterator[Row]:
    """MVTec AD and what is laid out like it, such as MPDD: one category or all."""
    for category in _products(root, lambda folder: (folder / "train" / GOOD).is_dir(), "train/good"):
        for record in scan_parts("manifest", root, category):
            yield _of_record(record)


def mvtec_ad_2(root: Path) -> Iterator[Row]:
    """MVTec AD 2: `train/good`, `validation/good`, `test_public/good`, `test_public/bad` with `ground_truth/bad`.

    Its private tests have no labels and are left out.
    """
    for category in _products(root, lambda folder: (folder / "test_public").is_dir(), "test_public"):
        public = category / "test_public"
        masks = masks_below(public / "ground_truth")
        for split, folder in (("train", category / "train"), ("val", category / "validation"), ("test", public)):
            for path in image_files(folder, recursive=True) if folder.is_dir() else ():
                kind = path.relative_to(folder).parts[0]
                if kind == "ground_truth":
                    continue
                key = place(path, public) if split == "test" else ""
                mask = masks.get(f"{key}_mask") or masks.get(key)
                yield _row(_below(root, path), kind, _below(root, mask if kind != GOOD else None), split=split)


def kolektor2(root: Path) -> Iterator[Row]:
    """KolektorSDD2: `train` and `test` with `N.png` and its mask `N_GT.png`, which is empty for a normal picture."""
    if not any((root / "train").glob("*_GT.png")):
        raise DataError(f"{root} is not KolektorSDD2's folder: it has no train/*_GT.png.")
    for split in ("train", "test"):
        for path in image_files(root / split) if (root / split).is_dir() else ():
            if path.stem.endswith("_GT"):
                continue
            mask = path.with_name(f"{path.stem}_GT.png")
            is_defective = mask.exists() and bool((read_image(mask) >= 128).any())
            label, marked = ("defect", mask) if is_defective else (GOOD, None)
            yield _row(_below(root, path), label, _below(root, marked), split=split)


def labelme(root: Path) -> Iterator[Row]:
    """Pictures with a LabelMe file of the same name beside them where something is marked."""
    found = 0
    for path in image_files(root, recursive=True):
        marks = path.with_suffix(".json")
        found += marks.exists()
        yield _annotated_row(root, path, marks if marks.exists() else None)
    if not found:
        raise DataError(f"{root} has no LabelMe file beside a picture (x.json beside x.png).")


def coco(root: Path, annotations: Path) -> Iterator[Row]:
    """The pictures that a COCO file names, below the root."""
    if not annotations.resolve().is_relative_to(root.resolve()):
        raise DataError(f"annotations={annotations} has to lie in {root}, which the manifest's paths start below.")
    there: dict[str, list[Path]] = {}
    for path in image_files(root, recursive=True):
        there.setdefault(path.name, []).append(path)
    for each in read_annotations(annotations).images:
        # by the end of the path, as the masks are found again
        alike = there.get(PurePosixPath(each.path).name, [])
        exact = [path for path in alike if _below(root, path) == each.path]
        named = exact or [path for path in alike if path.resolve().as_posix().endswith(f"/{each.path}")]
        if len(named) != 1:
            raise DataError(
                f"{annotations}: its image {each.path} is {len(named)} times below {root}; once is needed. Move the "
                "pictures, or change file_name."
            )
        marks = annotations.resolve() if any(region.has_area for region in each.regions) else None
        yield _row(_below(root, named[0]), _kind(each), _below(root, marks))


LAYOUTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "visa": visa,
    "btad": btad,
    "mvtec_ad_2": mvtec_ad_2,
    "mvtec": mvtec,
    "kolektor2": kolektor2,
    "labelme": labelme,
}


def guess(root: Path) -> str | None:
    """The layout of a folder, by what it holds; None where none is recognised."""
    here = [root, *subfolders(root)]
    marks = (
        ("visa", root / "split_csv" / "1cls.csv"),
        *(("mvtec_ad_2", folder / "test_public") for folder in here),
        *(("btad", folder / "train" / "ok") for folder in here),
        *(("mvtec", folder / "train" / GOOD) for folder in here),
    )
    for name, path in marks:
        if path.exists():
            return name
    if any((root / "train").glob("*_GT.png")):
        return "kolektor2"
    beside = (path.with_suffix(".json") for path in image_files(root, recursive=True))
    return "labelme" if any(path.exists() for path in beside) else None


def _annotated_row(root: Path, path: Path, marks: Path | None) -> Row:
    each = read_annotations(marks).images[0] if marks is not None else Annotated("", (), None)
    has_area = any(region.has_area for region in each.regions)
    return _row(_below(root, path), _kind(each), _below(root, marks if has_area else None))


def _kind(each: Annotated) -> str:
    """The kind of defect that covers most of an image; good where nothing is marked."""
    areas: dict[str, float] = {}
    for region in each.regions:
        if not region.is_ignored:
            areas[region.label] = areas.get(region.label, 0.0) + _area(region.outline, region.counts)
    return max(areas, key=lambda label: areas[label]) if areas else GOOD


def _area(outline: Points | None, counts: tuple[int, ...] | None) -> float:
    if outline is None:
        return float(sum((counts or ())[1::2]))
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _products(root: Path, fits: Callable[[Path], bool], what: str) -> list[Path]:
    found = [root] if fits(root) else [folder for folder in subfolders(root) if fits(folder)]
    if not found:
        raise DataError(f"Neither {root} nor a folder in it has {what}.")
    return found


def _below(root: Path, path: Path | None) -> str:
    if path is None:
        return ""
    if not path.is_relative_to(root):
        path, root = path.resolve(), root.resolve()
    return below(path, root)


def _row(path: str, label: str, mask: str | None, split: str = "", folder: str = "") -> Row:
    return {"path": path, "label": label, "mask": mask or "", "group": "", "split": split, "folder": folder}


def _of_record(record: Record) -> Row:
    return _row(record.path, record.defect, record.mask, split=record.part or "")
