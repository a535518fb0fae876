"""The stateful twin of the pixel metrics: counts pixels over batches and ranks, in constant memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from anomaly_lab.errors import TrainingError
from anomaly_lab.metrics.pixel import AREAS, BINS, PixelTotals, class_ious
from anomaly_lab.types import DEFECTIVE, IGNORE

_UNIT = 2**36  # shares are summed in whole numbers of 1/_UNIT: room for 2**27 regions in an int64


class PixelTally(Metric):
    """What the pixels of a set of images add up to, from any number of batches and ranks; see `pixel_metrics`.

    An image that is given twice counts twice; with a mask of 255 everywhere it does not count. All states are
    integers, so that their sums do not depend on the order of what is added, and fit every kind of device.

    Args:
        threshold: a pixel is flagged where its map reaches it, on the map's own scale; None: nothing is flagged.
        probability: whether the maps are probabilities.
    """

    full_state_update: bool | None = False

    histograms: Tensor  # (2, BINS) normal and defective pixels by bin
    shares: Tensor  # (BINS,) in 1/_UNIT
    regions: Tensor  # (5,)
    images: Tensor  # ()
    counts: Tensor  # (4,)
    miou: Tensor  # () in 1/_UNIT
    found: Tensor  # (5,)
    flagged: Tensor  # (5,) in 1/_UNIT

    def __init__(self, threshold: float | None = None, *, probability: bool = False) -> None:
        super().__init__()
        areas = (len(AREAS),)
        sizes = {"histograms": (2, BINS), "shares": (BINS,), "images": (), "counts": (4,), "miou": ()}
        for name, size in {**sizes, "regions": areas, "found": areas, "flagged": areas}.items():
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.probability = probability
        self.threshold = threshold
        self._start()

    @property
    def threshold(self) -> float | None:
        """Where a pixel is flagged; can be set as long as no image has been added.

        Raises:
            ValueError: if set to NaN.
            RuntimeError: if set between images.
        """
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        if value is not None and math.isnan(value):
            raise ValueError("the threshold is NaN")
        if self.images:
            raise RuntimeError("images have been counted at another threshold: call reset() before setting a new one")
        self._threshold = value

    def _start(self) -> None:
        # a rank may get no image, of which torchmetrics would warn
        nothing = torch.empty(0, 1, 1, 1, device=self.device)
        self.update(nothing, nothing.to(torch.uint8))

    def reset(self) -> None:
        """Forget all images, but not the threshold."""
        super().reset()
        self._start()

    def update(self, anomaly_map: Tensor, mask: Tensor) -> None:
        """Add B images: maps (B, 1, H, W) and masks (B, 1, H, W); sizes may differ from batch to batch.

        Raises:
            TrainingError, ValueError: as `pixel_bins` does; nothing is added then.
        """
        bins = pixel_bins(anomaly_map, mask, probability=self.probability)
        # new tensors each time: what was begun in inference mode could not be changed in place outside of it
        self.histograms = self.histograms + pixel_histograms(bins, mask)
        highest = _kinds(mask).flatten(1).amax(1)
        self.images = self.images + (highest > 0).sum()
        flags = None
        if self.threshold is not None:
            flags = anomaly_map.float() >= self.threshold
            counts = _counts(flags, mask)
            self.counts = self.counts + counts.sum(0)
            self.miou = self.miou + self._fixed(image_mious(counts.cpu().numpy())).sum()
        if (with_defect := highest == 2).any():
            self._add_regions(
                mask[with_defect].cpu().numpy(),
                bins[with_defect].cpu().numpy(),
                None if flags is None else flags[with_defect].cpu().numpy(),
            )

    def compute(self) -> PixelTotals:
        """The totals of all images."""
        state = {name: getattr(self, name).cpu().numpy() for name in self._defaults}
        return PixelTotals(
            probability=self.probability,
            threshold=self.threshold,
            images=int(state["images"]),
            normal=state["histograms"][0],
            defective=state["histograms"][1],
            shares=state["shares"] / _UNIT,
            regions=state["regions"],
            counts=state["counts"],
            miou=float(state["miou"] / _UNIT),
            found=state["found"],
            flagged=state["flagged"] / _UNIT,
        )

    def _add_regions(
        self, mask: npt.NDArray[np.uint8], bins: npt.NDArray[np.int32], flags: npt.NDArray[np.bool_] | None
    ) -> None:
        pixels, region = defect_regions(mask)
        area = np.bincount(region)
        size = self._here(np.searchsorted([*AREAS.values()], area, side="right") - 1)
        self.regions = self.regions + torch.bincount(size, minlength=len(AREAS))
        share_bins, shares = _region_shares(bins.ravel()[pixels], region, area)
        self.shares = self.shares.index_add(0, self._here(share_bins), self._here(shares))
        if flags is not None:
            flagged = np.bincount(region, weights=flags.ravel()[pixels], minlength=len(area))
            self.found = self.found + torch.bincount(size[self._here(flagged > 0)], minlength=len(AREAS))
            self.flagged = self.flagged.index_add(0, size, self._fixed(flagged / area))

    def _here(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _fixed(self, shares: npt.NDArray[np.float64]) -> Tensor:
        return self._here(np.rint(shares * _UNIT).astype(np.int64))


def pixel_bins(anomaly_map: Tensor, mask: Tensor, *, probability: bool = False) -> Tensor:
    """The bin of each pixel, int32 (B, 1, H, W) in [0, BINS), rising with the map (B, 1, H, W).

    A bin holds the float32 values that share their upper 16 bits: a map of small differences on top of a large
    constant falls into few of them. Maps are any real or infinite values; 0 is the lowest value of its bin, and -0 is
    0. Probabilities are binned by their odds p / (1 - p), which resolve both ends
    of [0, 1] alike; 0.5, of odds 1, is the lowest value of its bin. Ignored pixels have some bin.

    Raises:
        TrainingError: if a pixel that the mask does not ignore is NaN.
        ValueError: if one is outside [0, 1] with `probability`, or the mask does not fit the map.
    """
    _check(anomaly_map, mask, probability=probability)
    values = anomaly_map.detach().float()
    if probability:
        values = values / (1 - values)
    # adding 0 makes 0 of -0; of a negative number's bits all but the sign are turned, so that they rise with it
    upper = (values + 0.0).view(torch.int32).bitwise_right_shift_(16)
    return upper.bitwise_xor_((upper >> 15) & 0x7FFF).add_(BINS // 2)


def pixel_histograms(bins: Tensor, mask: Tensor) -> Tensor:
    """Number of normal and of defective pixels in each bin, int64 (2, BINS), from bins and masks (B, 1, H, W)."""
    counts = torch.bincount((_kinds(mask).int() * BINS + bins).flatten(), minlength=3 * BINS)
    return counts.view(3, BINS)[1:]


def pixel_counts(anomaly_map: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """TP, FP, FN, TN of each image, int64 (B, 4); a pixel is flagged where map (B, 1, H, W) >= threshold in float32.

    Ignored pixels of the mask (B, 1, H, W) do not count.

    Raises:
        TrainingError: if a pixel that the mask does not ignore is NaN.
        ValueError: if the mask does not fit the map.
    """
    _check(anomaly_map, mask)
    return _counts(anomaly_map.float() >= threshold, mask)


def image_mious(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean IoU over classes (N,) of the N images with a scored pixel, from TP, FP, FN, TN (B, 4).

    An image whose truth and flags both lack a class has the IoU of the other.
    """
    means: npt.NDArray[np.float64] = np.nanmean(class_ious(counts[counts.any(axis=1)]), axis=1)
    return means


def defect_regions(mask: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The 8-connected regions of defective pixels in masks (B, 1, H, W), none across two images.

    Returns the positions (P,) of all defective pixels in the flattened masks, and the region (P,) of each, from 0.
    """
    from scipy.ndimage import label

    within_image = np.zeros((3, 3, 3), bool)
    within_image[1] = True
    labels = label(mask[:, 0] == DEFECTIVE, within_image)[0].ravel()
    pixels = np.flatnonzero(labels > 0)
    return pixels, labels[pixels].astype(np.int64) - 1


def _region_shares(
    bins: npt.NDArray[np.int32], region: npt.NDArray[np.int64], area: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The bin (P,) of each of P defective pixels and its share of its region in 1/_UNIT (P,), ordered otherwise.

    Takes bins (P,), regions (P,) and the areas (R,) of the regions. From a region's lowest pixel up, the sum of shares
    is rounded and not each share, so that a region weighs 1 whatever its area.
    """
    keys: npt.NDArray[np.int64] = np.sort(region * BINS + bins)
    region, ordered = keys // BINS, keys % BINS
    pixels: npt.NDArray[np.int64] = area[region]
    rank: npt.NDArray[np.int64] = np.arange(len(region)) - (np.cumsum(area) - area)[region]
    return ordered, (rank + 1) * _UNIT // pixels - rank * _UNIT // pixels


def _kinds(mask: Tensor) -> Tensor:
    """Of each pixel: 0 ignored, 1 normal, 2 defective, as uint8, in which 255 goes round to 0."""
    return mask + 1


def _counts(flags: Tensor, mask: Tensor) -> Tensor:
    kinds, flags = _kinds(mask).flatten(1), flags.flatten(1)
    defective, scored = kinds == 2, kinds > 0
    tp, flagged, positive, total = (part.sum(1) for part in (flags & defective, flags & scored, defective, scored))
    return torch.stack([tp, flagged - tp, positive - tp, total - positive - flagged + tp], 1)


def _check(anomaly_map: Tensor, mask: Tensor, *, probability: bool = False) -> None:
    if anomaly_map.shape != mask.shape or mask.dim() != 4 or mask.shape[1] != 1:
        raise ValueError(
            f"the map is {tuple(anomaly_map.shape)} and the mask {tuple(mask.shape)}; both must be (B, 1, H, W): "
            "resize the map to the mask"
        )
    if mask.dtype != torch.uint8 or (len(mask) and _kinds(mask).amax() > 2):
        raise ValueError("a mask must be uint8, of 0 (normal), 1 (defective) and 255 (ignored)")
    low, high = (0.0, 1.0) if probability else (-math.inf, math.inf)
    # NaN comes out as the least and as the greatest: two quick passes for a map without fault
    if not len(mask) or (anomaly_map.amin() >= low) & (anomaly_map.amax() <= high):
        return
    wrong = ~((anomaly_map >= low) & (anomaly_map <= high)) & (mask != IGNORE)
    if not wrong.any():
        return
    image, _, row, column = wrong.nonzero()[0].tolist()
    value = float(anomaly_map[image, 0, row, column])
    where = f"the anomaly map of image {image} in its batch is {value:g} at row {row}, column {column}"
    if math.isnan(value):
        raise TrainingError(f"{where}: the model has diverged, try a smaller learning rate")
    raise ValueError(f"{where}, which is no probability: give probabilities, or leave `probability` False")
