"""Image scores of an anomaly map, and the prediction for an image from those for its tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anomaly_lab.data.tiles import Tiling
from anomaly_lab.types import Prediction

MAP_SCORES = ("max", "top", "mean", "peak")
TOP = 0.01  # the share of the pixels whose mean is the score `top`


def map_scores(anomaly_map: Tensor) -> dict[str, Tensor]:
    """Scores (B,) of maps (B, 1, H, W): the greatest value, the mean of the highest 1% of the pixels, and of all.

    `peak` is the greatest value over the mean: a rough surface has large differences everywhere.
    """
    pixels = anomaly_map.flatten(1)
    count = max(1, round(TOP * pixels.shape[1]))
    return {
        "max": pixels.amax(1),
        "top": torch.topk(pixels, count, dim=1).values.mean(1),
        "mean": pixels.mean(1),
        "peak": pixels.amax(1) / pixels.mean(1).clamp_min(1e-12),
    }


def join_tiles(tiles: Prediction, tiling: Tiling, height: int, width: int) -> Prediction:
    """The prediction for one image of height x width from that for all its tiles, a batch of T.

    Scores of the map are those of the whole map; of any other score the greatest counts, of a latent vector the mean.
    """
    if len(next(iter(tiles.scores.values()))) == 1:
        return tiles
    whole = {
        name: None if tensor is None else tiling.stitch(tensor, height, width)
        for name, tensor in (("anomaly_map", tiles.anomaly_map), ("reconstruction", tiles.reconstruction))
    }
    scores = {name: values.amax(0, keepdim=True) for name, values in tiles.scores.items()}
    if whole["anomaly_map"] is not None:
        scores |= {name: value for name, value in map_scores(whole["anomaly_map"]).items() if name in scores}
    return Prediction(scores, **whole, latents={name: z.mean(0, keepdim=True) for name, z in tiles.latents.items()})


def rows_of(batch: Prediction, start: int, stop: int) -> Prediction:
    """The prediction for some of a batch's images."""

    def some(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[start:stop]

    return Prediction(
        {name: values[start:stop] for name, values in batch.scores.items()},
        some(batch.anomaly_map),
        some(batch.reconstruction),
        {name: values[start:stop] for name, values in batch.latents.items()},
    )


def batch_of(parts: Sequence[Prediction]) -> Prediction:
    """One prediction for the images of several, in order."""

    def joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known) if known else None

    return Prediction(
        {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
        joined([part.anomaly_map for part in parts]),
        joined([part.reconstruction for part in parts]),
        {name: torch.cat([part.latents[name] for part in parts]) for name in parts[0].latents},
    )
