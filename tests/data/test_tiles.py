from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomaly_lab.data.tiles import Tiling


def test_quarters():
    assert Tiling(256).corners(512, 512) == [(0, 0), (0, 256), (256, 0), (256, 256)]


@pytest.mark.parametrize(("length", "starts"), [(8, [0]), (9, [0, 1]), (16, [0, 8]), (20, [0, 6, 12])])
def test_tiles_are_spread_evenly_and_end_at_the_border(length, starts):
    assert [left for _, left in Tiling(8).corners(8, length)] == starts


def test_neighbours_share_the_overlap():
    assert [left for _, left in Tiling(8, 4).corners(8, 16)] == [0, 4, 8]


@given(st.integers(1, 12), st.data())
def test_cut_and_stitched_is_the_same(side, data):
    overlap = data.draw(st.integers(0, side - 1))
    height, width = (data.draw(st.integers(side, 40)) for _ in range(2))
    tiling = Tiling(side, overlap)
    image = np.random.default_rng(0).random((height, width), np.float32)
    corners = tiling.corners(height, width)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert all(b - a <= side - overlap for a, b in pairwise(starts))
    tiles = torch.stack([torch.from_numpy(tiling.cut(image, tile)) for tile in range(len(corners))])
    whole = tiling.stitch(tiles[:, None], height, width)
    assert whole.shape == (1, 1, height, width)
    np.testing.assert_allclose(whole[0, 0], image, rtol=1e-5)


def test_overlaps_are_averaged():
    tiles = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 4, 4)
    whole = Tiling(4, 2).stitch(tiles, 4, 6)
    assert whole[0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]
