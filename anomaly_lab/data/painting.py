"""Defects painted onto held-out normal images, for `val` only: for choices and thresholds, never for training or test.

A threshold chosen on defects that the model was trained on, or is tested on, would flatter it. So the painters of
training, of `val` and of the `synthetic` dataset's test share no kind and no code: this file imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from anomaly_lab.errors import ConfigError, nearest

VISIBLE = 3  # grey levels: a smaller change of every channel is taken back, so the mask is all that changed
FAINT, STRONG = 18.0, 80.0  # grey levels at a defect's strongest point

Image = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float64]  # (H, W)


def _local_frame(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Field, Field]:
    """Coordinates (b, a) around a random centre and at a random angle; 1 is the image's shorter side."""
    y, x = np.mgrid[: shape[0], : shape[1]] / min(shape)
    y, x = y - rng.uniform(0.2, 0.8) * y.max(), x - rng.uniform(0.2, 0.8) * x.max()
    angle = rng.uniform(-np.pi, np.pi)
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def _scratch(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """A thin, slightly bent line that fades at its ends, with a counter-coloured flank."""
    b, a = _local_frame(rng, shape)
    half, bend = rng.uniform(0.08, 0.3), rng.uniform(-0.5, 0.5)
    width = max(rng.uniform(0.003, 0.007), 0.8 / min(shape))  # under a pixel the line would break up
    across = (b - bend * a * a) / width
    pressure = np.clip((half - np.abs(a)) / (0.35 * half), 0, 1)
    return pressure * (np.exp(-(across**2)) - 0.35 * np.exp(-((across - 2.2) ** 2)))


def _stain(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """A flat patch with an irregular outline, most intense at its rim as a dried drop is."""
    b, a = _local_frame(rng, shape)
    radius, aspect = rng.uniform(0.05, 0.16), rng.uniform(0.6, 1.0)
    angle = np.arctan2(b / aspect, a)
    lobes = [rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5, 7)]
    depth = 1 + np.sum(lobes, axis=0) - np.hypot(a, b / aspect) / radius  # 0 on the outline, rising inwards
    soft = max(rng.uniform(0.1, 0.3), 1.5 / (radius * min(shape)))
    inside = np.clip(depth / soft, 0, 1)
    rim = inside * np.exp(-((depth - soft) ** 2) / (2 * soft * soft))
    profile: Field = 0.65 * inside + 0.35 * rim
    return profile


def _dent(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """A shallow hollow in slanting light: one slope brighter, the other darker."""
    b, a = _local_frame(rng, shape)
    radius, aspect = max(rng.uniform(0.03, 0.09), 2 / min(shape)), rng.uniform(0.6, 1.0)
    bowl = np.exp(-((a / radius) ** 2 + (b / (aspect * radius)) ** 2) / 2)
    slope: Field = (a / radius) * bowl * np.exp(0.5)  # the bowl's derivative, its extreme scaled to 1
    return slope


PAINTERS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Field]] = {
    "scratch": _scratch,
    "stain": _stain,
    "dent": _dent,
}
KINDS = tuple(PAINTERS)


def paint(image: Image, kind: str, seed: int) -> tuple[Image, Image]:
    """A copy of the image with one defect of a random place, size and strength, and the defect's mask.

    Args:
        image: uint8 (H, W, 3); an image with equal channels keeps them equal.
        kind: "scratch", "stain" or "dent".
        seed: with the kind and the image's size, all that the defect depends on; it also draws the strength,
            FAINT to STRONG grey levels.

    Returns:
        The image, uint8 (H, W, 3), and its mask, uint8 (H, W): 1 exactly where the copy differs, which is by
        VISIBLE grey levels or more in some channel, and 0 elsewhere.

    Raises:
        ConfigError: if the kind is unknown.
    """
    if kind not in PAINTERS:
        raise ConfigError(f"There is no painted defect {kind!r}. {nearest(kind, KINDS)}")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    strength = np.exp(rng.uniform(np.log(FAINT), np.log(STRONG)))  # as eyes grade it, so faint ones are not rare
    sign = -1.0 if rng.random() < (0.8 if kind == "stain" else 0.5) else 1.0
    profile = PAINTERS[kind](rng, (image.shape[0], image.shape[1]))
    under = image[np.abs(profile) > 0.5 * np.abs(profile).max()].mean()
    if not 0 <= under + sign * strength <= 255:
        sign = -sign  # towards the side where there is room
    coloured = kind == "stain" and bool((image != image[..., :1]).any())  # the others change shape, not pigment
    tint = rng.uniform(0.7, 1, size=3) if coloured else np.ones(3)
    painted = np.clip(image + sign * strength * profile[..., None] * tint, 0, 255).round().astype(np.uint8)
    mask = np.abs(painted.astype(np.int16) - image).max(axis=-1) >= VISIBLE
    return np.where(mask[..., None], painted, image), mask.astype(np.uint8)
