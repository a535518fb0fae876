"""`synthetic`: four generated surfaces with five kinds of defect, the dataset that needs no download.

Version 1 is fixed: its numbers are comparable only as long as no image changes. Its kinds of defect, and their code,
are those of no other painter in the package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomaly_lab.data.layouts import scan_parts
from anomaly_lab.data.records import GOOD, DefectDataset, Record
from anomaly_lab.data.surfaces import SIZE, TEXTURES, Field, Surface, make_surface
from anomaly_lab.errors import DataError

VERSION = 1
GRADES = (1, 2, 3, 4)  # of a defect's strength, faint to strong
NORMAL_COUNT, TEST_NORMAL_COUNT, COUNT_PER_GRADE = 230, 50, 5  # val's 30 normal images are cut from the 230
VERSION_FILE = "synthetic-version.txt"


@dataclass(frozen=True)
class Drawing:
    """One generated image with the mask of its defect."""

    image: npt.NDArray[np.uint8]  # (SIZE, SIZE, 3)
    mask: npt.NDArray[np.uint8]  # (SIZE, SIZE), 1 where the defect is
    texture: str
    defect: str
    grade: int  # 1 to 4, 0 for a normal image


# The defects: each returns the changed heights and a weight in [0, 1] that is 0 where nothing changes.


def _place(rng: np.random.Generator, surface: Surface, turn: float) -> tuple[Field, Field]:
    """Coordinates (b, a) in pixels around a random centre; a runs along the grain turned by `turn` radians."""
    row, column = rng.uniform(0.22 * SIZE, 0.78 * SIZE, size=2).astype(int)
    v, u = surface.v - surface.v[row, column], surface.u - surface.u[row, column]
    return np.cos(turn) * v - np.sin(turn) * u, np.sin(turn) * v + np.cos(turn) * u


def _step(x: Field) -> Field:
    """0 below 0, 1 above 1, smooth between (3x^2 - 2x^3)."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _tear(rng: np.random.Generator, surface: Surface, grade: int) -> tuple[Field, Field]:
    """A lens-shaped opening, dark inside, with a raised lip."""
    b, a = _place(rng, surface, rng.uniform(-np.pi, np.pi))
    length, width = rng.uniform(7, 10) + 1.5 * grade, rng.uniform(1.5, 2.2) + 0.4 * grade
    bend = rng.uniform(-0.25, 0.25) * width / length
    inside = width * (1 - (a / length) ** 2) - np.abs(b - bend * a * a / 4)  # > 0 in the opening
    hole = _step(inside + 0.5)
    lip = _step(1 - np.abs(inside + 1.0) / 1.5) * (np.abs(a) < length)
    depth = (1.8, 2.1, 2.5, 3.0)[grade - 1]
    heights = surface.sample()
    return heights * (1 - 0.7 * hole) - depth * hole + 0.6 * depth * lip, np.maximum(hole, lip)


def _thread(rng: np.random.Generator, surface: Surface, grade: int) -> tuple[Field, Field]:
    """A curved fibre lying on the surface, bright on one flank and dark on the other."""
    from scipy.interpolate import CubicSpline

    b, a = _place(rng, surface, rng.uniform(-np.pi, np.pi))
    half = rng.uniform(13, 18) + 2 * grade
    knots = np.linspace(-half, half, 4)
    path = CubicSpline(knots, rng.normal(0, half / 5, size=4))
    at = np.clip(a, -half, half)
    slope = path(at, 1)
    offset = (b - path(at)) / np.sqrt(1 + slope**2)  # signed distance to first order
    width = rng.uniform(1.4, 1.9) + 0.1 * grade
    ends = _step((half - np.abs(a)) / 2)
    core = np.exp(-((offset / width) ** 2)) * ends
    shadow = np.exp(-(((offset - 1.6 * width) / width) ** 2)) * ends
    height = (1.7, 2.0, 2.3, 2.7)[grade - 1]
    return surface.sample() * (1 - 0.5 * core) + height * (core - 0.6 * shadow), np.maximum(core, shadow)


def _blob(rng: np.random.Generator, b: Field, a: Field, radius: float, aspect: float) -> Field:
    """A weight in [0, 1] for a rounded region with a lobed outline, smooth at its edge."""
    theta = np.arctan2(b * aspect, a)
    outline = radius * (
        1 + sum(rng.uniform(-0.12, 0.12) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    )
    return _step((outline - np.hypot(a, b * aspect)) / 3.0)


def _smear(rng: np.random.Generator, surface: Surface, grade: int) -> tuple[Field, Field]:
    """A region wiped across the grain: its heights are averaged along one direction."""
    turn = np.pi / 2 + rng.uniform(-0.4, 0.4)
    b, a = _place(rng, surface, turn)
    weight = _blob(rng, b, a, rng.uniform(12, 16) + 1.5 * grade, rng.uniform(1.1, 1.6))
    reach = (4.5, 5.5, 6.5, 8.0)[grade - 1]
    steps = np.linspace(-reach, reach, 9)
    wiped = np.mean([surface.sample(np.sin(turn) * step, np.cos(turn) * step) for step in steps], axis=0)
    heights = surface.sample()
    return heights + weight * (wiped - heights), weight


def _warp(rng: np.random.Generator, surface: Surface, grade: int) -> tuple[Field, Field]:
    """A region twisted and stretched about its centre."""
    b, a = _place(rng, surface, 0.0)
    radius = rng.uniform(13, 16) + 1.5 * grade
    fall = _step(1 - np.hypot(a, b) / radius)
    twist = rng.choice([-1, 1]) * (1.0, 1.2, 1.4, 1.7)[grade - 1] * fall
    pull = (1.0, 1.2, 1.4, 1.7)[grade - 1] * fall
    dv = (np.cos(twist) * b - np.sin(twist) * a) * (1 + pull) - b
    du = (np.sin(twist) * b + np.cos(twist) * a) * (1 + pull) - a
    return surface.sample(dv, du), _step(np.hypot(dv, du) / 0.8)


def _slip(rng: np.random.Generator, surface: Surface, grade: int) -> tuple[Field, Field]:
    """A band across the grain, shifted along itself, with a shadow at its seams."""
    turn = np.pi / 2 + rng.uniform(-0.15, 0.15)
    b, a = _place(rng, surface, turn)
    half, length = rng.uniform(3.5, 5.0) + 0.6 * grade, rng.uniform(18, 24) + 3 * grade
    weight = _step((half - np.abs(b)) / 1.5) * _step((length - np.abs(a)) / 8)
    shift = rng.choice([-1, 1]) * (3.2, 3.6, 4.0, 4.6)[grade - 1] * weight
    shadow = (1.0, 1.2, 1.5, 1.8)[grade - 1] * 4 * weight * (1 - weight)
    return surface.sample(np.sin(turn) * shift, np.cos(turn) * shift) - shadow, _step(np.abs(shift) / 0.8)


DEFECTS: dict[str, Callable[[np.random.Generator, Surface, int], tuple[Field, Field]]] = {
    "slip": _slip,
    "smear": _smear,
    "tear": _tear,
    "thread": _thread,
    "warp": _warp,
}


def draw(key: Sequence[int], texture: str, defect: str = GOOD, grade: int = 0) -> Drawing:
    """One image; with `defect` left out, the same image before it was damaged.

    Args:
        key: seeds of the image. Surface, camera and defect have a stream each, so the defect alters nothing else.
        texture: a name in TEXTURES.
        defect: a name in DEFECTS, or "good".
        grade: the defect's strength, 1 to 4.
    """
    from scipy import ndimage

    material, camera, damage = (np.random.default_rng([VERSION, stream, *key]) for stream in range(3))
    surface = make_surface(material, texture)
    colour = np.array(TEXTURES[texture].colour) * camera.uniform(0.75, 1.25) * camera.normal(1, 0.02, size=3)
    contrast, blur = camera.uniform(0.13, 0.26), camera.uniform(0.4, 0.9)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    gradient, vignette = camera.uniform(-0.35, 0.35, size=2), camera.uniform(0, 0.5)
    light = 1 + gradient[0] * y + gradient[1] * x - vignette * (y * y + x * x)
    noise = camera.normal(0, camera.uniform(0.004, 0.014), size=(SIZE, SIZE, 3))

    heights, mask = ndimage.gaussian_filter(surface.sample(), blur), np.zeros((SIZE, SIZE), dtype=np.uint8)
    if defect != GOOD:
        damaged, weight = DEFECTS[defect](damage, surface, grade)
        mask = (ndimage.gaussian_filter(weight, blur) >= 0.1).astype(np.uint8)
        heights = np.where(mask, ndimage.gaussian_filter(damaged, blur), heights)
    seen = (light * (1 + contrast * heights))[..., None] * colour + noise
    return Drawing((np.clip(seen, 0, 1) * 255).round().astype(np.uint8), mask, texture, defect, grade)


def generate(count: int, seed: int, *, defective: bool = True) -> Iterator[Drawing]:
    """Further images of the same kinds, none of which is in the published set: textures, defects and grades in turn."""
    textures = sorted(TEXTURES)
    combinations = [(defect, grade) for grade in GRADES for defect in sorted(DEFECTS)] if defective else [(GOOD, 0)]
    for index in range(count):
        # 20 combinations and 4 textures share a factor: the shift brings every pair about
        shift = index // len(combinations) if defective else 0
        texture = textures[(index + shift) % len(textures)]
        yield draw((1, seed, index), texture, *combinations[index % len(combinations)])


def published() -> Iterator[tuple[str, Drawing]]:
    """Version 1's images, each with its part: 230 normal in "train", 50 normal and 100 defective in "test"."""
    textures = sorted(TEXTURES)
    for index in range(NORMAL_COUNT):
        yield "train", draw((0, 0, index), textures[index % len(textures)])
    for index in range(TEST_NORMAL_COUNT):
        yield "test", draw((0, 1, index), textures[index % len(textures)])
    for number, defect in enumerate(sorted(DEFECTS)):
        for index in range(len(GRADES) * COUNT_PER_GRADE):
            grade = GRADES[index // COUNT_PER_GRADE]
            yield "test", draw((0, 2 + number, index), textures[index % len(textures)], defect, grade)


class Synthetic(DefectDataset):
    """The generated dataset, written when first used; the split cuts `val` from its training images.

    Layout, as MVTec AD's: `train/good`, `test/good`, `test/<defect>` and `ground_truth/<defect>/<stem>_mask.png`.
    A stem is a number, the texture and, for a defect, its grade.
    """

    name = "synthetic"
    folder = ""
    how_to_get = "It is generated when first used: leave dataset.root out, or name a folder that is new or empty."
    licence = "Apache-2.0, as the code that draws it"

    @property
    def root(self) -> Path:
        """The folder given, or one of this version in the machine's cache; filled if it is new or empty.

        Raises:
            DataError: if the folder holds something else, or cannot be written.
        """
        if self._given_root is not None:
            root = Path(self._given_root).expanduser()
        else:
            from anomaly_lab.data.store import cache_dir

            root = cache_dir() / f"synthetic-v{VERSION}"
        if not _complete(root):
            if root.is_dir() and any(root.iterdir()) and not _complete(root):  # again: another job may have filled it
                raise DataError(f"{self.name}: {root} holds something else. {self.how_to_get}")
            try:
                _write(root)
            except OSError as error:
                raise DataError(
                    f"{self.name}: {root} cannot be filled ({error.strerror}). {self.how_to_get}"
                ) from error
        return root

    def scan(self) -> list[Record]:
        """All images, sorted by path.

        Raises:
            DataError: if the folder is of another version, or has lost images.
        """
        root = self.root
        version = (root / VERSION_FILE).read_text(encoding="utf-8").strip()
        records = sorted(scan_parts(self.name, root, root), key=lambda record: record.path)
        expected = NORMAL_COUNT + TEST_NORMAL_COUNT + len(DEFECTS) * len(GRADES) * COUNT_PER_GRADE
        if version != str(VERSION) or len(records) != expected:
            raise DataError(
                f"{self.name}: {root} holds {len(records)} images of version {version}, not {expected} of version "
                f"{VERSION}. Delete the folder; it is generated anew."
            )
        return records


def _complete(root: Path) -> bool:
    return (root / VERSION_FILE).is_file()


def _write(root: Path) -> None:
    """Fill a new or empty folder, whole or not at all; of several jobs that do so at once, the first one counts."""
    from PIL import Image

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        made = Path(temporary) / "made"  # not the temporary folder itself, which others may not read
        for number, (part, drawing) in enumerate(published()):
            grade = f"_grade{drawing.grade}" if drawing.grade else ""
            stem = f"{number:03d}_{drawing.texture}{grade}"
            image = made / part / drawing.defect / f"{stem}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing.image).save(image, compress_level=1)  # noise hardly shrinks, and it takes time
            if drawing.grade:
                mask = made / "ground_truth" / drawing.defect / f"{stem}_mask.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawing.mask * np.uint8(255)).save(mask)
        (made / VERSION_FILE).write_text(f"{VERSION}\n", encoding="utf-8")
        try:
            made.replace(root)
        except OSError:
            if not _complete(root):
                raise
