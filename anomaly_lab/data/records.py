"""A dataset as a list of records: which files there are, before any of them is opened."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from anomaly_lab.errors import DataError

GOOD = "good"  # the `defect` of a normal image
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
PARTS = ("train", "val", "test")  # into which a publisher may divide a dataset
DATA_VARIABLE = "ANOMALY_LAB_DATA"  # the folder that holds the datasets' own folders


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a dataset.

    `path` and `mask` are posix paths below the dataset's root, so that a split does not depend on
    where the data lies. Records of one `group` show the same physical part and stay on one side
    of every split; an empty group is a part of its own.
    """

    path: str
    defect: str = GOOD
    mask: str | None = None
    group: str = ""
    part: str | None = None  # one of PARTS, where the publisher divides the dataset
    painted: str | None = None  # the kind of defect to paint onto a copy of the image

    @property
    def label(self) -> int:
        """1 if the image is defective, 0 if it is normal."""
        return int(self.defect != GOOD)

    @property
    def part_of(self) -> str:
        """The physical part that the image shows."""
        return self.group or self.path


class DefectDataset(ABC):
    """A dataset's folder layout. A subclass declares how to scan it, and little else."""

    name: ClassVar[str]
    folder: ClassVar[str]  # its folder's name below $ANOMALY_LAB_DATA
    inside: ClassVar[str] = ""  # the part of that folder it needs
    how_to_get: ClassVar[str]  # one or two sentences for whoever does not have it
    licence: ClassVar[str]
    marker: ClassVar[str] = ""  # a pattern below its root that is in any archive of it, and in no other
    address: ClassVar[str | None] = None  # of such an archive, as published
    files: ClassVar[Mapping[str, tuple[int, str]]] = {}  # of folders, how many files and a hash of what they hold

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._given_root = root

    @property
    def flips(self) -> str:
        """The random flips after which an image is still one of its kind: none, horizontal, vertical or both."""
        return "both"

    @property
    def is_texture(self) -> bool:
        """Whether any part of an image looks like any other."""
        return False

    @property
    def root(self) -> Path:
        """The dataset's own folder: the one given, or the one found below $ANOMALY_LAB_DATA.

        Raises:
            DataError: if there is none; the text says how to get the data.
        """
        parent = os.environ.get(DATA_VARIABLE)
        if self._given_root is not None:
            root, origin = Path(self._given_root).expanduser(), "dataset.root"
        elif parent and self.folder:
            root, origin = Path(parent).expanduser() / self.folder, f"${DATA_VARIABLE}"
        else:
            below = f", or {DATA_VARIABLE} to the folder that holds {self.folder}" if self.folder else ""
            raise DataError(f"{self.name}: no folder given. Set dataset.root=DIR{below}. {self.how_to_get}")
        if not root.is_dir():
            raise DataError(f"{self.name}: {root} (from {origin}) is not a folder. {self.how_to_get}")
        return root

    @abstractmethod
    def scan(self) -> list[Record]:
        """All records, sorted by path; opens no image.

        Raises:
            DataError: if the folder is missing, or holds none of what the layout promises.
        """


def image_files(folder: Path, *, recursive: bool = False) -> Iterator[Path]:
    """The image files of a folder, sorted; hidden ones (`.x`, `._x`) and other files are left out.

    A link to nothing counts: whoever reads it says so.
    """
    for path in sorted(files_below(folder) if recursive else folder.iterdir()):
        if is_named_image(path) and not path.name.startswith(".") and may_be_read(path):
            yield path


def is_named_image(path: Path) -> bool:
    """Whether a file is called as an image is."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def may_be_read(path: Path) -> bool:
    """Whether it is a file, or a link to nothing, and no folder, pipe or device."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its sub-folders, linked ones too, but for what is hidden.

    Raises:
        DataError: if a sub-folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Check its permissions.")

    seen = set()  # a link may lead back up
    for base, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(base).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # linked ones last: a folder goes by its own name if it has one here
        folders[:] = sorted(
            (f for f in folders if not f.startswith(".")), key=lambda f: (Path(base, f).is_symlink(), f)
        )
        yield from (Path(base, name) for name in names if not name.startswith("."))
