import json
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from anomaly_lab.metrics import image
from anomaly_lab.metrics.image import image_metrics
from anomaly_lab.metrics.scores import ScoreTable

RATES = ("precision", "sensitivity", "specificity", "f1")
CONTRACT = {
    "image_auroc", "image_auroc_ci", "image_ap", "image_auroc_RLX", "image_auroc_RLZ", "per_defect", "score_quantiles",
    "threshold", "threshold_interval", "threshold_normals", "val_image_auroc",
    *(f"image_{rate}{end}" for rate in RATES for end in ("", "_defect_ratio", "_oracle")),
}  # fmt: skip


def make(labels, scores, other=None, groups=None, defects=None):
    labels, scores = np.array(labels, np.int64), np.array(scores, np.float64)
    count = len(labels)
    return ScoreTable(
        index=np.arange(count),
        path=[f"{row}.png" for row in range(count)],
        label=labels,
        defect=defects or ["crack" if label else "good" for label in labels],
        group=groups or [""] * count,
        scores={"RLX": scores, "RLZ": -scores if other is None else np.array(other, np.float64)},
        primary="RLX",
    )


def drawn(normal=142, defective=392, seed=0, ties=False, shift=0.7):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [normal, defective])
    scores = rng.normal(labels * shift)
    return make(labels, np.round(scores, 1) if ties else scores, rng.normal(size=len(labels)))


@st.composite
def ranked(draw):
    """Labels of both classes and scores, many of them tied."""
    labels = draw(hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 1)))
    assume(0 < labels.sum() < len(labels))
    scores = draw(hnp.arrays(np.float64, len(labels), elements=st.integers(-6, 6).map(float)))
    return labels, scores


@pytest.mark.parametrize("ties", [False, True])
def test_every_metric_agrees_with_scikit_learn(ties):
    test, val = drawn(ties=ties), drawn(100, 200, seed=1, ties=ties)
    metrics, reasons = image_metrics(test, val=val)
    assert metrics.keys() >= CONTRACT
    assert reasons == {}
    y, s = test.label, test.primary_scores
    threshold = np.quantile(s_val := val.primary_scores[val.label == 0], 0.95)
    assert len(s_val) == metrics["threshold_normals"] == metrics["val_image_counts"]["normal"] == 100
    flagged = s > threshold
    expected = {
        "image_auroc": roc_auc_score(y, s),
        "image_auroc_RLX": roc_auc_score(y, s),
        "image_auroc_RLZ": roc_auc_score(y, test.scores["RLZ"]),
        "image_ap": average_precision_score(y, s),
        "threshold": threshold,
        "image_precision": precision_score(y, flagged),
        "image_sensitivity": recall_score(y, flagged),
        "image_specificity": recall_score(y, flagged, pos_label=0),
        "image_f1": f1_score(y, flagged),
        "image_f1_oracle": max(2 * ((s >= t) & (y == 1)).sum() / ((s >= t).sum() + y.sum()) for t in s),
        "val_image_auroc": roc_auc_score(val.label, val.primary_scores),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics["score_quantiles"] == pytest.approx(
        {str(p): np.percentile(s, p) for p in (0, 5, 25, 50, 75, 95, 100)}
    )
    low, high = metrics["image_auroc_ci"]
    assert low < metrics["image_auroc"] < high


def test_everything_is_plain_json():
    metrics, reasons = image_metrics(drawn(), val=drawn(30, 30, seed=1), tune=drawn(20, 20, seed=2))
    assert json.loads(json.dumps([metrics, reasons], allow_nan=False)) == [metrics, reasons]


def test_a_case_by_hand():
    #        normal 1 2 3 4, crack 3 9, fray 0: of the 12 pairs 2 + 0.5 (crack 3), 4 (crack 9) and 0 (fray) are right
    test = make([0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 3, 9, 0], defects=["good"] * 4 + ["crack", "crack", "fray"])
    metrics, _ = image_metrics(test, val=make([0, 0, 0, 1], [1, 2, 3, 50]), quantile=0.5)
    assert metrics["image_auroc"] == pytest.approx(6.5 / 12)
    assert metrics["threshold"] == 2  # flags 3, 4 and the cracks
    rates = [metrics[f"image_{rate}"] for rate in RATES]
    assert rates == pytest.approx([2 / 4, 2 / 3, 2 / 4, 4 / 7])
    # the three highest are 9, 4 and the earlier of the two 3, which is normal
    rates = [metrics[f"image_{rate}_defect_ratio"] for rate in RATES]
    assert rates == pytest.approx([1 / 3, 1 / 3, 2 / 4, 1 / 3])
    # F1 of flagging from 9: 2/4; 4: 2/5; 3: 4/7; 2: 4/8; 1: 4/9; 0: 6/10
    rates = [metrics[f"image_{rate}_oracle"] for rate in RATES]
    assert rates == pytest.approx([3 / 7, 1, 0, 6 / 10])
    assert metrics["per_defect"] == {
        "crack": {"image_auroc": pytest.approx(6.5 / 8), "count": 2, "sensitivity": 1.0},
        "fray": {"image_auroc": 0.0, "count": 1, "sensitivity": 0.0},
    }


@settings(deadline=None, max_examples=25)
@given(ranked())
def test_monotone_rescaling_changes_no_rank_metric_and_negation_turns_auroc_round(case):
    labels, scores = case
    val = make([0], [0.0])
    plain, _ = image_metrics(make(labels, scores), val=val, bootstrap=20)
    bent, _ = image_metrics(make(labels, np.exp(scores / 3) - 1), val=val, bootstrap=20)
    turned, _ = image_metrics(make(labels, -scores), val=val, bootstrap=0)
    for name in CONTRACT - {"score_quantiles", "threshold_interval", "image_auroc_RLZ"}:
        assert (
            bent[name] == pytest.approx(plain[name], abs=1e-12) if name != "per_defect" else bent[name] == plain[name]
        )
    assert turned["image_auroc"] == pytest.approx(1 - plain["image_auroc"], abs=1e-12)
    assert plain["image_f1_oracle"] >= image.defective_floor(labels) - 1e-12
    assert plain["image_precision_defect_ratio"] == plain["image_sensitivity_defect_ratio"]


@settings(deadline=None, max_examples=25)
@given(ranked())
def test_the_oracle_is_the_best_f1_of_any_threshold(case):
    labels, scores = case
    best = max(f1_score(labels, scores >= threshold) for threshold in {*scores})
    flagged = image.oracle_flags(labels, scores)
    assert f1_score(labels, flagged) == pytest.approx(best)
    assert not flagged.any() or flagged.sum() == (scores >= scores[flagged].min()).sum()  # no tie is cut


@settings(deadline=None, max_examples=25)
@given(ranked(), st.integers(0, 100))
def test_weighted_auroc_is_that_of_scikit_learn(case, seed):
    labels, scores = case
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(labels))).astype(float)
    weights[:, [labels.argmax(), labels.argmin()]] += 1  # both classes have weight
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(image.weighted_auroc(labels, scores, weights), expected, rtol=0, atol=1e-12)


def test_the_bootstrap_draws_whole_groups_and_keeps_both_classes():
    """Against a slow one, image by image, written differently."""
    rng = np.random.default_rng(3)
    labels, scores = np.array([0, 0, 0, 1, 1, 0, 1, 0, 1]), rng.normal(size=9)
    groups = ["a", "a", "b", "c", "c", "d", "d", "e", "f"]
    strata = [["a", "b", "e"], ["c", "f"], ["d"]]
    slow = []
    for _ in range(2000):
        chosen = [name for names in strata for name in rng.choice(names, len(names))]
        rows = np.array([row for name in chosen for row in range(9) if groups[row] == name])
        normal, defective = rows[labels[rows] == 0], rows[labels[rows] == 1]
        slow.append((scores[defective][:, None] > scores[normal]).mean())
    fast = image.bootstrap_aurocs(labels, scores, groups, 2000, seed=0)
    assert np.isfinite(fast).all()
    assert stats.ks_2samp(fast.round(9), np.round(slow, 9)).pvalue > 0.01
    assert fast.mean() == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / 2000**0.5 * 2**0.5)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.1)


def test_the_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    test = drawn(40, 60)
    monkeypatch.setattr(image, "_CHUNK", 700)
    small = image.bootstrap_aurocs(test.label, test.primary_scores, test.path, 50, seed=0)
    assert small.shape == (50,)
    assert len(set(small.tolist())) > 40


def test_of_many_images_the_interval_takes_fewer_resamples(monkeypatch):
    test, asked = drawn(40, 60), []
    real = image.bootstrap_aurocs
    monkeypatch.setattr(image, "bootstrap_aurocs", lambda *given: asked.append(given[3]) or real(*given))
    for many, expected in ((100, 50), (99, 10)):
        monkeypatch.setattr(image, "MANY", many)
        low, high = image.image_metrics(test, val=None, bootstrap=50)[0]["image_auroc_ci"]
        assert low < high
        assert asked.pop() == expected


def test_the_bootstrap_is_repeatable():
    test = drawn()
    first = image.bootstrap_aurocs(test.label, test.primary_scores, test.path, 1000, seed=4)
    np.testing.assert_array_equal(
        first, image.bootstrap_aurocs(test.label, test.primary_scores, test.path, 1000, seed=4)
    )


def test_the_interval_covers_the_true_auroc():
    """Two normal distributions a distance d apart have AUROC Phi(d / sqrt 2)."""
    truth = stats.norm.cdf(1 / 2**0.5)
    hits = 0
    for seed in range(200):
        test = drawn(60, 60, seed, shift=1)
        aurocs = image.bootstrap_aurocs(test.label, test.primary_scores, test.path, 200, seed=0)
        low, high = np.quantile(aurocs, [0.025, 0.975])
        hits += low <= truth <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_repeated_images_of_one_part_do_not_narrow_the_interval():
    once = drawn(30, 30)
    groups = [str(row % 60) for row in range(240)]
    four = make(np.tile(once.label, 4), np.tile(once.primary_scores, 4), groups=groups)
    alone = make(np.tile(once.label, 4), np.tile(once.primary_scores, 4))
    widths = [np.diff(image_metrics(table, val=None)[0]["image_auroc_ci"])[0] for table in (once, four, alone)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] == pytest.approx(widths[0] / 2, rel=0.25)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 150), st.sampled_from([0.5, 0.9, 0.95]))
def test_each_end_of_the_quantile_interval_errs_as_rarely_as_promised(count, quantile):
    """The ranks of the ends, checked by the definition: of n values, Binomial(n, q) lie under the true quantile."""
    low, high = image.quantile_interval(np.arange(1.0, count + 1), quantile)
    under = stats.binom(count, quantile)
    if low is not None:  # the true quantile is under the value of rank `low` where fewer values than that are under it
        assert sum(under.pmf(k) for k in range(int(low))) <= 0.025 + 1e-12
        assert sum(under.pmf(k) for k in range(int(low) + 1)) > 0.025  # and the next rank would promise too much
    if high is not None:
        assert sum(under.pmf(k) for k in range(int(high), count + 1)) <= 0.025 + 1e-12
    else:
        assert quantile**count > 0.025


def test_few_held_out_images_leave_the_threshold_open_and_untrusted():
    metrics, reasons = image_metrics(drawn(), val=make([0] * 19, np.arange(19.0)))
    assert metrics["threshold_interval"][1] is None
    assert metrics["threshold_interval"][0] <= metrics["threshold"] == pytest.approx(17.1)
    assert "open on one side" in reasons["threshold_interval"]
    assert "19 held-out normal images: too few to trust" in reasons["threshold_trust"]
    _, reasons = image_metrics(drawn(), val=make([0] * 72, np.arange(72.0)))
    assert not reasons.keys() & {"threshold_interval", "threshold_trust"}
    assert "no defective images in val" in reasons["val_image_auroc"]


@pytest.mark.parametrize("val", [None, make([1, 1], [1, 2])])
def test_without_held_out_normal_images_there_is_no_threshold(val):
    metrics, reasons = image_metrics(drawn(), val=val)
    missing = {"threshold", "threshold_interval", *(f"image_{rate}" for rate in RATES)}
    assert {name for name in missing if metrics[name] is None and "held-out normal images" in reasons[name]} == missing
    assert metrics["threshold_normals"] == 0
    with_val, _ = image_metrics(drawn(), val=make([0] * 72, np.arange(72.0)))
    assert metrics["image_f1_oracle"] == with_val["image_f1_oracle"] > 0, "it takes its threshold from the test"
    assert metrics["per_defect"]["crack"]["sensitivity"] is None
    assert reasons["per_defect"] == "no threshold"
    assert metrics["val_image_auroc"] is None
    assert reasons["val_image_auroc"]


def test_a_test_set_without_defects_still_says_what_it_can():
    metrics, reasons = image_metrics(make([0] * 4, [1, 2, 3, 4]), val=make([0] * 3, [1, 2, 3]), quantile=1.0)
    given = {"image_specificity": 0.75, "threshold": 3.0, "per_defect": {}}
    assert {name: metrics[name] for name in given} == given
    quantiles = {"0": 1.0, "5": 1.15, "25": 1.75, "50": 2.5, "75": 3.25, "95": 3.85, "100": 4.0}
    assert metrics["score_quantiles"] == pytest.approx(quantiles)
    missing = {name for name in metrics if metrics[name] is None}
    of_val = {name for name in missing if name.startswith("val_")}
    known = given.keys() | {"threshold_interval", "threshold_normals", "score_quantiles", "val_image_auroc"}
    assert missing - of_val == CONTRACT - known
    assert all(reasons[name] == "no defective images in test" for name in missing - of_val)
    assert all(reasons[name] == "no defective images in val" for name in of_val)


def test_a_test_set_of_defects_only_has_a_sensitivity():
    metrics, reasons = image_metrics(make([1, 1], [1, 5]), val=make([0] * 3, [1, 2, 3]))
    assert metrics["image_sensitivity"] == 0.5
    assert metrics["per_defect"] == {"crack": {"image_auroc": None, "count": 2, "sensitivity": 0.5}}
    assert reasons["per_defect"] == reasons["image_f1"] == reasons["image_auroc_ci"] == "no normal images in test"


@pytest.mark.parametrize(
    "test", [make([], []), make([0], [1]), make([1], [1]), make([0, 1], [1, 1]), make([0, 0, 1, 1], [2, 2, 2, 2])]
)
@pytest.mark.parametrize("val", [None, make([], []), make([0], [2.0]), make([0, 1], [2, 2])])
def test_small_and_flat_sets_do_not_crash_and_give_every_reason(test, val):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics, reasons = image_metrics(test, val=val, tune=test)
    assert metrics.keys() >= CONTRACT | {"tune_image_auroc", "tune_image_ap", "tune_image_auroc_RLZ", "tune_per_defect"}
    assert {name for name, value in metrics.items() if value is None} <= reasons.keys()
    if metrics["image_auroc"] is not None:
        assert metrics["image_auroc"] == 0.5


def test_one_group_has_no_interval():
    metrics, reasons = image_metrics(make([0, 0, 1, 1], [1, 2, 3, 4], groups=["a", "b", "c", "c"]), val=None)
    assert metrics["image_auroc"] == 1
    assert metrics["image_auroc_ci"] is None
    assert "defective images of test are of one group" in reasons["image_auroc_ci"]


def test_flagging_nothing_has_precision_zero():
    assert image.confusion_rates(np.array([0, 1]), np.array([False, False])) == {
        "precision": 0.0, "sensitivity": 0.0, "specificity": 1.0, "f1": 0.0
    }  # fmt: skip


def test_the_floor_of_calling_everything_defective():
    labels = np.repeat([0, 1], [142, 392])
    assert image.defective_floor(labels) == pytest.approx(f1_score(labels, np.ones(534)))
    assert image.defective_floor(labels) == pytest.approx(0.847, abs=5e-4)
    assert image.defective_floor(np.zeros(3, int)) == 0
