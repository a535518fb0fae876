"""The materials that the `synthetic` dataset is made of, as height fields: what is random in a surface itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIZE = 128  # pixels, height and width
Field = npt.NDArray[np.float64]  # (SIZE, SIZE)
Sampler = Callable[[Field, Field], Field]  # texture coordinates (v, u) in pixels -> heights, about N(0, 1)


@dataclass(frozen=True)
class Surface:
    """A texture as it lies under the camera."""

    sampler: Sampler
    v: Field  # across the grain
    u: Field  # along the grain

    def sample(self, dv: Field | float = 0.0, du: Field | float = 0.0) -> Field:
        """The heights (SIZE, SIZE) where the material is moved by (dv, du) pixels."""
        return self.sampler(self.v + dv, self.u + du)


def _noise(rng: np.random.Generator, *sigmas: tuple[float, float]) -> Field:
    """Periodic noise (256, 256), the sum of unit noises smoothed by each (sigma_v, sigma_u), standardised."""
    from scipy import ndimage

    total = np.zeros((256, 256))
    for sigma in sigmas:
        spectrum = np.fft.rfft2(rng.normal(size=total.shape))
        layer = np.fft.irfft2(ndimage.fourier_gaussian(spectrum, sigma, n=256), s=total.shape)
        total += layer / layer.std()
    standardised: Field = (total - total.mean()) / total.std()
    return standardised


def _lookup(canvas: Field, v: Field, u: Field) -> Field:
    from scipy import ndimage

    values: Field = ndimage.map_coordinates(canvas, (v, u), order=1, mode="grid-wrap")
    return values


def _brushed(rng: np.random.Generator) -> Sampler:
    canvas = _noise(rng, (0.7, 12.0), (1.6, 28.0), (5.0, 40.0))
    return lambda v, u: _lookup(canvas, v, u)


def _woven(rng: np.random.Generator) -> Sampler:
    period = rng.uniform(6.5, 9.0)
    shades = rng.normal(0, 0.25, size=(2, 64))  # of each warp and weft thread
    grain = _noise(rng, (0.8, 0.8))

    def sample(v: Field, u: Field) -> Field:
        row, column = np.floor(v / period).astype(int), np.floor(u / period).astype(int)
        across, along = np.sin(np.pi * (v / period - row)), np.sin(np.pi * (u / period - column))
        over = (row + column) % 2 == 0
        weft = across**0.7 * (0.55 + 0.45 * along) + 0.3 * shades[0, row % 64]
        warp = along**0.7 * (0.45 + 0.40 * across) + 0.3 * shades[1, column % 64]
        heights: Field = 3.5 * (np.where(over, weft, warp) - 0.55) + 0.3 * _lookup(grain, v, u)
        return heights

    return sample


def _leather(rng: np.random.Generator) -> Sampler:
    from scipy.spatial import KDTree

    spacing = rng.uniform(6.0, 8.5)
    grid = np.arange(-130.0, 130.0, spacing)
    centres = np.stack(np.meshgrid(grid, grid * 1.6), axis=-1).reshape(-1, 2)
    tree = KDTree(centres + rng.uniform(-0.4, 0.4, size=centres.shape) * spacing)
    shades = rng.normal(0, 0.2, size=len(centres))
    grain = _noise(rng, (0.8, 0.8), (3.0, 3.0))

    def sample(v: Field, u: Field) -> Field:
        distance, nearest = tree.query(np.stack([v, u], axis=-1).reshape(-1, 2), k=2)
        crease = np.exp(-((distance[:, 1] - distance[:, 0]) / 1.6)).reshape(v.shape)
        heights: Field = 0.7 - 2.5 * crease + shades[nearest[:, 0]].reshape(v.shape) + 0.25 * _lookup(grain, v, u)
        return heights

    return sample


def _ribbed(rng: np.random.Generator) -> Sampler:
    period = rng.uniform(7.0, 11.0)
    sharpness = rng.uniform(0.6, 1.6)
    grain = _noise(rng, (1.0, 1.5), (2.5, 6.0))
    shades = rng.normal(0, 0.2, size=64)

    def sample(v: Field, u: Field) -> Field:
        phase = v / period
        rib = 2.2 * np.abs(np.sin(np.pi * phase)) ** sharpness - 1.3
        heights: Field = rib + shades[np.floor(phase).astype(int) % 64] + 0.45 * _lookup(grain, v, u)
        return heights

    return sample


class Material(NamedTuple):
    """A kind of surface."""

    make: Callable[[np.random.Generator], Sampler]
    colour: tuple[float, float, float]  # mean R, G, B in [0, 1]
    turn: float  # how far it may lie turned under the camera, radians


TEXTURES = {
    "brushed": Material(_brushed, (0.52, 0.53, 0.55), 0.25),
    "leather": Material(_leather, (0.50, 0.43, 0.38), np.pi),
    "ribbed": Material(_ribbed, (0.42, 0.44, 0.43), np.pi),
    "woven": Material(_woven, (0.50, 0.51, 0.46), 0.4),
}


def _swell(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """A smooth displacement in pixels: three long plane waves."""
    lengths, angles, phases = (
        rng.uniform(60, 140, size=3),
        rng.uniform(0, np.pi, size=3),
        rng.uniform(0, 2 * np.pi, size=3),
    )
    crests = [
        np.sin(2 * np.pi * (np.cos(a) * y + np.sin(a) * x) / n + p)
        for n, a, p in zip(lengths, angles, phases, strict=True)
    ]
    total: Field = rng.uniform(0.2, 0.7) * np.sum(crests, axis=0)
    return total


def make_surface(rng: np.random.Generator, texture: str) -> Surface:
    """The texture at a random scale, phase and angle, and slightly wavy."""
    material = TEXTURES[texture]
    angle, scale, phase = rng.uniform(-material.turn, material.turn), rng.uniform(0.85, 1.2), rng.uniform(-8, 8, size=2)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    wave = [_swell(rng, y, x) for _ in range(2)]
    v = (np.cos(angle) * y - np.sin(angle) * x) / scale + phase[0] + wave[0]
    u = (np.sin(angle) * y + np.cos(angle) * x) / scale + phase[1] + wave[1]
    return Surface(material.make(rng), v, u)
