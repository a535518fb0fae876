"""Near-duplicates across train and test, which let a model score well by remembering images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

THUMBNAIL_SIZE = 32
MAX_PAIRS = 50  # a report is read by a person
_BLOCK = 1024  # images a side of one block of correlations: 4 MB, however large the dataset
_FLAT = 1e-6  # an image with less spread than this share of its largest value is constant


def standardised(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Each of N images (N, ...) with zero mean and unit variance over its pixels; a constant one becomes zeros."""
    values = images.astype(np.float32)
    if not values.size:
        return values
    axes = tuple(range(1, values.ndim))
    largest = np.abs(values).max(axis=axes, keepdims=True)
    values -= values.mean(axis=axes, dtype=np.float64, keepdims=True).astype(np.float32)
    spread = np.sqrt(np.square(values).mean(axis=axes, dtype=np.float64, keepdims=True))
    flat = spread <= _FLAT * largest
    values *= np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, spread)).astype(np.float32)
    return values


def thumbnails(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Grey images (N, H, W) averaged by area down to (N, 32, 32), each standardised."""
    rows, columns = (_area_weights(side) for side in images.shape[1:])
    small = np.empty((len(images), THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.float32)
    for start in range(0, len(images), _BLOCK):
        small[start : start + _BLOCK] = rows @ images[start : start + _BLOCK] @ columns.T
    return standardised(small)


def _area_weights(side: int) -> npt.NDArray[np.float64]:
    """The share of each of `side` pixels in each of 32 equal stretches of the side: (32, side), rows sum to 1."""
    edges = np.linspace(0, side, THUMBNAIL_SIZE + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: npt.NDArray[np.float64] = overlap.clip(min=0) * THUMBNAIL_SIZE / side
    return weights


@dataclass(frozen=True, slots=True)
class LeakedPair:
    """A test image and the training image most like it."""

    train_path: str
    test_path: str
    correlation: float  # of the two thumbnails, -1 to 1
    identical: bool  # the thumbnails agree bit for bit


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """How many test images have a near-duplicate in training, and the most similar pairs."""

    threshold: float
    test_count: int
    leaked_test_count: int
    identical_test_count: int
    pairs: tuple[LeakedPair, ...]  # at most 50, the most similar first, one for each test image

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, for `json.dump`."""
        return asdict(self) | {"pairs": [asdict(pair) for pair in self.pairs]}

    def sentence(self, *, by_group: bool = False) -> str:
        """The finding in plain words, with the remedy if one is needed.

        `by_group` says that the split keeps the parts on one side that it knows of.
        """
        measure = f"thumbnail correlation over {self.threshold:g}"
        if not self.leaked_test_count:
            return f"No test image has a near-duplicate in training ({measure})."
        have = "has" if self.leaked_test_count == 1 else "have"
        counted = f"{self.leaked_test_count} of {self.test_count} test images {have} a near-duplicate in training"
        same = f", {self.identical_test_count} of them identical" if self.identical_test_count else ""
        first = self.pairs[0]
        remedy = (
            "they are of other parts by this split's groups, which miss some, or of parts that look alike"
            if by_group
            else "if they show the same part, keep it on one side: dataset.split=by_group, where for your own images "
            "dataset.group_regex, or a manifest's column group, names the part"
        )
        return (
            f"{counted} ({measure}{same}), so the test flatters a method that remembers images; {remedy}. "
            f"The most alike: {first.train_path} and {first.test_path}."
        )


def find_leaks(
    train_thumbs: npt.NDArray[np.floating[Any]],
    test_thumbs: npt.NDArray[np.floating[Any]],
    train_paths: Sequence[str],
    test_paths: Sequence[str],
    threshold: float = 0.95,
) -> LeakageReport:
    """Test images whose thumbnail correlates with one of training by more than `threshold`.

    Takes `thumbnails` of (N, 32, 32) and (M, 32, 32). Memory beyond these is constant: the correlations are
    computed in blocks. A constant image has no correlation and is never reported.
    """
    best, nearest = _most_correlated(train_thumbs, test_thumbs)
    leaked = np.flatnonzero(best > threshold)
    identical = {row for row in leaked.tolist() if np.array_equal(train_thumbs[nearest[row]], test_thumbs[row])}
    by_likeness = sorted(leaked.tolist(), key=lambda row: (row not in identical, -best[row], test_paths[row]))
    pairs = tuple(
        LeakedPair(train_paths[nearest[row]], test_paths[row], float(best[row]), row in identical)
        for row in by_likeness[:MAX_PAIRS]
    )
    return LeakageReport(threshold, len(test_paths), len(leaked), len(identical), pairs)


def _most_correlated(
    train: npt.NDArray[np.floating[Any]], test: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The highest correlation of each test image with any of training, (M,), and which image that is, (M,)."""
    best = np.full(len(test), -np.inf, np.float32)
    nearest = np.zeros(len(test), np.int64)
    for first in range(0, len(test), _BLOCK):
        rows = slice(first, first + _BLOCK)
        wanted = _unit_length(test[rows])
        for start in range(0, len(train), _BLOCK):
            correlation = wanted @ _unit_length(train[start : start + _BLOCK]).T
            highest = correlation.argmax(axis=1)
            value = correlation[np.arange(len(highest)), highest]
            better = value > best[rows]
            nearest[rows] = np.where(better, start + highest, nearest[rows])
            best[rows] = np.maximum(value, best[rows])
    return best.clip(max=1), nearest  # rounding takes equal images a little over 1


def _unit_length(thumbs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    flat = standardised(thumbs).reshape(len(thumbs), -1)
    return flat / np.float32(np.sqrt(flat.shape[1]))
