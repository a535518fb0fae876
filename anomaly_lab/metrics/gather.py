"""The stateful twin of the image metrics: collects scores over batches and ranks, each image once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Gathered = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, npt.NDArray[np.float64]]]


class ScoreGather(Metric):
    """Scores of a whole split from any number of ranks, sorted by index.

    An image that several ranks or batches saw, such as one that a sampler repeated to fill the last batch,
    counts once.

    Args:
        names: of the scores.
        counts: names of further columns, whole numbers of any size.
        vectors: names of columns with several values an image, float32 (B, d).
    """

    full_state_update: bool | None = False

    index: list[Tensor] | Tensor
    label: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str], counts: Sequence[str] = (), vectors: Sequence[str] = ()) -> None:
        super().__init__()
        self.names, self.vectors = (*names, *counts, *vectors), tuple(vectors)
        self._states = {"index": torch.int64, "label": torch.int64} | {
            f"score_{position}": torch.int64 if name in counts else torch.float32
            for position, name in enumerate(self.names)
        }
        for state in self._states:
            self.add_state(state, [], dist_reduce_fx="cat")
        self._start()

    def _start(self) -> None:
        # a rank may get no image; torchmetrics would warn, and gather its index as float32 among int64 ones
        nothing = torch.empty(0, device=self.device)
        self.update(nothing, nothing, dict.fromkeys(self.names, nothing))

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._start()

    def update(self, index: Tensor, label: Tensor, scores: dict[str, Tensor]) -> None:
        """Add B images: their rows in the split (B,), labels (B,), and each named column."""
        columns = [index, label, *(scores[name] for name in self.names)]
        for (state, dtype), column in zip(self._states.items(), columns, strict=True):
            # in one dimension: a rank without images does not know how many values a vector has
            getattr(self, state).append(column.detach().to(dtype).flatten())

    def compute(self) -> Gathered:
        """Index (N,), label (N,) and each named column (N,) or (N, d), sorted by index, without repeats."""
        index, label, *values = (dim_zero_cat(getattr(self, state)).cpu().numpy() for state in self._states)
        columns = dict(zip(self.names, values, strict=True))
        for name in self.vectors:
            columns[name] = columns[name].reshape(len(index), -1) if len(index) else columns[name]
        index, first = np.unique(index, return_index=True)
        return index, label[first], {name: column[first].astype(np.float64) for name, column in columns.items()}
