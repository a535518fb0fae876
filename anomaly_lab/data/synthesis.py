"""Defects synthesised onto normal images, for a segmenter to learn from where nobody has labelled any.

The painters of `val` (painting.py) and of the `synthetic` dataset's test share no kind and no code with these: what is
learnt here is judged by other defects. Whoever changes what they draw raises `_SYNTHESIS` in config.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anomaly_lab.types import DEFECTIVE, IGNORE, NORMAL

VISIBLE = 4.0  # grey levels, averaged over 3x3 pixels: where a channel changes less, nothing is marked
FAINT, STRONG = 0.6, 4.0  # of a defect, in standard deviations of the image it is on
FLAT = 4.0  # grey levels: a calmer image counts as this rough
MORE = 0.6  # probability of a further defect on the same image, and so on

Image = npt.NDArray[np.uint8]  # (H, W, 3)
Pixels = npt.NDArray[np.float32]  # (H, W, 3) grey levels
Field = npt.NDArray[np.float32]  # (H, W)


@dataclass(frozen=True)
class Synthesis:
    """Puts defects of these kinds (names in `DEFECTS`) onto a share of the normal images that it is given."""

    kinds: Sequence[str]
    share: float

    def __call__(
        self, image: Image, mask: Image, others: Callable[[int], Image], count: int, rng: np.random.Generator
    ) -> tuple[Image, Image]:
        """The image, perhaps damaged, and its mask (H, W), in which what was to be ignored still is.

        Args:
            others: gives one of `count` normal images, of any size; called only for an image that is to be damaged.
        """
        if rng.random() >= self.share:
            return image, mask
        other = _piece(others(int(rng.integers(count))), image.shape[:2], rng)
        damaged, marked = synthesise(image, other, self.kinds, rng)
        return damaged, np.where(mask == IGNORE, mask, marked)


def synthesise(image: Image, other: Image, kinds: Sequence[str], rng: np.random.Generator) -> tuple[Image, Image]:
    """A copy of a normal image with one defect or more, and their mask.

    Args:
        image: uint8 (H, W, 3); one with equal channels keeps them equal if the other has.
        other: another normal image of the same size, to take pieces from.
        kinds: of the defects to draw from, names in `DEFECTS`.
        rng: all that the defects depend on beside the images.

    Returns:
        The image, uint8 (H, W, 3), and its mask, uint8 (H, W): DEFECTIVE where it was visibly changed, perhaps nowhere.
    """
    source, damaged = other.astype(np.float32), image
    while True:
        damage = DEFECTS[kinds[int(rng.integers(len(kinds)))]]
        damaged = _as_image(damage(rng, damaged.astype(np.float32), source))
        if rng.random() > MORE:
            break
    change = cv2.blur(np.abs(damaged.astype(np.float32) - image), (3, 3)).max(axis=2)
    return damaged, np.where(change >= VISIBLE, np.uint8(DEFECTIVE), np.uint8(NORMAL))


def _piece(image: Image, size: Sequence[int], rng: np.random.Generator) -> Image:
    """A part of this size (H, W) of an image, which is enlarged if it is smaller."""
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        return np.asarray(cv2.resize(image, (size[1], size[0])), np.uint8)
    top, left = (int(rng.integers(has - wants + 1)) for has, wants in zip((height, width), size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def _texture(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """Blobs cut out of noise, filled with a foreign texture that shows through more or less (DRAEM; Zavrtanik, Kristan
    and Skočaj, ICCV 2021, Eq. 1 and 2, whose textures are of another dataset)."""
    noise = _noise(rng, image.shape, cells=int(rng.integers(2, 9)))
    share = _between(rng, 0.0007, 0.1)  # of the image
    region = _blurred((noise > np.quantile(noise, 1 - share)).astype(np.float32), 0.7)[..., None]
    foreign = _turned(rng, other) if rng.random() < 0.7 else np.full_like(image, image.mean())
    foreign = foreign + _strength(rng, image)
    return image + region * rng.uniform(0.3, 1.0) * (foreign - image)


def _patch(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """A rectangle of the image itself, in another place, at another angle and of another brightness; wide, or thin as a
    scar (CutPaste; Li, Sohn, Yoon and Pfister, CVPR 2021, sections 2.1 and 2.2)."""
    moved, region = _moved_piece(rng, image, thin=rng.random() < 0.5)
    brighter = rng.normal(0, 0.5) * _spread(image)
    return np.where(region[..., None], moved * rng.uniform(0.8, 1.2) + brighter, image)


def _blend(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """A piece of another image whose edges are made to fit by Poisson blending (NSA; Schlüter, Tan, Hou and Kainz, ECCV
    2022, section 3)."""
    moved, region = _moved_piece(rng, other, thin=False)
    # OpenCV takes an edge off again
    region = cv2.dilate(region.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    region[[0, -1]] = region[:, [0, -1]] = False  # the blending wants a border around
    if not region.any():
        return image
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    way = cv2.MIXED_CLONE if rng.random() < 0.5 else cv2.NORMAL_CLONE
    centre = left + width // 2, top + height // 2
    blended = cv2.seamlessClone(_as_image(moved), _as_image(image), region.astype(np.uint8) * 255, centre, way)
    return blended.astype(np.float32)


def _crack(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """A line, hair-thin or gaping, that wanders, branches and fades, mostly darker than what it runs through."""
    height, width = image.shape[:2]
    line = np.zeros((height, width), np.float32)
    side = min(height, width)
    gape = max(1, round(_between(rng, 0.006, 0.06) * side))
    walks = [(rng.uniform(0, 1, 2) * (width, height), rng.uniform(-np.pi, np.pi), _between(rng, 0.05, 0.9) * side)]
    while walks:
        place, angle, left = walks.pop()
        step, bend, ink = side / 40, rng.uniform(0.1, 0.5), 1.0
        while left > 0:
            angle += rng.normal(0, bend)
            ink = float(np.clip(ink + rng.normal(0, 0.15), 0.4, 1))
            following = place + step * np.array([np.cos(angle), np.sin(angle)])
            segment = np.zeros((height, width), np.uint8)
            start, end = ((16 * point).astype(int).tolist() for point in (place, following))
            cv2.line(segment, start, end, (255,), gape, cv2.LINE_AA, shift=4)
            np.maximum(line, segment * np.float32(ink / 255), out=line)
            place, left = following, left - step
            if rng.random() < 0.03 and len(walks) < 3:
                walks.append((place, angle + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2), left * rng.uniform(0.3, 0.8)))
    soft = _blurred(line, rng.uniform(0.4, 1.0))
    sign = -1 if rng.random() < 0.85 else 1
    changed: Pixels = image + sign * (soft / max(float(soft.max()), 1e-6))[..., None] * abs(_strength(rng, image))
    return changed


def _spots(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """Pits, pores or specks that lie together: round, soft at their edges, some with a bright rim."""
    height, width = image.shape[:2]
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centre, reach = rng.uniform(0, 1, 2) * (height, width), rng.uniform(0.02, 0.2) * side
    depth = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 7))):
        row, column = centre + rng.normal(0, reach, 2)
        radius, squeeze = max(1.2, _between(rng, 0.008, 0.05) * side), rng.uniform(0.7, 1.4)
        distance = np.hypot((y - row) * squeeze, (x - column) / squeeze) / radius
        pit = np.clip((1.3 - distance) / 0.6, 0, 1)
        rim = np.exp(-(((distance - 1.4) / 0.3) ** 2)) * rng.choice([0, 0.5])
        depth = np.where(np.abs(pit - rim) > np.abs(depth), pit - rim, depth)
    changed: Pixels = image + depth[..., None] * _strength(rng, image)
    return changed


def _light(rng: np.random.Generator, image: Pixels, other: Pixels) -> Pixels:
    """A part of the image under more or less light, its border soft or sharp."""
    noise = _noise(rng, image.shape, cells=int(rng.integers(1, 3)))
    level, softness = np.quantile(noise, 1 - _between(rng, 0.05, 0.4)), _between(rng, 0.03, 1.0)
    share = np.clip((noise - level) / softness, 0, 1)[..., None]
    changed: Pixels = image + share * _strength(rng, image) * (image / max(float(image.mean()), 1.0))
    return changed


Painter = Callable[[np.random.Generator, Pixels, Pixels], Pixels]

DEFECTS: dict[str, Painter] = {
    "texture": _texture,
    "patch": _patch,
    "blend": _blend,
    "crack": _crack,
    "spots": _spots,
    "light": _light,
}
KINDS = tuple(DEFECTS)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform, so that small ones are as frequent as large ones."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _spread(image: Pixels) -> float:
    return max(float(image.std()), FLAT)


def _strength(rng: np.random.Generator, image: Pixels) -> float:
    """How many grey levels a defect differs at most, to either side."""
    return float(rng.choice([-1, 1])) * _between(rng, FAINT, STRONG) * _spread(image)


def _noise(rng: np.random.Generator, shape: Sequence[int], cells: int) -> Field:
    """Smooth noise (H, W) about 0, of `cells` hills to a side and finer ones on them."""
    size = shape[1], shape[0]
    layers = [
        cv2.resize(rng.normal(0, weight, (n + 3, n + 3)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        for n, weight in ((cells, 1.0), (2 * cells, 0.5), (4 * cells, 0.25))
    ]
    total: Field = np.sum(layers, axis=0, dtype=np.float32)
    return total


def _blurred(field: Field, sigma: float) -> Field:
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def _turned(rng: np.random.Generator, image: Pixels) -> Pixels:
    """The image seen from another side, as far as its shape allows."""
    square = image.shape[0] == image.shape[1]
    turned = np.rot90(image, int(rng.integers(4)) if square else 2 * int(rng.integers(2)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _moved_piece(rng: np.random.Generator, source: Pixels, *, thin: bool) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """The source moved and turned, and the rectangle of it to be seen (H, W)."""
    height, width = source.shape[:2]
    side = min(height, width)
    if thin:
        size, least = (_between(rng, 0.015, 0.06) * side, _between(rng, 0.05, 0.3) * side), 2.0
    else:
        area, aspect = _between(rng, 0.001, 0.08) * side * side, _between(rng, 0.3, 3.3)
        size, least = ((area * aspect) ** 0.5, (area / aspect) ** 0.5), 5.0
    start, place = (rng.uniform(0, 1, 2) * (width, height) for _ in range(2))
    angle = rng.uniform(-45, 45)
    motion = cv2.getRotationMatrix2D(tuple(start.tolist()), angle, 1.0)
    motion = np.column_stack([motion[:, :2], motion[:, 2] + place - start])
    moved = cv2.warpAffine(source, motion, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    corners = cv2.boxPoints((tuple(place.tolist()), (max(size[0], least), max(size[1], least)), -angle))
    region = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), corners.round().astype(np.int32), 1)
    return np.asarray(moved, np.float32), np.asarray(region, bool)


def _as_image(pixels: npt.NDArray[np.floating]) -> Image:
    image: Image = np.clip(pixels, 0, 255).round().astype(np.uint8)
    return image
