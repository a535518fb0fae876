import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, roc_auc_score

from anomaly_lab.metrics import pixel
from anomaly_lab.metrics.pixel import BINS, curve_area, largest_gap, lowest_value


def histogram(counts):
    """A histogram with the given counts in the given bins."""
    bins = np.zeros(BINS, np.int64)
    bins[list(counts)] = list(counts.values())
    return bins


def test_area_by_hand():
    # from the top: up by 1/2; to the right by 1/4; both by 1/4 and 1/4; the rest
    right = histogram({8: 1, 7: 1, 2: 2})
    up = histogram({9: 2, 7: 1, 2: 1})
    area, error = curve_area(right, up)
    assert area == pytest.approx(0.25 * 0.5 + 0.25 * (0.5 + 0.75) / 2 + 0.5 * (0.75 + 1) / 2)
    assert error == pytest.approx(0.25 * 0.25 / 2 + 0.5 * 0.25 / 2)
    # at 0.3 the second bin has risen by a fifth of its height, and could have risen by all of it
    area, error = curve_area(right, up, 0.3)
    assert area == pytest.approx((0.25 * 0.5 + 0.05 * (0.5 + 0.55) / 2) / 0.3)
    assert error == pytest.approx(0.05 * (0.75 - 0.525) / 0.3)


def test_area_to_one_is_auroc_and_its_error_half_the_pairs_that_share_a_bin():
    rng = np.random.default_rng(0)
    normal, defective = rng.integers(0, 20, BINS), rng.integers(0, 3, BINS)
    area, error = curve_area(normal, defective)
    rows = np.arange(BINS)
    labels = np.repeat([0, 1], [normal.sum(), defective.sum()])
    assert area == pytest.approx(roc_auc_score(labels, [*rows.repeat(normal), *rows.repeat(defective)]), abs=1e-12)
    assert error == pytest.approx((normal * defective).sum() / normal.sum() / defective.sum() / 2, abs=1e-12)


@pytest.mark.parametrize(("above", "below", "area"), [(9, 2, 1.0), (2, 9, 0.0), (5, 5, 0.5)])
def test_area_of_perfect_turned_and_flat_maps(above, below, area):
    for limit, flat in ((1.0, 0.5), (0.3, 0.15)):
        found, error = curve_area(histogram({below: 3}), histogram({above: 10}), limit)
        assert found == pytest.approx(flat if area == 0.5 else area, abs=1e-15)
        assert error == pytest.approx(1 - flat if area == 0.5 else 0)


def test_the_largest_gap_by_hand():
    # TPR - FPR from the top: 1/4, 1/4 - 1/8, 3/4 - 2/8, 3/4 - 6/8, 0
    normal, defective = histogram({8: 1, 7: 1, 6: 4, 5: 2}), histogram({9: 1, 7: 2, 5: 1})
    assert largest_gap(normal, defective) == 7
    assert pixel.counts_from(normal, defective, 7).tolist() == [3, 2, 1, 6]


def test_of_equal_gaps_the_highest_counts_whatever_the_numbers():
    # 0.8 - 0.5 is more than 0.3 in float64
    assert largest_gap(histogram({8: 5, 1: 5}), histogram({9: 3, 7: 5, 0: 2})) == 9
    many = 10**15  # products of such counts are more than int64 holds
    assert largest_gap(histogram({8: 5 * many, 1: 5 * many}), histogram({9: 3 * many, 7: 5 * many, 0: 2 * many})) == 9
    assert largest_gap(histogram({9: 2}), histogram({5: 1})) == 5  # upside down: nothing is better than everything


def test_ious_agree_with_scikit_learn_and_an_absent_class_has_none():
    rng = np.random.default_rng(0)
    truth, flags = rng.integers(0, 2, (2, 40))
    tp, fp = (truth & flags).sum(), (~truth & flags).sum()
    fn, tn = (truth & ~flags).sum(), 40 - (truth | flags).sum()
    expected = [jaccard_score(truth, flags), jaccard_score(1 - truth, 1 - flags)]
    ious = pixel.class_ious(np.array([[tp, fp, fn, tn], [0, 0, 0, 9], [7, 0, 0, 0], [0, 2, 0, 6]]))
    np.testing.assert_allclose(ious, [expected, [np.nan, 1], [1, np.nan], [0, 0.75]])


def test_lowest_values_are_those_of_the_bins():
    assert lowest_value(BINS // 2) == 0
    assert lowest_value(BINS // 2 + 0x3F80) == 1
    assert lowest_value(BINS // 2 + 0x3F81) == 1 + 1 / 128
    # -1 is the highest value of its bin, whose lowest is next to -1 - 1/128
    assert lowest_value(BINS // 2 - 1 - 0x3F80) == np.nextafter(np.float32(-1 - 1 / 128), np.float32(0))
    assert lowest_value(0xFF80) == np.inf
    assert lowest_value(0x7F) == -np.inf
    values = [lowest_value(row) for row in range(0x7F, 0xFF81)]
    assert all(np.diff(np.array(values[1:-1])) > 0)


def test_lowest_probabilities_are_the_first_to_reach_their_odds():
    assert lowest_value(BINS // 2, probability=True) == 0
    assert lowest_value(BINS // 2 + 0x3F80, probability=True) == 0.5
    assert lowest_value(0xFF80, probability=True) == 1
    for row in range(BINS // 2 + 1, 0xFF80, 97):
        value = torch.tensor(lowest_value(row, probability=True))
        under = torch.nextafter(value, torch.tensor(0.0))
        assert (under / (1 - under)).item() < lowest_value(row) <= (value / (1 - value)).item()


def totals(**changes):
    empty = {"normal": histogram({}), "defective": histogram({}), "shares": np.zeros(BINS), "counts": np.zeros(4, int)}
    areas = {"regions": np.zeros(5, int), "found": np.zeros(5, int), "flagged": np.zeros(5)}
    plain = {"probability": False, "threshold": None, "images": 1, "miou": 0.0}
    return pixel.PixelTotals(**plain | empty | areas | changes)


def test_no_threshold_is_fitted_where_a_class_is_missing():
    one = histogram({BINS // 2 + 0x3F80: 3})
    assert pixel.gap_threshold(totals(normal=one)) is pixel.gap_threshold(totals(defective=one)) is None
    assert pixel.gap_threshold(totals(normal=one, defective=one)) == 1
    assert pixel.gap_threshold(totals(normal=one, defective=one, probability=True)) == 0.5
    assert pixel.missing_pixels(totals(normal=one), "tune") == "no defective pixels in tune"
    assert pixel.missing_pixels(totals(defective=one), "tune") == "no normal pixels in tune"
    assert pixel.missing_pixels(totals(images=0), "tune") == "no scored pixels in tune"
