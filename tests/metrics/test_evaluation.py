"""Gathering predictions: tiles put together, counts beside scores, the same whatever the batches."""

import numpy as np
import pytest
import torch

from anomaly_lab.data.tiles import Tiling
from anomaly_lab.metrics.evaluation import Evaluation
from anomaly_lab.metrics.maps import TOP, join_tiles, map_scores
from anomaly_lab.types import Prediction

FRAMES = [(12, 12)] * 5
NAMES = ("max", "top", "mean", "RLZ")


def whole_images(count=3, height=12, seed=0):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.random((count, 1, height, height), np.float32))
    masks = torch.from_numpy(rng.choice([0, 1, 255], (count, 1, height, height), p=[0.7, 0.2, 0.1]).astype(np.uint8))
    return maps, masks


def prediction(maps, extra):
    return Prediction(map_scores(maps) | {"RLZ": extra}, maps, latents={"z": torch.stack([extra, extra], 1)})


def batch_of(index, mask, tile=None):
    index = torch.as_tensor(index)
    return {"index": index, "label": index % 2, "mask": mask, "tile": tile}


def evaluation():
    return Evaluation(NAMES, ("z",), probability=False)


def in_tiles(maps, masks, tiling, batch_size):
    size = maps.shape[-1]
    corners = tiling.corners(size, size)
    pieces = [
        (
            index,
            maps[index : index + 1, :, t : t + tiling.side, left : left + tiling.side],
            masks[index : index + 1, :, t : t + tiling.side, left : left + tiling.side],
        )
        for index in range(len(maps))
        for t, left in corners
    ]
    for start in range(0, len(pieces), batch_size):
        part = pieces[start : start + batch_size]
        cut = torch.cat([piece[1] for piece in part])
        extra = torch.tensor([float(start + row) for row in range(len(part))])
        yield batch_of([piece[0] for piece in part], torch.cat([piece[2] for piece in part])), prediction(cut, extra)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("overlap", [0, 2])
def test_tiles_are_scored_as_the_whole_image(batch_size, overlap):
    maps, masks = whole_images()
    tiling = Tiling(6, overlap)
    whole, tiled = evaluation(), evaluation()
    whole.start(Tiling(12), FRAMES, threshold=0.7)
    whole.update(batch_of([0, 1, 2], masks), prediction(maps, torch.zeros(3)))
    tiled.start(tiling, FRAMES, threshold=0.7)
    for batch, predicted in in_tiles(maps, masks, tiling, batch_size):
        tiled.update(batch, predicted)
    expected, found = whole.compute(), tiled.compute()
    for name in ("max", "top", "mean"):
        np.testing.assert_allclose(found.columns[name], expected.columns[name], rtol=1e-6)
    for name in ("TP", "FP", "FN", "TN"):
        assert np.array_equal(found.counts[name], expected.counts[name])
    assert found.pixels.images == 3
    assert np.array_equal(found.pixels.counts, expected.pixels.counts)
    tiles = len(tiling.corners(12, 12))
    assert found.columns["RLZ"].tolist() == [tiles * (index + 1) - 1 for index in range(3)], "the greatest of its tiles"


def test_counts_are_numpy_s():
    maps, masks = whole_images(5)
    found = evaluation()
    found.start(Tiling(12), FRAMES, threshold=0.4)
    found.update(batch_of(range(5), masks), prediction(maps, torch.zeros(5)))
    flagged, truth, known = maps.numpy() >= 0.4, masks.numpy() == 1, masks.numpy() != 255
    by_hand = {
        "TP": flagged & truth,
        "FP": flagged & ~truth & known,
        "FN": ~flagged & truth,
        "TN": ~flagged & ~truth & known,
    }
    for name, hits in by_hand.items():
        assert found.compute().counts[name].tolist() == hits.sum((1, 2, 3)).tolist()


def test_a_new_start_forgets_and_without_a_threshold_nothing_is_counted():
    maps, masks = whole_images()
    found = evaluation()
    found.start(Tiling(12), FRAMES, threshold=0.4)
    found.update(batch_of([0, 1, 2], masks), prediction(maps, torch.zeros(3)))
    found.start(Tiling(12), FRAMES)
    found.update(batch_of([4], masks[:1]), prediction(maps[:1], torch.zeros(1)))
    gathered = found.compute()
    assert gathered.index.tolist() == [4]
    assert gathered.counts == {}
    assert gathered.columns["z"].shape == (1, 2)


def test_map_scores_by_hand():
    maps = torch.arange(400.0).view(1, 1, 20, 20)
    found = map_scores(maps)
    assert found["max"].item() == 399
    assert found["mean"].item() == 199.5
    assert TOP == 0.01
    assert found["top"].item() == pytest.approx((396 + 397 + 398 + 399) / 4)
    assert found["peak"].item() == 399 / 199.5
    assert map_scores(torch.zeros(1, 1, 4, 4))["peak"].item() == 0


def test_a_single_tile_is_left_as_it_is():
    maps, _ = whole_images(1)
    one = prediction(maps, torch.ones(1))
    assert join_tiles(one, Tiling(12), 12, 12) is one


def test_the_paper_s_quarters_count_as_images_for_the_pixels_only():
    maps, masks = whole_images()
    found = evaluation()
    found.start(Tiling(6), FRAMES, threshold=0.7, by_tile=True)
    for batch, predicted in in_tiles(maps, masks, Tiling(6), 5):
        found.update(batch, predicted)
    gathered = found.compute()
    assert gathered.pixels.images == 12
    assert gathered.index.tolist() == [0, 1, 2]
    wrong = ((maps >= 0.7) != (masks == 1))[masks != 255].sum().item()
    assert gathered.pixels.counts[[1, 2]].sum() == wrong
    assert sum(gathered.counts[name].sum() for name in ("FP", "FN")) == wrong
