"""Pixel-level metrics of what a PixelTally has counted, under the names of metrics.json."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]

BINS = 65_536  # of the upper half of a float32's bits, in order of value: 128 to an octave, on both sides of zero
AUPRO_LIMIT = 0.3  # false positive rate up to which AUPRO looks
AREAS = {"1-15": 1, "16-63": 16, "64-255": 64, "256-1023": 256, "1024+": 1024}  # pixels of a region, and the least

_ZERO = BINS // 2  # the bin whose lowest value is 0
_RANKED = ("pixel_auroc", "pixel_auroc_error", "pixel_aupro", "pixel_aupro_error")
_ABSENT = {"defect": "no defective pixels", "background": "no normal or unflagged pixels"}
_IOUS = ("pixel_iou_defect", "pixel_iou_background", "pixel_miou")
_EMPTY = ("floor_empty_miou", "floor_empty_mae")
_AT_ORACLE = tuple(f"{name}_oracle" for name in ("pixel_threshold", *_IOUS, "pixel_mae"))
_AT_THRESHOLD = ("pixel_threshold", *_IOUS, "pixel_mae", "pixel_miou_per_image")
_BY_AREA = ("pixel_recall_by_area",)


class PixelTotals(NamedTuple):
    """What the scored pixels of a set of images add up to; a region is an 8-connected defective area of one image.

    Everything from `counts` on is at the threshold, and zero without one.
    """

    probability: bool  # whether the maps are probabilities, binned by their odds
    threshold: float | None  # on the map's own scale; a pixel is flagged where its map >= threshold
    images: int  # those with a scored pixel
    normal: Counts  # (BINS,) normal pixels by the bin of their map
    defective: Counts  # (BINS,) defective pixels
    shares: Sums  # (BINS,) what share of a region's pixels is in each bin, summed over regions
    regions: Counts  # (5,) number of regions, by AREAS
    counts: Counts  # (4,) TP, FP, FN, TN, pooled
    miou: float  # an image's mean IoU over the classes that it or its flags have, summed over images
    found: Counts  # (5,) regions with a flagged pixel
    flagged: Sums  # (5,) share of a region's pixels that are flagged, summed over regions


def pixel_metrics(
    totals: PixelTotals, *, where: str = "test", no_threshold: str = "no threshold was set"
) -> tuple[dict[str, Any], dict[str, str]]:
    """All pixel-level metrics of a set of images, as (metrics, reasons): plain values, and why a metric is None.

    IoU is pooled over the set, but for `pixel_miou_per_image`, the mean over images of the mean over classes; an
    image whose truth and flags both lack a class has the other class only. `pixel_mae` is wrong pixels per image.
    `pixel_auroc` and `pixel_aupro` are within their `_error` of the value without bins. The suffix `_oracle` is for
    the threshold of largest TPR - FPR on the set itself, which need not be the one of largest IoU. `floor_empty_` is
    what flagging nothing gets. `where` and `no_threshold` are words for the reasons.
    """
    unranked = missing_pixels(totals, where)
    unscored = None if totals.images else f"no scored pixels in {where}"
    unset = unscored or (no_threshold if totals.threshold is None else None)
    no_region = None if totals.regions.any() else f"no defective pixels in {where}"
    metrics: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for names, reason, find in (
        (_RANKED, unranked, _ranked),
        (_AT_THRESHOLD, unset, _at_threshold),
        (_BY_AREA, unset or no_region, _by_area),
        (_AT_ORACLE, unranked, _at_oracle),
        (_EMPTY, unranked, _empty),
    ):
        metrics |= dict.fromkeys(names) if reason else find(totals)
        reasons |= dict.fromkeys(names, reason) if reason else {}
    for suffix in ("", "_oracle"):
        if math.isinf(metrics[f"pixel_threshold{suffix}"] or 0):  # has no place in JSON; what is flagged is known
            metrics[f"pixel_threshold{suffix}"] = None
            reasons[f"pixel_threshold{suffix}"] = "the threshold is infinite"
    for name, nothing in _ABSENT.items():
        if not unset and metrics[f"pixel_iou_{name}"] is None:
            reasons |= dict.fromkeys((f"pixel_iou_{name}", "pixel_miou"), f"{nothing} in {where}")
    return metrics, reasons


def missing_pixels(totals: PixelTotals, where: str = "test") -> str | None:
    """Why nothing can be ranked: the class without scored pixels, in words; None if both have some."""
    if not totals.images:
        return f"no scored pixels in {where}"
    for histogram, name in ((totals.normal, "normal"), (totals.defective, "defective")):
        if not histogram.any():
            return f"no {name} pixels in {where}"
    return None


def gap_threshold(totals: PixelTotals) -> float | None:
    """The threshold of largest TPR - FPR (P2, section 4.3), on the map's own scale; None if a class is missing.

    It is the lowest value of a bin; among equally good ones the highest.
    """
    return None if missing_pixels(totals) else at_largest_gap(totals).threshold


def at_largest_gap(totals: PixelTotals) -> PixelTotals:
    """The totals with the threshold of `gap_threshold` and the pooled counts there.

    What is counted image by image or region by region is not known from the histograms, and stays as it is.
    """
    if missing_pixels(totals):
        return totals
    row = largest_gap(totals.normal, totals.defective)
    threshold = lowest_value(row, probability=totals.probability)
    return totals._replace(threshold=threshold, counts=counts_from(totals.normal, totals.defective, row))


def curve_area(right: npt.NDArray[Any], up: npt.NDArray[Any], limit: float = 1.0) -> tuple[float, float]:
    """Area under a curve of bins up to `limit` on the horizontal axis, divided by `limit`, and the bound of its error.

    The curve starts at (0, 0); from the highest bin down, each goes straight to the right by its share of `right`
    (BINS,) and upwards by its share of `up` (BINS,), so the area is AUROC with ties counted half, or AUPRO. Neither
    may be all zeros. Where a bin's values differ, their own curve climbs from corner to corner of the bin's rectangle
    on a way not known: the error is as much as that can change.
    """
    rows = np.flatnonzero((right > 0) | (up > 0))[::-1]
    # cumulated before the division, where all numbers are exact
    start, low = ((np.cumsum(axis[rows]) - axis[rows]) / axis.sum() for axis in (right, up))
    right, up = right[rows] / right.sum(), up[rows] / up.sum()
    width = np.clip(limit - start, 0, right)
    part = np.divide(width, right, out=np.zeros_like(width), where=right > 0)  # under 1 in the bin that meets the limit
    area = (width * (low + up * part / 2)).sum() / limit
    error = (width * up * (1 - part / 2)).sum() / limit
    return float(area), float(error)


def largest_gap(normal: Counts, defective: Counts) -> int:
    """The bin from which up TPR - FPR is largest, of equally good ones the highest.

    Neither histogram (BINS,) may be all zeros.
    """
    rows = np.flatnonzero(normal + defective)[::-1]
    true, false = np.cumsum(defective[rows]).astype(object), np.cumsum(normal[rows]).astype(object)
    # Python's integers: equal gaps are to compare equal, and products of pixel counts may pass int64
    gaps = true * int(normal.sum()) - false * int(defective.sum())
    return int(rows[np.argmax(gaps)])


def counts_from(normal: Counts, defective: Counts, row: int) -> Counts:
    """TP, FP, FN, TN (4,) when all bins from `row` up are flagged."""
    tp, fp = defective[row:].sum(), normal[row:].sum()
    return np.array([tp, fp, defective.sum() - tp, normal.sum() - fp], np.int64)


def class_ious(counts: Counts) -> Sums:
    """IoU of the defect class and of the background (..., 2) from TP, FP, FN, TN (..., 4), in [0, 1].

    NaN for a class that neither the truth nor the flags have.
    """
    tp, fp, fn, tn = np.moveaxis(counts, -1, 0)
    overlap, union = np.stack([tp, tn], -1), np.stack([tp + fp + fn, tn + fp + fn], -1)
    ious: Sums = np.divide(overlap, union, out=np.full(union.shape, np.nan), where=union > 0)
    return ious


def lowest_value(row: int, *, probability: bool = False) -> float:
    """The lowest float32 value of a bin: `map >= lowest_value(row)` are the pixels of all bins from `row` up, exactly.

    With `probability`, the lowest probability whose odds are in the bin or above it.
    """
    signed = row - _ZERO
    bits = signed << 16 if signed >= 0 else (signed ^ 0x7FFF) << 16 | 0xFFFF
    edge = float(np.int32(bits).view(np.float32))
    if math.isnan(edge):  # -inf shares its bin with none but NaN, which no map has
        return -math.inf
    if not probability:
        return edge

    def odds(bits: int) -> float:
        value = np.int32(bits).view(np.float32)
        with np.errstate(divide="ignore"):
            return float(value / (1 - value))

    certain = int(np.float32(1).view(np.int32))
    # float32 division is rounded to nearest, so the odds rise with the probability, and it with its bits
    return float(np.int32(bisect_left(range(certain), edge, key=odds)).view(np.float32))


def _ranked(totals: PixelTotals) -> dict[str, Any]:
    areas = (
        *curve_area(totals.normal, totals.defective),
        *curve_area(totals.normal, totals.shares, AUPRO_LIMIT),
    )
    return dict(zip(_RANKED, areas, strict=True))


def _at_threshold(totals: PixelTotals) -> dict[str, Any]:
    metrics = _at(totals.threshold, totals.counts, totals.images)
    return metrics | {"pixel_miou_per_image": totals.miou / totals.images}


def _at_oracle(totals: PixelTotals) -> dict[str, Any]:
    best = at_largest_gap(totals)
    return {f"{name}_oracle": value for name, value in _at(best.threshold, best.counts, best.images).items()}


def _empty(totals: PixelTotals) -> dict[str, Any]:
    """The mean IoU and the wrong pixels per image of a map that flags nothing."""
    normal, defective = int(totals.normal.sum()), int(totals.defective.sum())
    return {"floor_empty_miou": normal / (normal + defective) / 2, "floor_empty_mae": defective / totals.images}


def _at(threshold: float | None, counts: Counts, images: int) -> dict[str, Any]:
    defect, background = (None if math.isnan(iou) else float(iou) for iou in class_ious(counts))
    if not counts[0] + counts[2]:  # without a true defect, zero would be a verdict on the method
        defect = None
    return {
        "pixel_threshold": threshold,
        "pixel_iou_defect": defect,
        "pixel_iou_background": background,
        "pixel_miou": None if defect is None or background is None else (defect + background) / 2,
        "pixel_mae": int(counts[1] + counts[2]) / images,
    }


def _by_area(totals: PixelTotals) -> dict[str, Any]:
    """Of each size of region: how many there are, how many have a flagged pixel, and the mean share of flagged ones."""
    rows = zip(AREAS, totals.regions, totals.found, totals.flagged, strict=True)
    return {
        "pixel_recall_by_area": {
            area: {"count": int(count), "found": int(found), "pixel_recall": float(flagged / count) if count else None}
            for area, count, found, flagged in rows
        }
    }
