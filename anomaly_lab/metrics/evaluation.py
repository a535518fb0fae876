"""What is gathered while a list of images is scored: the scores of each, and the pixels of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anomaly_lab.data.tiles import Tiling
from anomaly_lab.metrics.gather import ScoreGather
from anomaly_lab.metrics.maps import batch_of, join_tiles, rows_of
from anomaly_lab.metrics.pixel import PixelTotals
from anomaly_lab.metrics.pixel_tally import PixelTally, pixel_counts
from anomaly_lab.metrics.scores import PIXEL_COUNTS
from anomaly_lab.types import Batch, Prediction


@dataclass(frozen=True, eq=False)
class Gathered:
    """N images, sorted by their row in the split, each once."""

    index: npt.NDArray[np.int64]  # (N,)
    label: npt.NDArray[np.int64]  # (N,)
    columns: dict[str, npt.NDArray[np.float64]]  # scores and latents by name, (N,) or (N, d)
    counts: dict[str, npt.NDArray[np.int64]]  # PIXEL_COUNTS of each image (N,); empty without a threshold
    pixels: PixelTotals


class Evaluation(nn.Module):
    """Collects predictions over batches, tiles and ranks; the pixels and scores of tiles are those of the whole image.

    Args:
        scores: names of the scores.
        latents: names of the latent vectors, which are kept too.
        probability: whether the anomaly maps are probabilities.
    """

    def __init__(self, scores: Sequence[str], latents: Sequence[str], *, probability: bool) -> None:
        super().__init__()
        self.scores, self.latents = tuple(scores), tuple(latents)
        self.gather = ScoreGather(scores, PIXEL_COUNTS, latents)
        self.pixels = PixelTally(probability=probability)
        self.tiling: Tiling | None = None
        self.frames: Sequence[tuple[int, int]] = ()
        self.by_tile = False
        self._whole = True  # every sample is a whole image
        self._waiting: list[tuple[dict[str, Tensor], Prediction]] = []

    def start(
        self,
        tiling: Tiling,
        frames: Sequence[tuple[int, int]],
        threshold: float | None = None,
        by_tile: bool = False,
    ) -> None:
        """Forget what was gathered, and say how images come now: cut by `tiling` from these heights and widths.

        With `by_tile` the pixel metrics take each tile for an image of its own, as P2 counts its quarters.
        """
        self.gather.reset()
        self.pixels.reset()
        self.pixels.threshold = threshold
        self.tiling, self.frames, self.by_tile, self._waiting = tiling, frames, by_tile, []
        self._whole = all(frame == (tiling.side, tiling.side) for frame in frames)  # once, not at every batch

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Add one batch; the tiles of an image come one after the other."""
        about = {"index": batch["index"], "label": batch["label"], "mask": batch["mask"]}
        tiling = self.tiling
        if self.by_tile and prediction.anomaly_map is not None:
            self.pixels.update(prediction.anomaly_map, batch["mask"])
        if tiling is None or self._whole:
            self._add(about, prediction)
            return
        for row, index in enumerate(batch["index"].tolist()):
            frame = self.frames[index]
            self._waiting.append(({k: v[row : row + 1] for k, v in about.items()}, rows_of(prediction, row, row + 1)))
            if len(self._waiting) == len(tiling.corners(*frame)):
                rows, predictions = zip(*self._waiting, strict=True)
                mask = tiling.stitch(torch.cat([row["mask"] for row in rows]).float(), *frame).byte()
                self._add(rows[0] | {"mask": mask}, join_tiles(batch_of(predictions), tiling, *frame))
                self._waiting = []

    def compute(self) -> Gathered:
        """All images since `start`."""
        index, label, gathered = self.gather.compute()
        counts = {name: gathered[name].astype(np.int64) for name in PIXEL_COUNTS if self.pixels.threshold is not None}
        columns = {name: gathered[name] for name in (*self.scores, *self.latents)}
        return Gathered(index, label, columns, counts, self.pixels.compute())

    def _add(self, about: dict[str, Tensor], prediction: Prediction) -> None:
        columns = {name: prediction.scores[name] for name in self.scores}
        columns |= {name: prediction.latents[name] for name in self.latents}
        counts = about["index"].new_zeros(len(about["index"]), len(PIXEL_COUNTS))
        if prediction.anomaly_map is not None:
            if not self.by_tile:
                self.pixels.update(prediction.anomaly_map, about["mask"])
            if self.pixels.threshold is not None:
                counts = pixel_counts(prediction.anomaly_map, about["mask"], self.pixels.threshold)
        columns |= dict(zip(PIXEL_COUNTS, counts.unbind(1), strict=True))
        self.gather.update(about["index"], about["label"], columns)
