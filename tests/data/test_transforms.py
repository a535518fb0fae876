import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from anomaly_lab.data.framing import Framing
from anomaly_lab.data.transforms import Augmentation
from anomaly_lab.types import DEFECTIVE, IGNORE


def pair(height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 2, (height, width), np.uint8)


@pytest.fixture(scope="module")
def flips():
    return Augmentation(flip="both")


def state(augmentation, seed, epoch, index):
    """Which corner of a numbered image comes to the top left; image and mask must agree."""
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    image, marked = augmentation(np.dstack([mask] * 3), mask, key=(seed, epoch, index))
    assert np.array_equal(image[..., 2], marked)
    assert sorted(marked.ravel()) == [0, 1, 2, 3]
    return int(marked[0, 0])


def test_both_flips_are_drawn_independently(flips):
    counts = Counter(state(flips, 0, 0, index) for index in range(1000))
    # four equally likely corners: 250 each with a standard deviation of 13.7
    assert all(abs(counts[corner] - 250) < 4 * 13.7 for corner in range(4)), counts


def test_seed_epoch_and_index_decide_in_any_order(flips):
    keys = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in range(40)]
    drawn = {key: state(flips, *key) for key in keys}
    again = {key: state(flips, *key) for key in reversed(keys)}
    assert drawn == again
    series = [[drawn[seed, epoch, index] for index in range(40)] for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(series) for b in series[:i])
    copy = pickle.loads(pickle.dumps(flips))
    assert {key: state(copy, *key) for key in keys} == drawn


def test_ignored_pixels_stay_ignored(flips):
    image, mask = Framing(16, "pad").pair(*pair(4, 8))
    for index in range(8):
        _, marked = flips(image, mask, key=(0, 0, index))
        assert (marked == 255).sum() == (mask == 255).sum() > 0


def test_nothing_asked_for_changes_nothing():
    image, mask = pair(6, 6)
    augmentation = pickle.loads(pickle.dumps(Augmentation()))
    same, marked = augmentation(image, mask, key=(0, 0, 0))
    assert same is image
    assert marked is mask


@pytest.mark.parametrize(("flip", "corners"), [("none", {0}), ("horizontal", {0, 1}), ("vertical", {0, 2})])
def test_only_the_allowed_sides_change_places(flip, corners):
    augmentation = Augmentation(flip=flip)
    assert {state(augmentation, 0, 0, index) for index in range(30)} == corners


def test_a_rigid_motion_moves_image_and_mask_alike_and_ignores_what_comes_in():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:44, 24:36] = 200
    mask = (image[..., 0] > 0).astype(np.uint8)
    motion = Augmentation(rotate=30, translate=0.2)
    seen = set()
    for index in range(30):
        moved, marked = motion(image, mask, key=(0, 0, index, 0))
        known = marked != 255
        seen.add((int((marked == 1).sum()), int(known.sum())))
        bright = moved[..., 0] > 100
        # interpolated edges aside, the bright pixels are the defective ones
        assert (bright != (marked == 1))[known].sum() < 40
        assert set(np.unique(marked)) <= {0, 1, 255}
    assert len(seen) > 20
    assert min(known for _, known in seen) < 64 * 64 * 0.95


def test_what_comes_in_at_the_border_is_the_image_mirrored():
    image = np.full((32, 32, 3), 120, np.uint8)
    moved, marked = Augmentation(translate=0.4)(image, image[..., 0] * 0, key=(0, 0, 3))
    assert (moved == 120).all()
    assert (marked == 255).any()


def test_a_crop_has_its_size_and_moves():
    numbers = np.arange(64 * 64).reshape(64, 64)
    image, mask = np.dstack([numbers // 256, numbers % 256, numbers * 0]).astype(np.uint8), np.zeros((64, 64), np.uint8)
    crops = [Augmentation(crop=16)(image, mask, key=(0, 0, index))[0] for index in range(20)]
    corners = {int(crop[0, 0, 0]) * 256 + int(crop[0, 0, 1]) for crop in crops}
    assert all(crop.shape == (16, 16, 3) for crop in crops)
    assert all((int(crop[1, 0, 1]) - int(crop[0, 0, 1])) % 256 == 64 for crop in crops)
    assert len(corners) > 15


def test_a_rigid_motion_survives_pickling():
    image, mask = pair(40, 40)
    motion = Augmentation(flip="both", rotate=20, translate=0.1, crop=24)
    copy = pickle.loads(pickle.dumps(motion))
    for index in range(5):
        ours, theirs = (a(image, mask, key=(1, 2, index)) for a in (motion, copy))
        assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_the_import_is_light_and_silences_the_update_check():
    code = (
        "import os, sys; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None); import anomaly_lab.data.transforms as t;"
        "t.Augmentation(); print(os.environ['NO_ALBUMENTATIONS_UPDATE'],"
        "{'torch', 'albumentations', 'lightning', 'torchmetrics', 'cv2'} & set(sys.modules))"
    )
    assert run(code).split(maxsplit=1) == ["1", "set()\n"]


@pytest.mark.slow
def test_a_spawned_process_draws_the_same(flips, tmp_path):
    (tmp_path / "flips.pkl").write_bytes(pickle.dumps(flips))
    code = (
        "import pickle, sys, numpy as np; a = pickle.load(open(sys.argv[1], 'rb')); m = np.arange(4, dtype='u1');"
        "m = m.reshape(2, 2); i = np.dstack([m] * 3);"
        "print([int(a(i, m, key=(3, 1, k))[1][0, 0]) for k in range(30)])"
    )
    assert run(code, str(tmp_path / "flips.pkl")).strip() == str([state(flips, 3, 1, k) for k in range(30)])


def test_a_share_of_the_crops_is_cut_around_a_defect():
    image, mask = np.zeros((1000, 1200, 3), np.uint8), np.zeros((1000, 1200), np.uint8)
    mask[400:406, 700:706] = DEFECTIVE
    mask[:50] = IGNORE
    image[..., 0] = mask
    for share in (0.0, 0.5, 1.0):
        augment = Augmentation(crop=64, defect_crops=share)
        pairs = [augment(image, mask, key=(0, i)) for i in range(200)]
        assert all((a[..., 0] == b).all() and b.shape == (64, 64) for a, b in pairs)
        found = np.mean([(b == DEFECTIVE).any() for _, b in pairs])
        assert abs(found - share) < 0.1
        again = augment(image, mask, key=(0, 7))
        assert (again[1] == pairs[7][1]).all()
    empty = np.where(mask == DEFECTIVE, 0, mask).astype(np.uint8)
    assert Augmentation(crop=64, defect_crops=1.0)(image, empty, key=(0, 1))[1].shape == (64, 64)
