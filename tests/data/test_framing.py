import numpy as np
import pytest
from PIL import Image

from anomaly_lab.data.framing import Framing
from anomaly_lab.errors import ConfigError


def pair(height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 2, (height, width), np.uint8)


@pytest.mark.parametrize("policy", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (8, 100), (1, 1), (5, 5), (3, 2)])
def test_every_policy_gives_the_asked_size(policy, shape):
    image, mask = Framing(16, policy).pair(*pair(*shape))
    assert image.shape == (16, 16, 3)
    assert mask.shape == (16, 16)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1, 255}
    assert image.flags.c_contiguous
    assert mask.flags.c_contiguous


@pytest.mark.parametrize("policy", ["squash", "pad", "crop"])
def test_the_right_size_is_left_alone(policy):
    image, mask = pair(16, 16)
    resized, marked = Framing(16, policy).pair(image, mask)
    assert np.array_equal(resized, image)
    assert np.array_equal(marked, mask)


def test_shrinking_averages():
    image, mask = pair(24, 24)
    means = image.reshape(6, 4, 6, 4, 3).mean(axis=(1, 3))
    assert np.abs(Framing(6, "squash").pair(image, mask)[0] - means).max() <= 0.5


def test_an_axis_shrinks_by_averages_while_the_other_grows():
    image = np.zeros((16, 2, 3), np.uint8)
    image[::4] = 200  # a sample between rows 1 and 2 of each four sees nothing of it
    resized, _ = Framing(4, "squash").pair(image, np.zeros((16, 2), np.uint8))
    assert (resized == 50).all()


def test_growing_interpolates_the_image_and_repeats_the_mask():
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 200
    resized, marked = Framing(4, "squash").pair(image, np.array([[0, 1], [255, 0]], np.uint8))
    assert resized[0, :, 0].tolist() == [0, 50, 150, 200]
    assert marked.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [255, 255, 0, 0], [255, 255, 0, 0]]


@pytest.mark.parametrize("shape", [(50, 37), (11, 90), (16, 31)])
def test_the_mask_takes_the_pixel_under_each_centre(shape):
    _, mask = pair(*shape)
    expected = np.asarray(Image.fromarray(mask).resize((23, 23), Image.Resampling.NEAREST))
    assert np.array_equal(Framing(23, "squash").pair(np.dstack([mask] * 3), mask)[1], expected)


def test_pad_keeps_the_aspect_and_ignores_the_border():
    image, mask = np.full((4, 8, 3), 90, np.uint8), np.ones((4, 8), np.uint8)
    padded, marked = Framing(16, "pad").pair(image, mask)
    rows = np.repeat([255, 1, 255], [4, 8, 4])
    assert np.array_equal(marked, np.repeat(rows[:, None], 16, axis=1))
    assert np.array_equal(padded[..., 0], np.where(marked == 255, 0, 90))
    _, standing = Framing(16, "pad").pair(image.swapaxes(0, 1).copy(), mask.T.copy())
    assert np.array_equal(standing, marked.T)


def test_crop_keeps_the_middle():
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:7] = 100
    cropped, marked = Framing(8, "crop").pair(image, image[..., 0].copy())
    assert (cropped == 100).all()
    assert (marked == 100).all()
    assert (Framing(8, "crop").pair(image.swapaxes(0, 1).copy(), image[..., 0].T.copy())[0] == 100).all()


def test_an_unknown_policy_is_named():
    with pytest.raises(ConfigError, match=r"dataset\.resize='stretch'.*squash, pad, crop"):
        Framing(8, "stretch").pair(*pair(4, 4))


@pytest.mark.parametrize("policy", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (64, 64), (12, 15)])
def test_a_map_comes_back_to_where_it_was_found(policy, shape):
    """A bright block of the picture, taken through the network's square and back, lies on itself."""
    image = np.zeros((*shape, 3), np.uint8)
    top, left = shape[0] // 2 - 2, shape[1] // 2 - 3
    image[top : top + 5, left : left + 6] = 255
    framing = Framing(128, policy)
    found = framing.back(framing.image(image)[..., 0].astype(np.float32), *shape)
    assert found.shape == shape
    seen = ~np.isnan(found)
    assert seen.all() or policy == "crop"
    side = min(shape)
    assert seen.sum() == (side * side if policy == "crop" else shape[0] * shape[1])
    assert np.array_equal(found[seen] > 127, image[..., 0][seen] > 127)


def test_without_a_size_pictures_keep_theirs():
    image, mask = pair(5, 40)
    enlarged, marked = Framing(None, smallest=16).pair(image, mask)
    assert enlarged.shape == (16, 40, 3)
    assert np.array_equal(enlarged[:5], image)
    assert (marked[5:] == 255).all()
    assert np.array_equal(Framing(None, smallest=16).back(enlarged[..., 0].astype(float), 5, 40), image[..., 0])
    assert Framing(None).pair(image, mask)[0] is image
