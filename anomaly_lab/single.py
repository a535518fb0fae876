"""What a trained model makes of single images: pictures for the gallery, and how long one takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.samples import as_input
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.metrics.maps import batch_of, join_tiles, rows_of
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.types import IGNORE, Prediction

_SHOWN = 512  # the most pixels to a side of the gallery's pictures, of images that keep their own size
_WARM, _TIMED = 3, 15  # predictions before and while the time of one is taken


@torch.inference_mode()
def pictures(model: AnomalyModel, data: DefectDataModule, chosen: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """What the model made of the chosen test images, as the figures and the report want it."""
    dataset = data.dataset("test")
    model.eval()
    found: dict[str, list[npt.NDArray[Any]]] = {}
    largest = np.max([dataset.frame(int(index)) for index in chosen], axis=0)
    scale = min(1.0, _SHOWN / largest.max()) if data.plan.full_size is None else 1.0
    for index in chosen:
        image, mask = dataset.whole(int(index))
        (prediction,) = predict_images(model, [image], data.tiling, data.plan.load.batch_size)
        pictures = {"index": index, "image": image, "mask": mask}
        if prediction.reconstruction is not None:
            pixels = prediction.reconstruction[0].float().clamp(0, 1).mul(255).round().byte()
            pictures["reconstruction"] = pixels.permute(1, 2, 0).cpu().numpy()
        if prediction.anomaly_map is not None:
            pictures["anomaly_map"] = prediction.anomaly_map[0, 0].float().cpu().numpy()
        for name, picture in pictures.items():
            found.setdefault(name, []).append(picture if name == "index" else _smaller(picture, scale, largest))
    return {name: np.stack(parts) for name, parts in found.items()}


def _smaller(picture: npt.NDArray[Any], scale: float, largest: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """A picture times `scale`, on a sheet that the `largest` (height, width) of all fits on.

    Of masks and maps the maximum, so small defects stay; beside the picture a mask is unknown.
    """
    if scale == 1 and picture.shape[:2] == tuple(largest):
        return picture
    tensor = torch.from_numpy(np.atleast_3d(picture)).permute(2, 0, 1)[None].float()
    pool = F.adaptive_avg_pool2d if picture.ndim == 3 else F.adaptive_max_pool2d
    is_mask = picture.ndim == 2 and picture.dtype == np.uint8
    if is_mask:
        tensor = torch.where(tensor == IGNORE, -1.0, tensor)  # what is known counts more than what is not
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    pooled = pool(tensor, (height, width))[0]
    pooled = torch.where(pooled < 0, float(IGNORE), pooled) if is_mask else pooled
    sheet = np.full(
        (*(np.round(largest * scale).astype(int)), *picture.shape[2:]), IGNORE if is_mask else 0, picture.dtype
    )
    sheet[:height, :width] = pooled.permute(1, 2, 0).numpy().reshape(height, width, *picture.shape[2:])
    return sheet


@torch.inference_mode()
def predict_images(
    model: AnomalyModel, images: Sequence[npt.NDArray[np.uint8]], tiling: Tiling, batch_size: int
) -> list[Prediction]:
    """The prediction for each image (H, W, 3), a batch of one, its tiles put together; images may differ in size.

    The model is in eval mode; they come to where it is, in its precision.
    """
    counts = [len(tiling.corners(*image.shape[:2])) for image in images]
    tiles = [tiling.cut(image, tile) for image, count in zip(images, counts, strict=True) for tile in range(count)]
    found = batch_of(
        [model.predict(_for(model, tiles[start : start + batch_size])) for start in range(0, len(tiles), batch_size)]
    )
    ends = np.cumsum(counts).tolist()
    return [
        join_tiles(rows_of(found, end - count, end), tiling, *image.shape[:2])
        for image, count, end in zip(images, counts, ends, strict=True)
    ]


def _for(model: AnomalyModel, tiles: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    weight = next(chain(model.parameters(), model.buffers()))
    return as_input(tiles).to(weight.device, weight.dtype)


@torch.inference_mode()
def seconds_per_image(model: AnomalyModel, data: DefectDataModule) -> float:
    """The median time of a prediction, one image at a time and after a warm-up, without reading the image."""
    dataset, tiling, times = data.dataset("test"), data.tiling, []
    model.eval()
    for turn in range(_WARM + _TIMED if data.plan.full_size is not None else 1):  # a large image has many tiles
        image, _ = dataset.whole(turn % len(dataset))
        tiles = _for(model, [tiling.cut(image, tile) for tile in range(len(tiling.corners(*image.shape[:2])))])
        started = time.perf_counter()
        for batch in torch.split(tiles, data.plan.load.batch_size):
            float(next(iter(model.predict(batch).scores.values()))[0])  # on a GPU, wait for it
        times.append(time.perf_counter() - started)
    return float(np.median(times[_WARM:] or times))
