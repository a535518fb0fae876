"""Masks from polygons: of LabelMe, a JSON file for each image, and of COCO, one for many."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import DataError
from anomaly_lab.files import read_json
from anomaly_lab.types import DEFECTIVE, IGNORE

log = logging.getLogger("anomaly_lab")

IGNORED = ("ignore", "ignored")  # labels of what is not to be scored, in any case

Points = npt.NDArray[np.float64]  # (N, 2): x to the right, y down, in pixels


@dataclass(frozen=True, eq=False)
class Region:
    """A marked part of an image: the outline of a polygon, or a mask of its own; neither, for a line or a point."""

    label: str
    outline: Points | None = None
    counts: tuple[int, ...] | None = None  # COCO's run lengths, column by column, the first of them outside
    size: tuple[int, int] | None = None  # of the mask that they are of

    @property
    def has_area(self) -> bool:
        """Whether it says where."""
        return self.outline is not None or self.counts is not None

    @property
    def is_ignored(self) -> bool:
        """Whether it says where not to look."""
        return self.label.lower() in IGNORED


@dataclass(frozen=True, eq=False)
class Annotated:
    """What is marked on one image, whose (height, width) the file may state."""

    path: str
    regions: tuple[Region, ...]
    size: tuple[int, int] | None


def read_polygons(path: Path, *, image: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The mask (H, W) of an image, from a LabelMe file or a COCO file; regions named `ignore` are IGNORE.

    Raises:
        DataError: if the file is neither, names no such image, or states another size.
    """
    found = of_image(path, image)
    if found.size is not None and found.size != tuple(size):
        (height, width), (high, wide) = found.size, size
        raise DataError(
            f"{path}: its outlines are on {width}x{height} pixels (width x height), the image {image.name} has "
            f"{wide}x{high}. Mark the image itself."
        )
    mask = np.zeros(size, np.uint8)
    for region in sorted(found.regions, key=lambda region: region.is_ignored):  # what is ignored lies above
        value = IGNORE if region.is_ignored else DEFECTIVE
        if region.outline is not None:
            _fill(mask, region.outline, value)
        elif region.counts is not None:
            mask[_decoded(region, size, path)] = value
    return mask


def _fill(mask: npt.NDArray[np.uint8], outline: Points, value: int) -> None:
    """Set the pixels of a mask whose centre an outline encloses (even-odd rule), row by row.

    Libraries fill the border's pixels too: a square of 2x2 pixels would take 9.
    """
    (x, y), (next_x, next_y) = outline.T, np.roll(outline, -1, axis=0).T
    first, last = max(0, int(np.floor(y.min()))), min(len(mask), int(np.ceil(y.max())))
    for row in range(first, last):
        centre = row + 0.5
        crossed = (y <= centre) != (next_y <= centre)
        at = np.sort(x[crossed] + (centre - y[crossed]) / (next_y - y)[crossed] * (next_x - x)[crossed])
        for left, right in zip(at[::2], at[1::2], strict=True):
            mask[row, max(0, int(np.ceil(left - 0.5))) : max(0, int(np.ceil(right - 0.5)))] = value


def of_image(path: Path, image: Path) -> Annotated:
    """What a file marks on an image: a LabelMe file of its own, or a COCO file that names it.

    Raises:
        DataError: if it is neither, or names no such image, or several.
    """
    annotated = read_annotations(path)
    if annotated.is_labelme:
        return annotated.images[0]
    whole = image.as_posix()
    named = [each for each in annotated.images if whole == each.path or whole.endswith(f"/{each.path}")]
    # of a.png and b/a.png, the one that says more
    longest = max((len(each.path) for each in named), default=0)
    named = [each for each in named if len(each.path) == longest]
    if len(named) != 1:
        raise DataError(f"{path}: names the image {image.name} {len(named)} times; once is needed.")
    return named[0]


@dataclass(frozen=True, eq=False)
class Annotations:
    """A file of polygons."""

    images: tuple[Annotated, ...]
    is_labelme: bool


def read_annotations(path: Path) -> Annotations:
    """A LabelMe or a COCO file.

    Raises:
        DataError: if it cannot be read, or is neither.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}).") from None
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)  # a COCO file is asked for each of its images
def _read(path: Path, changed: int, size: int) -> Annotations:
    try:
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            return Annotations((_labelme(content, path),), is_labelme=True)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            return Annotations(tuple(_coco(content)), is_labelme=False)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as polygons ({type(error).__name__}: {error}).") from None
    raise DataError(
        f"{path}: neither a LabelMe file (`shapes`) nor a COCO file (`images`, `annotations`, `categories`)."
    )


def _labelme(content: Mapping[str, Any], path: Path) -> Annotated:
    regions, without_area = [], list[str]()
    for shape in content["shapes"]:
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
        kind = shape.get("shape_type", "polygon")
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(0), points.max(0)
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        elif kind == "circle":
            radius = float(np.hypot(*(points[1] - points[0])))
            angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
            points = points[0] + radius * np.column_stack([np.cos(angles), np.sin(angles)])
        elif kind in ("line", "linestrip", "point", "points"):
            without_area.append(kind)
            regions.append(Region(str(shape["label"])))  # it says what is there, not where
            continue
        elif kind != "polygon":
            raise ValueError(f"a shape of the type {kind} is not read: polygon, rectangle and circle are")
        if not np.isfinite(points).all() or len(points) < 3:
            raise ValueError("an outline needs three points")
        regions.append(Region(str(shape["label"]), points))
    if without_area:
        log.warning(
            "%s: %d shapes mark no area (%s): they say that there is a defect, not where.",
            path,
            len(without_area),
            without_area[0],
        )
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    return Annotated(str(content.get("imagePath", "")).replace("\\", "/"), tuple(regions), size)


def _coco(content: Mapping[str, Any]) -> Iterator[Annotated]:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    regions: dict[Any, list[Region]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        number, image_id = annotation.get("id"), annotation["image_id"]
        if image_id not in regions or annotation["category_id"] not in names:
            lacks = f"image {image_id}" if image_id not in regions else f"category {annotation['category_id']}"
            raise ValueError(f"the annotation {number} is of {lacks}, which the file does not list")
        label, segmentation = names[annotation["category_id"]], annotation.get("segmentation")
        if not segmentation:
            raise ValueError(
                f"the annotation {number} of image {image_id} has no segmentation; a box alone is no outline"
            )
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], str):
                raise ValueError("compressed run lengths are not read; export polygons, or plain run lengths")
            high, wide = segmentation["size"]
            counts = tuple(int(count) for count in segmentation["counts"])
            regions[image_id].append(Region(label, counts=counts, size=(int(high), int(wide))))
            continue
        for outline in segmentation:
            points = np.array(outline, np.float64).reshape(-1, 2)
            if not np.isfinite(points).all() or len(points) < 3:
                raise ValueError("an outline needs three points")
            regions[image_id].append(Region(label, points))
    for image in content["images"]:
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        name = PurePosixPath(str(image["file_name"]).replace("\\", "/")).as_posix()
        yield Annotated(name, tuple(regions[image["id"]]), size)


def _decoded(region: Region, size: tuple[int, int], path: Path) -> npt.NDArray[np.bool_]:
    assert region.counts is not None
    counts = np.array(region.counts)
    if region.size != tuple(size) or (counts < 0).any() or counts.sum() != size[0] * size[1]:
        raise DataError(f"{path}: run lengths of another size than the image's.")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[1], size[0]).T
