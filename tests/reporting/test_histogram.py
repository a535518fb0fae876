import numpy as np
import pytest
from figure_tools import METRICS, drawn, make_table, texts

from anomaly_lab.reporting.histogram import score_figure


def test_each_class_has_a_row_with_its_count_and_its_share_above_the_threshold():
    table = make_table()
    figure = score_figure(table, METRICS, "mt · dpae")
    rows = [axes.texts[0].get_text().split("\n") for axes in figure.axes]
    expected = []
    for name, members in (("all normal", "good"), ("dent", "dent"), ("scratch", "scratch")):
        scores = table.primary_scores[np.array(table.defect) == members]
        expected.append([name, f"{len(scores)} images", f"{np.mean(scores > 1):.0%} flagged"])
    assert rows == expected
    assert all(len(axes.patches) == 1 + (row > 0) for row, axes in enumerate(figure.axes))
    assert "Scores by class, mt · dpae" in texts(figure)
    assert all(axes.lines[0].get_xdata()[0] == 1.0 for axes in figure.axes)


def test_histogram_bars_sum_to_the_whole_class():
    figure = score_figure(make_table(scores=[*np.linspace(0, 1, 49), 1e6]), METRICS)
    bars = [patch.get_data().values for axes in figure.axes for patch in axes.patches]
    assert [shares.sum() for shares in bars] == pytest.approx([1] * 5)
    for shares, count in zip(bars, (30, 30, 12, 30, 8), strict=True):
        assert shares * count == pytest.approx(np.round(shares * count))


def test_at_most_eight_defect_types_have_a_row_and_the_rest_one_together():
    table = make_table(5, {f"type{number:02}": number for number in range(1, 12)})
    figure = score_figure(table, {})
    names = [axes.texts[0].get_text().split("\n") for axes in figure.axes]
    assert [name for name, _ in names] == ["all normal", *(f"type{n:02}" for n in range(4, 12)), "other (3 types)"]
    assert names[-1][1] == "6 images"


def test_one_far_score_does_not_squeeze_the_others():
    figure = score_figure(make_table(scores=[*np.linspace(0, 1, 49), 1e6]), METRICS)
    low, high = figure.axes[-1].get_xlim()
    assert -0.1 < low < high < 1.1
    assert any("1 image beyond the axis, as far as 1e+06, in the end bins" in text for text in texts(figure))


def test_scores_over_many_decades_are_drawn_on_a_log_axis():
    figure = drawn(score_figure(make_table(30, {"dent": 20}, np.geomspace(1e-4, 1e4, 50)), METRICS))
    assert figure.axes[-1].get_xscale() == "log"
    assert figure.axes[-1].get_xlim()[0] < 1e-4
    assert figure.axes[-1].get_xlim()[1] > 1e4
    assert "log axis" in figure.axes[-1].get_xlabel()


def test_a_threshold_far_from_all_scores_is_named_and_not_shown():
    figure = score_figure(make_table(), {"threshold": 1e9})
    assert figure.axes[-1].get_xlim()[1] < 10
    assert any("threshold 1e+09, beyond the axis" in text for text in texts(figure))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e9, 1e-12])
def test_constant_scores_are_drawn(value):
    table = make_table(3, {"dent": 2}, scores=np.full(5, value))
    figure = drawn(score_figure(table, {"threshold": value}))
    low, high = figure.axes[0].get_xlim()
    assert low < value < high


def test_defective_images_alone_are_drawn():
    table = make_table(0, {"dent": 3})
    figure = drawn(score_figure(table, METRICS))
    assert [axes.texts[0].get_text().split("\n")[0] for axes in figure.axes] == ["dent"]
    assert not any("grey" in text for text in texts(figure))


def test_no_class_is_cut_off_whole():
    scores = [0.243, *np.linspace(0.994, 0.999, 15)]
    table = make_table(1, {"dent": 15}, scores)
    figure = drawn(score_figure(table, {"threshold": 0.5}))
    low, high = figure.axes[-1].get_xlim()
    assert low < 0.243
    assert high > 0.999
    assert not any("beyond the axis" in text for text in texts(figure))
