"""The gallery's thumbnails: for each image one strip of what the method saw, made and marked, as WebP."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.types import DEFECTIVE, IGNORE

Arrays = Mapping[str, npt.NDArray[Any]]
Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

_LOOKS = ((96, 55), (96, 30), (72, 30), (48, 30))  # side of a thumbnail in pixels, and WebP's quality
_BUDGET = 16 * 2**20  # bytes of all strips as base64; a few thousand need the smaller looks
_TRIED = 16  # strips whose size says how all will be
_TRUTH = {DEFECTIVE: (240, 228, 66), IGNORE: (110, 110, 110)}  # on black


@dataclass(frozen=True, eq=False)
class Gallery:
    """The pictures of one run.

    Attributes:
        arrays: what predictions/gallery.npz holds (cases.py says what).
        by_pixel: the pixel threshold, where the method has one of its own.
    """

    arrays: Arrays
    by_pixel: float | None

    @property
    def kinds(self) -> list[str]:
        """What a strip shows, from left to right."""
        has = self.arrays.keys()
        kinds = ["image", *(["reconstruction", "difference"] if "reconstruction" in has else [])]
        return kinds + [name for name in ("map", "truth") if {"map": "anomaly_map", "truth": "mask"}[name] in has]

    def strips(self) -> list[str]:
        """A WebP for each image as base64: its thumbnails side by side, in the order of `kinds`."""
        count = len(self.arrays["index"])
        tried = range(0, count, max(1, count // _TRIED))
        for side, quality in _LOOKS:  # the last will have to do
            sizes = [len(self._strip(place, side, quality)) for place in tried]
            if sum(sizes) / len(sizes) * count <= _BUDGET:
                break
        return [self._strip(place, side, quality) for place in range(count)]

    def _strip(self, place: int, side: int, quality: int) -> str:
        return _as_text(_webp(np.hstack([_thumbnail(each, side) for each in self.pictures(place).values()]), quality))

    def pictures(self, place: int) -> dict[str, Pixels]:
        """The pictures of one image by their kind, at the size they were kept. Maps of a run share one colour scale."""
        image = self.arrays["image"][place]
        found = {"image": image}
        if "reconstruction" in self.arrays:
            reconstruction = self.arrays["reconstruction"][place]
            difference = np.abs(image.astype(np.float32) - reconstruction).mean(-1) / 255
            found |= {"reconstruction": reconstruction, "difference": _hot(difference, self._brightest)}
        if "anomaly_map" in self.arrays:
            found["map"] = _hot(self.arrays["anomaly_map"][place], self._hottest)
        if "mask" in self.arrays:
            truth = np.zeros_like(image)
            for value, colour in _TRUTH.items():
                truth[self.arrays["mask"][place] == value] = colour
            found["truth"] = truth
        return found

    @cached_property
    def _brightest(self) -> float:
        # a few pixels at an edge must not make all others dark
        sample = self.arrays["image"][:32].astype(np.float32) - self.arrays["reconstruction"][:32]
        return float(np.quantile(np.abs(sample).mean(-1) / 255, 0.999)) or 1.0

    @cached_property
    def _hottest(self) -> float:
        if self.by_pixel:
            return 2 * self.by_pixel
        return float(np.quantile(self.arrays["anomaly_map"][:32].astype(np.float32), 0.999)) or 1.0

    def write(self, folder: Path) -> None:
        """Every picture at full size, as N-KIND.webp, N its row in scores.csv."""
        folder.mkdir(parents=True, exist_ok=True)
        for place, index in enumerate(self.arrays["index"]):
            for kind, picture in self.pictures(place).items():
                (folder / f"{int(index)}-{kind}.webp").write_bytes(_webp(picture, 90))


def file_as_webp(path: Path, width: int) -> str:
    """A picture file as base64 WebP, at most `width` pixels wide."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail((width, 10 * width))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=75)
    return _as_text(buffer.getvalue())


def _as_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _hot(values: npt.NDArray[Any], highest: float) -> Pixels:
    import cv2

    scaled = np.clip(values.astype(np.float32) / highest, 0, 1)
    coloured = cv2.applyColorMap((scaled * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(coloured[..., ::-1]).astype(np.uint8, copy=False)


def _thumbnail(picture: Pixels, side: int) -> Pixels:
    import cv2

    scale = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    sheet = np.zeros((side, side, 3), np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def _webp(picture: Pixels, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
