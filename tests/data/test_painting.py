import subprocess
import sys

import numpy as np
import pytest

from anomaly_lab.data.painting import FAINT, KINDS, STRONG, VISIBLE, paint
from anomaly_lab.data.synthetic import DEFECTS
from anomaly_lab.errors import ConfigError


def grey(height, width, level=120):
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(64, 64), (203, 75)])
def test_the_mask_is_exactly_what_changed(kind, level, shape):
    image = grey(*shape, level)
    for seed in range(6):
        painted, mask = paint(image, kind, seed)
        change = np.abs(painted.astype(int) - image).max(axis=-1)
        assert painted.dtype == mask.dtype == np.uint8
        assert mask.shape == shape
        np.testing.assert_array_equal(mask, change > 0)
        assert mask.any(), "a defect that cannot be seen"
        assert change[mask == 1].min() >= VISIBLE


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_paints_the_same_and_the_input_stays(kind):
    image = np.random.default_rng(0).integers(60, 200, (90, 120, 3), dtype=np.uint8)
    before = image.copy()
    first, second, other = paint(image, kind, 5), paint(image, kind, 5), paint(image, kind, 6)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_grey_stays_grey_and_only_a_stain_has_a_colour_of_its_own(kind):
    painted, _ = paint(grey(96, 96), kind, 1)
    assert (painted == painted[..., :1]).all()
    coloured = np.broadcast_to(np.array([90, 120, 150], np.uint8), (96, 96, 3))
    painted, mask = paint(coloured, kind, 1)
    change = (painted.astype(int) - coloured)[mask == 1]
    assert (np.ptp(change, axis=1) > 1).any() == (kind == "stain")


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_run_from_faint_to_strong(kind):
    image = grey(128, 128, 127)
    peaks = [np.abs(paint(image, kind, seed)[0].astype(int) - 127).max() for seed in range(60)]
    assert FAINT * 0.5 < np.quantile(peaks, 0.1) < 1.5 * FAINT
    assert 0.7 * STRONG < np.quantile(peaks, 0.95) <= STRONG + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_grows_with_the_image(kind):
    small, large = (
        np.mean([paint(grey(size, size, 127), kind, seed)[1].mean() for seed in range(12)]) for size in (96, 288)
    )
    assert 0.0005 < large < 0.1
    assert 0.4 < large / small < 1.6, "its share of the image should not depend on the image's size"


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'scrach'.*Did you mean 'scratch'"):
        paint(grey(32, 32), "scrach", 0)


def test_no_kind_and_no_code_is_shared_with_the_synthetic_dataset():
    assert not set(KINDS) & set(DEFECTS)
    code = (
        "import sys, anomaly_lab.data.synthetic; "
        "bad = {'torch', 'scipy', 'albumentations', 'anomaly_lab.data.painting'} & set(sys.modules); "
        "assert not bad, bad; del sys.modules['anomaly_lab.data.synthetic'], sys.modules['anomaly_lab.data.surfaces']; "
        "import anomaly_lab.data.painting; "
        "bad = {'torch', 'scipy', 'anomaly_lab.data.surfaces', 'anomaly_lab.data.synthetic'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
