"""Golden values, computed apart: t quantiles from printed tables, sign flips by hand."""

from itertools import product
from statistics import mean

import numpy as np
import pytest

from anomaly_lab.metrics.statistics import Spread, paired, spread, verdict


def test_a_spread_has_students_interval():
    found = spread([0.52, 0.60, 0.58])
    assert found.count == 3
    assert found.mean == pytest.approx(0.566667, abs=1e-6)
    assert found.deviation == pytest.approx(0.041633, abs=1e-6)
    # t(0.975, 2) = 4.303: 4.303 * 0.041633 / sqrt(3) = 0.103423
    assert found.interval == pytest.approx((0.463244, 0.670090), abs=5e-5)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        low, high = spread(rng.normal(0.7, 0.05, 4)).interval
        held += low <= 0.7 <= high
    assert held / 4000 == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval():
    assert spread([0.7]) == Spread(1, 0.7, None, None)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="one number per seed"):
        spread(values)


def test_no_p_value_under_six_pairs():
    found = paired([0.9, 0.8, 0.85, 0.9, 0.9], [0.1, 0.2, 0.1, 0.1, 0.2])
    assert found.p_value is None
    assert found.spread.mean == pytest.approx(0.73)


def test_six_pairs_on_one_side_have_the_least_p_value_there_is():
    assert paired([1, 2, 3, 4, 5, 6.0], [0, 0, 0, 0, 0, 0.0]).p_value == 2 / 64


@pytest.mark.parametrize("count", [6, 7, 9])
def test_the_p_value_is_that_of_all_sign_flips(count):
    rng = np.random.default_rng(count)
    ours, theirs = rng.normal(0.6, 0.05, count), rng.normal(0.57, 0.05, count)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    flipped = [
        abs(mean(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((-1, 1), repeat=count)
    ]
    expected = sum(value >= abs(mean(differences)) - 1e-12 for value in flipped) / len(flipped)
    assert paired(ours, theirs).p_value == pytest.approx(expected)


def test_many_pairs_are_drawn_and_always_alike():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.60, 0.05, 20), rng.normal(0.58, 0.05, 20)
    p_value = paired(ours, theirs).p_value
    assert p_value == paired(ours, theirs).p_value
    from scipy.stats import ttest_rel

    assert p_value == pytest.approx(ttest_rel(ours, theirs).pvalue, abs=0.02)


def test_equal_methods_do_not_differ():
    assert paired([0.5] * 8, [0.5] * 8).p_value == 1.0


def test_a_p_value_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(2)
    p_values = [paired(rng.normal(size=8), rng.normal(size=8)).p_value for _ in range(2000)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_pairs_have_to_be_pairs():
    with pytest.raises(ValueError, match="2 and 3"):
        paired([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("low", "high", "printed", "expected"),
    [
        (0.89, 0.93, 0.91, "reproduced"),
        (0.88, 0.94, 0.91, "reproduced"),  # 0.03 to each side
        (0.80, 0.94, 0.91, "undecided"),
        (0.80, 0.90, 0.91, "different"),
        (0.92, 0.93, 0.91, "different"),
        (0.60, 0.90, 0.91, "different"),  # wide, but not as wide as that
    ],
)
def test_the_verdict_is_the_intervals(low, high, printed, expected):
    assert verdict(Spread(3, (low + high) / 2, 0.01, (low, high)), printed) == expected


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 0.83, 0.92])
def test_equal_values_reproduce_themselves(value):
    assert verdict(spread([value] * 20), value) == "reproduced"


def test_the_verdict_without_runs_or_without_a_printed_value():
    assert verdict(None, 0.91) == "not run"
    assert verdict(None, None) is None
    assert verdict(spread([0.91]), 0.91) == "undecided"
    assert verdict(spread([0.9, 0.9]), None) is None
