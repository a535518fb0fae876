"""A folder of one's own images."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from anomaly_lab.data.layouts import (
    contents,
    images_by_type,
    log,
    make_records,
    masks_below,
    name_list,
    scan_parts,
    subfolders,
)
from anomaly_lab.data.records import GOOD, IMAGE_SUFFIXES, DefectDataset, Record, image_files
from anomaly_lab.errors import ConfigError, DataError

NORMAL_NAMES = ("good", "normal", "ok")  # in any case
MASK_NAMES = ("masks", "mask", "ground_truth")
SYSTEM_FILES = ("thumbs.db", "desktop.ini")


class ImageFolder(DefectDataset):
    """Any folder of images, by the first of these rules that fits.

    1. `train/good` is there: MVTec AD's layout, with `test/<defect>` and `ground_truth/<defect>/<stem>_mask.png`
       where they exist; without `test` the images are divided by the split.
    2. A sub-folder is named good, normal or ok (in any case), or `normal`: its images are normal, and every
       other sub-folder with images is a defect type of that name. Sub-folders are read to any depth. Masks lie
       in a folder masks, mask or ground_truth (or `masks`) that mirrors the others:
       `<masks>/<defect>/<stem>.png` or `..._mask.png`.
    3. Otherwise there are images directly in the folder: all, those of sub-folders too, are normal.

    Hidden files and files that are no images are left out.

    Args:
        root: the folder.
        normal: name of the sub-folder of normal images.
        masks: name of the sub-folder of masks.
        defects: name of a sub-folder whose own sub-folders are the defect types; images directly in it are of the
            type of its name. Other sub-folders are then left out, and masks mirror this one.
        group_regex: what it finds in an image's path below the root (its first group, or the whole match)
            names the physical part that the image shows; images of one part stay on one side of the split.
    """

    name = "folder"
    folder = ""
    how_to_get = "Give your own folder of images: dataset.root=DIR; normal images alone are enough."
    licence = "your own"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        normal: str | None = None,
        masks: str | None = None,
        defects: str | None = None,
        group_regex: str | None = None,
    ) -> None:
        super().__init__(root)
        self.normal, self.masks, self.defects = normal, masks, defects
        try:
            self.group_regex = re.compile(group_regex) if group_regex else None
        except re.error as error:
            raise ConfigError(f"dataset.group_regex={group_regex!r} is not a regular expression: {error}.") from None

    def scan(self) -> list[Record]:
        """All images, with the defect that their folder names and the part that their path names."""
        root = self.root
        train = root / "train"
        if train.is_dir() and any(self._is_normal(folder.name) for folder in subfolders(train)):
            records = scan_parts(self.name, root, root, self._is_normal, self.masks or "ground_truth")
        else:
            records = self._scan_types(root)
        if not records:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"{self.name}: no image in {root} ({suffixes}); {contents(root)}. {self.how_to_get}")
        _report_other_files(self.name, root, records)
        grouped = sorted((self._grouped(record) for record in records), key=lambda record: record.path)
        if self.group_regex and not any(record.group for record in grouped):
            raise ConfigError(
                f"dataset.group_regex={self.group_regex.pattern!r} is found in none of the {len(grouped)} paths, such "
                f"as {grouped[0].path}: no two images would be kept together."
            )
        return grouped

    def _scan_types(self, root: Path) -> list[Record]:
        for option, name in (("normal", self.normal), ("masks", self.masks), ("defects", self.defects)):
            if name is not None and not (root / name).is_dir():
                raise DataError(f"{self.name}: dataset.{option}={name}: {contents(root)}. {self.how_to_get}")
        folders = [folder for folder in subfolders(root) if not self._is_mask(folder.name)]
        directly = list(image_files(root))
        if not any(self._is_normal(folder.name) for folder in folders):
            return self._all_normal(root, directly, folders)
        if directly:
            log.warning("%s: %d images directly in %s, in no sub-folder, are left out.", self.name, len(directly), root)
        base = root
        typed = [folder for folder in folders if self.defects is None or self._is_normal(folder.name)]
        images = images_by_type(typed, self._is_normal)
        if GOOD not in images.values():
            raise DataError(f"{self.name}: the folder of normal images is empty; {contents(root)}.")
        if self.defects is not None:
            base = root / self.defects
            images |= dict.fromkeys(image_files(base), base.name) | images_by_type(subfolders(base))
        masks = next((masks_below(folder) for folder in subfolders(root) if self._is_mask(folder.name)), None)
        return make_records(self.name, root, images, base=base, masks=masks)

    def _all_normal(self, root: Path, directly: list[Path], folders: list[Path]) -> list[Record]:
        below = [path for folder in folders for path in image_files(folder, recursive=True)]
        names = name_list(folder.name for folder in folders)
        if below and not directly:
            raise DataError(
                f"{self.name}: none of the sub-folders of {root} ({names}) is named {', '.join(NORMAL_NAMES)}; say "
                "which one holds the normal images: dataset.normal=NAME."
            )
        if below:
            log.warning(
                "%s: all images of %s count as normal, the %d in its sub-folders (%s) too. If those are defects, "
                "put the normal ones into a sub-folder 'good'.",
                *(self.name, root, len(below), names),
            )
        return make_records(self.name, root, dict.fromkeys(directly + below, GOOD), base=root)

    def _is_normal(self, folder: str) -> bool:
        return folder == self.normal if self.normal is not None else folder.lower() in NORMAL_NAMES

    def _is_mask(self, folder: str) -> bool:
        return folder == self.masks if self.masks is not None else folder.lower() in MASK_NAMES

    def _grouped(self, record: Record) -> Record:
        match = self.group_regex.search(record.path) if self.group_regex else None
        if match is None:
            return record
        return replace(record, group=(match[1] if match.re.groups else match[0]) or "")


def _report_other_files(name: str, root: Path, records: list[Record]) -> None:
    folders = [root / name for name in {record.path.rpartition("/")[0] for record in records}]
    others = [
        path.name
        for folder in folders
        for path in folder.iterdir()
        if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
        if path.name.lower() not in SYSTEM_FILES
    ]
    if others:
        log.warning(
            "%s: %d files among the images are no images and left out (%s).", name, len(others), name_list(others)
        )
