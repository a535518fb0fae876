import numpy as np
import pytest

from anomaly_lab.metrics.thresholds import by_cost, by_false_alarms


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
    one, six = (by_false_alarms(scores, parts(60, each), 0.1) for each in (1, 6))
    assert one.value == six.value
    assert one.false_alarms_interval[1] < six.false_alarms_interval[1]


def test_the_cheapest_threshold_is_found():
    rng = np.random.default_rng(1)
    normals, defects = rng.normal(size=40).round(1), rng.normal(1.5, size=25).round(1)  # with ties
    options = {"miss": 20, "false_alarm": 1, "defect_rate": 0.05}

    def cost(threshold):
        missed, called = (defects <= threshold).mean(), (normals > threshold).mean()
        return 0.05 * 20 * missed + 0.95 * called

    found = by_cost(normals, defects, (parts(40), parts(25)), **options)
    tried = np.linspace(-5, 5, 2001)
    assert found.cost == pytest.approx(cost(found.value))
    assert found.cost == pytest.approx(min(map(cost, tried)))
    assert found.false_alarms == (normals > found.value).mean()
    assert found.misses == (defects <= found.value).mean()
    low, high = found.interval
    assert low <= found.value <= high
    assert found.cost_interval[0] < found.cost < found.cost_interval[1]
    again = by_cost(normals, defects, (parts(40), parts(25)), **options)
    assert again == found


def test_costs_pull_it_to_either_end():
    normals, defects = np.arange(10.0), np.arange(5.0, 15.0)
    both = (parts(10), parts(10))
    dear_miss = by_cost(normals, defects, both, miss=1e6, false_alarm=1, defect_rate=0.5)
    dear_alarm = by_cost(normals, defects, both, miss=1, false_alarm=1e6, defect_rate=0.5)
    assert (dear_miss.misses, dear_alarm.false_alarms) == (0, 0)
    assert (dear_miss.value, dear_alarm.value) == pytest.approx((4, 9), abs=1e-4)
    useless = by_cost(defects, normals, both, miss=1e6, false_alarm=1, defect_rate=0.5)
    assert useless.false_alarms == 1, "everything is called defective, the lowest score too"
    assert useless.value < 0


def test_whole_parts_are_drawn_again():
    rng = np.random.default_rng(2)
    normals, defects = np.repeat(rng.normal(size=10), 6), np.repeat(rng.normal(1, size=8), 6)
    options = {"miss": 1, "false_alarm": 1, "defect_rate": 0.5}
    alone = by_cost(normals, defects, (parts(60), parts(48)), **options).cost_interval
    grouped = by_cost(normals, defects, (parts(60, 6), parts(48, 6)), **options).cost_interval
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])
