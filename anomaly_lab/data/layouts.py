"""What the folder layouts of the datasets have in common: masks beside images, and what to tell a person."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from anomaly_lab.data.records import GOOD, Record, image_files
from anomaly_lab.errors import DataError

log = logging.getLogger("anomaly_lab")

NAMED = 20  # how many names a message lists before it only counts them


def name_list(names: Iterable[str]) -> str:
    """Names, sorted, at most `NAMED` of them."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + rest


def contents(folder: Path) -> str:
    """What a folder holds, for an error message."""
    names = [path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith(".")]
    return f"{folder} holds {name_list(names)}" if names else f"{folder} is empty"


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without the hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def match_masks(images: Iterable[Path], base: Path, masks: Mapping[str, Path]) -> dict[Path, Path]:
    """Each image's mask, where it has one.

    Args:
        images: image files; those that are not below `base` have no mask.
        masks: mask files by their place below the masks' folder, without suffix; an image's mask has the
            same place, or that and `_mask`.
    """
    matched = {}
    for image in images:
        if not image.is_relative_to(base):
            continue
        key = place(image, base)
        mask = masks.get(key) or masks.get(f"{key}_mask")
        if mask is not None:
            matched[image] = mask
    return matched


def masks_below(folder: Path) -> dict[str, Path]:
    """The mask files of a folder and its sub-folders, as `match_masks` wants them; none if there is no folder."""
    return {place(path, folder): path for path in image_files(folder, recursive=True)} if folder.is_dir() else {}


def place(path: Path, base: Path) -> str:
    """A file's posix path below `base`, without its suffix."""
    return below(path, base).removesuffix(path.suffix)


def below(path: Path, base: Path) -> str:
    """A file's posix path below `base`.

    Raises:
        ValueError: if it is not below it.
    """
    text, start = path.as_posix(), f"{base.as_posix()}/"
    if text.startswith(start):  # of a million files, a third of the time that the next line takes
        return text.removeprefix(start)
    return path.relative_to(base).as_posix()


def make_records(
    name: str,
    root: Path,
    images: Mapping[Path, str],
    *,
    base: Path,
    masks: Mapping[str, Path] | None = None,
    part: str | None = None,
) -> list[Record]:
    """Records of images whose defect is known, each defective one with its mask; a warning names what is unmatched.

    Args:
        name: the dataset's, for the warning.
        images: the defect of each image file.
        base: the folder that the masks' folder mirrors.
        masks: see `match_masks`; None where the dataset has no masks at all.
    """
    matched = match_masks(images, base, masks) if masks else {}
    if masks is not None:
        used = set(matched.values())
        warn_unmatched(
            name,
            [below(p, root) for p, defect in images.items() if defect != GOOD and p not in matched],
            [below(p, root) for p in masks.values() if p not in used],
        )
    return [
        Record(
            path=below(path, root),
            defect=defect,
            mask=below(matched[path], root) if defect != GOOD and path in matched else None,
            part=part,
        )
        for path, defect in sorted(images.items())
    ]


def warn_unmatched(name: str, images: list[str], masks: list[str]) -> None:
    """Log, in one line, the defective images without a mask and the masks without an image."""
    said = []
    if images:
        said.append(
            f"{len(images)} defective images have no mask, so their pixels are not scored ({name_list(images)})"
        )
    if masks:
        said.append(f"{len(masks)} masks have no image and are left out ({name_list(masks)})")
    if said:
        log.warning("%s: %s.", name, "; ".join(said))


def warn_other_count(name: str, records: list[Record], normal: int, defective: int) -> None:
    """Log a warning if a dataset has not the number of images that it was published with."""
    found_defective = sum(record.label for record in records)
    found_normal = len(records) - found_defective
    if (found_normal, found_defective) != (normal, defective):
        log.warning(
            "%s: %d normal and %d defective images found, %d and %d expected; results are not comparable to published "
            "ones.",
            *(name, found_normal, found_defective, normal, defective),
        )


def is_good(folder: str) -> bool:
    """Whether a folder of that name holds the normal images of MVTec AD's layout."""
    return folder == GOOD


def scan_parts(
    name: str, root: Path, base: Path, is_normal: Callable[[str], bool] = is_good, masks: str = "ground_truth"
) -> list[Record]:
    """Records of MVTec AD's layout: `train/good`, `test/<defect>`, `ground_truth/<defect>/<stem>_mask.png`.

    Without images in `test` nothing is divided yet, and the records' `part` is None.

    Args:
        root: the dataset's folder, which the records' paths start below.
        base: the folder that holds `train`; `root` or a folder in it.
        is_normal: whether a folder of that name holds normal images.
        masks: the name of the masks' folder.

    Raises:
        DataError: if there is no normal training image.
    """
    train_folders = [folder for folder in subfolders(base / "train") if is_normal(folder.name)]
    train = images_by_type(train_folders, is_normal)
    if not train:
        raise DataError(f"{name}: no image in {name_list(map(str, train_folders))}; it holds those to train on.")
    test_base = base / "test"
    test = images_by_type(subfolders(test_base) if test_base.is_dir() else [], is_normal)
    records = make_records(name, root, train, base=base, part="train" if test else None)
    return records + make_records(name, root, test, base=test_base, masks=masks_below(base / masks), part="test")


def images_by_type(folders: Iterable[Path], is_normal: Callable[[str], bool] = is_good) -> dict[Path, str]:
    """The defect of each image in these folders and below: `GOOD`, or the folder's name.

    Raises:
        DataError: if a folder of defective images has the name that stands for normal ones.
    """
    images: dict[Path, str] = {}
    for folder in folders:
        normal = is_normal(folder.name)
        if folder.name == GOOD and not normal:
            raise DataError(f"{folder} cannot be a defect type: {GOOD!r} stands for normal images. Rename it.")
        images |= dict.fromkeys(image_files(folder, recursive=True), GOOD if normal else folder.name)
    return images
