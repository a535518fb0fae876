import numpy as np
import pytest
from scipy.stats import norm

from anomaly_lab.metrics.thresholds import above, by_cost, by_false_alarms


def parts(count, each=1):
    return [str(number // each) for number in range(count)]


@pytest.mark.parametrize(("count", "rate"), [(99, 0.05), (99, 0.01), (60, 0.1), (37, 0.2)])
def test_new_normals_pass_it_as_rarely_as_was_asked(count, rate):
    """Over many draws of held-out images the expected share of false alarms is what was asked, and no more."""
    rng = np.random.default_rng(0)
    thresholds = [by_false_alarms(rng.exponential(size=count), parts(count), rate) for _ in range(2000)]
    shares = np.exp([-found.value for found in thresholds])  # of an exponential, what lies above
    assert shares.mean() == pytest.approx(thresholds[0].false_alarms, abs=4 * shares.std() / 2000**0.5)
    assert rate - 1 / (count + 1) < thresholds[0].false_alarms <= rate + 1e-12
    low, high = thresholds[0].false_alarms_interval
    assert (shares < low).mean() == pytest.approx(0.025, abs=0.012)
    assert (shares > high).mean() == pytest.approx(0.025, abs=0.012)


def test_few_images_promise_little():
    found = by_false_alarms(np.arange(10.0), parts(10), 0.01)
    assert found.value == pytest.approx(9, abs=1e-4)
    assert found.value > 9, "the picture that it is of stays below it"
    assert found.false_alarms == pytest.approx(1 / 11)
    assert found.interval[1] is None


def test_images_of_one_part_make_no_certainty():
    scores = np.random.default_rng(0).normal(size=60)
    one, three = (by_false_alarms(scores, parts(60, each), 0.2) for each in (1, 3))
    assert one.value <= three.value
    assert one.false_alarms_interval[1] < three.false_alarms_interval[1]
    assert three.interval[0] < one.interval[0] < one.value < one.interval[1] < (three.interval[1] or np.inf)


@pytest.mark.parametrize("alike", [1.0, 0.8, 0.0])
def test_new_pictures_of_new_parts_pass_it_as_rarely_as_was_asked(alike):
    """Some parts with one picture and some with six, more or less alike."""
    rng, rate = np.random.default_rng(0), 0.1
    part = np.repeat(np.arange(30), [1, 6] * 15)
    shares = []
    for _ in range(1000):
        mean, own = rng.normal(size=31), rng.normal(size=len(part))
        scores = np.sqrt(alike) * mean[part] + np.sqrt(1 - alike) * own
        shares.append(norm.sf(by_false_alarms(scores, part.astype(str).tolist(), rate).value))
        low, high = by_false_alarms(scores, part.astype(str).tolist(), rate).interval
        assert low <= by_false_alarms(scores, part.astype(str).tolist(), rate).value <= (high or np.inf)
    slack = 4 * np.std(shares) / 1000**0.5
    assert np.mean(shares) < rate + slack
    assert np.mean(shares) > rate - 1 / 31 - slack, "and not needlessly high"


def test_a_threshold_lies_between_its_score_and_the_next():
    """However close they are: scores of a sigmoid crowd at 0."""
    crowded = np.linspace(1e-8, 1e-7, 20)
    for rank in (3, 10, 18):
        found = above(crowded[rank], np.append(crowded, 0.99))
        assert crowded[rank] < found < crowded[rank + 1]
    found = by_cost(
        crowded,
        np.array([3e-7] * 10 + [0.99] * 10),
        (parts(20), parts(20)),
        miss=10,
        false_alarm=1,
        defect_rate=0.5,
    )
    assert crowded[-1] < found.value < 3e-7


def test_the_cheapest_threshold_is_found():
    rng = np.random.default_rng(1)
    normals, defects = rng.normal(size=40).round(1), rng.normal(1.5, size=25).round(1)  # with ties
    options = {"miss": 20, "false_alarm": 1, "defect_rate": 0.05}

    def cost(threshold):
        missed, called = (defects <= threshold).mean(), (normals > threshold).mean()
        return 0.05 * 20 * missed + 0.95 * called

    found = by_cost(normals, defects, (parts(40), parts(25)), **options)
    assert cost(found.value) == pytest.approx(min(map(cost, np.linspace(-5, 5, 2001))))
    assert found.cost >= cost(found.value), "what to expect is no better than what was seen"
    low, high = found.interval
    assert low <= found.value <= high
    assert found.cost_interval[0] < found.cost < found.cost_interval[1]
    assert found.cost == pytest.approx(0.05 * 20 * found.misses + 0.95 * found.false_alarms)
    again = by_cost(normals, defects, (parts(40), parts(25)), **options)
    assert again == found


def test_costs_pull_it_to_either_end():
    normals, defects = np.arange(10.0), np.arange(5.0, 15.0)
    both = (parts(10), parts(10))
    dear_miss = by_cost(normals, defects, both, miss=1e6, false_alarm=1, defect_rate=0.5)
    dear_alarm = by_cost(normals, defects, both, miss=1, false_alarm=1e6, defect_rate=0.5)
    assert (dear_miss.value, dear_alarm.value) == pytest.approx((4, 9), abs=1e-4)
    useless = by_cost(defects, normals, both, miss=1e6, false_alarm=1, defect_rate=0.5)
    assert useless.false_alarms == 1, "everything is called defective, the lowest score too"
    assert useless.value < 0


def test_what_to_expect_is_what_comes():
    """Over many draws the intervals hold the true rates and cost about as often as they say, and none is flattered."""
    from scipy.stats import norm

    rng = np.random.default_rng(3)
    held = {"false_alarms": 0, "misses": 0, "cost": 0}
    off = []
    for _ in range(150):
        normals, defects = rng.normal(size=30), rng.normal(1.5, size=15)
        found = by_cost(normals, defects, (parts(30), parts(15)), miss=5, false_alarm=1, defect_rate=0.2, resamples=10)
        truth = {"false_alarms": norm.sf(found.value), "misses": norm.cdf(found.value - 1.5)}
        truth["cost"] = 0.2 * 5 * truth["misses"] + 0.8 * truth["false_alarms"]
        off.append(found.cost - truth["cost"])
        for name, value in truth.items():
            low, high = getattr(found, f"{name}_interval")
            held[name] += low <= value <= high
    assert all(count >= 0.87 * 150 for count in held.values()), held
    assert abs(np.mean(off)) < 0.04


def test_a_part_with_pictures_of_both_kinds_is_held_out_as_a_whole():
    """Parts that are rough all over: their sound pictures must not help to judge their defects."""
    rng = np.random.default_rng(4)
    off = []
    for _ in range(120):
        rough = np.repeat(rng.normal(size=12), 3)
        normals, defects = rough + rng.normal(0, 0.3, 36), rough + 0.5 + rng.normal(0, 0.3, 36)
        names = parts(36, 3)
        found = by_cost(normals, defects, (names, names), miss=1, false_alarm=1, defect_rate=0.5, resamples=2)
        new = np.repeat(rng.normal(size=3000), 3)
        truth = 0.5 * (new + rng.normal(0, 0.3, 9000) > found.value).mean()
        truth += 0.5 * (new + 0.5 + rng.normal(0, 0.3, 9000) <= found.value).mean()
        off.append(found.cost - truth)
    assert abs(np.mean(off)) < 3 * np.std(off) / len(off) ** 0.5


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_the_currency_does_not_matter(scale):
    rng = np.random.default_rng(5)
    normals, defects = rng.normal(size=30), rng.normal(1, size=30)
    costs = {"miss": 3 * scale, "false_alarm": scale, "defect_rate": 0.3}
    plain = by_cost(normals, defects, (parts(30), parts(30)), miss=3, false_alarm=1, defect_rate=0.3)
    found = by_cost(normals, defects, (parts(30), parts(30)), **costs)
    assert found.value == plain.value
    assert found.cost == pytest.approx(scale * plain.cost)


def test_a_perfect_separation_is_no_certainty():
    found = by_cost(
        np.arange(20.0), np.arange(30.0, 38.0), (parts(20), parts(8)), miss=1, false_alarm=1, defect_rate=0.5
    )
    assert (found.false_alarms, found.misses) == (0.05, 0), "without the highest normal picture it would pass"
    assert found.misses_interval[1] > 0.3
    assert found.cost_interval[1] > 0.05


def test_whole_parts_are_drawn_again():
    rng = np.random.default_rng(2)
    normals, defects = np.repeat(rng.normal(size=10), 6), np.repeat(rng.normal(1, size=8), 6)
    options = {"miss": 1, "false_alarm": 1, "defect_rate": 0.5}
    alone = by_cost(normals, defects, (parts(60), parts(48)), **options).cost_interval
    grouped = by_cost(normals, defects, (parts(60, 6), parts(48, 6)), **options).cost_interval
    assert grouped[1] - grouped[0] > 1.4 * (alone[1] - alone[0])
