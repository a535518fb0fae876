from pathlib import Path

import numpy as np
import pytest
from figure_tools import METRICS, drawn, full_gallery, make_gallery, make_table, texts

from anomaly_lab.errors import RunError
from anomaly_lab.reporting.cases import cases_figure

GROUPS = (
    "Defects with the highest scores",
    "Defects with the lowest scores",
    "Normals with the highest scores",
    "Normals with the lowest scores",
)


def pictures(figure):
    return list(figure.axes[0].images)


@pytest.fixture(scope="module")
def four():
    """Two normal and two defective images with a score of 0 to 3 each, their gallery and their figure."""
    table = make_table(2, {"dent": 2}, scores=[0, 1.0, 2, 3])
    gallery = full_gallery(table)
    return table, gallery, drawn(cases_figure(gallery, table, METRICS))


def captions(figure):
    return [text for text in texts(figure) if "above" in text and "\n" in text]


def test_cases_are_the_ends_of_the_ranking():
    table = make_table()
    figure = cases_figure(full_gallery(table), table, METRICS, "mt · dpae · seed 0")
    found = texts(figure)
    assert [text for text in found if text in GROUPS] == list(GROUPS)
    assert "Best and worst cases, mt · dpae · seed 0" in found
    assert len(pictures(figure)) == 4 * 4 * 3
    order = np.argsort(table.primary_scores)
    ranked = {label: [row for row in order if table.label[row] == label] for label in (0, 1)}
    wanted = [*ranked[1][:-5:-1], *ranked[1][:4], *ranked[0][:-5:-1], *ranked[0][:4]]
    scores = table.primary_scores
    assert captions(figure) == [
        f"{table.defect[row]}\n{Path(table.path[row]).name}\n"
        f"{scores[row]:.4g} · above {np.sum(scores < scores[row]) / 50:.1%}"
        for row in wanted
    ]


def test_a_column_shows_one_image_from_the_input_down(four):
    _, gallery, figure = four
    shown = pictures(figure)
    for start, row in zip((0, 3, 6, 9), (3, 2, 1, 0), strict=True):
        assert (shown[start].get_array() == gallery["image"][row]).all()
        assert (shown[start + 1].get_array() == gallery["reconstruction"][row]).all()
        lefts, tops = zip(
            *[(left, top) for left, _, _, top in (p.get_extent() for p in shown[start:][:3])], strict=True
        )
        assert len(set(lefts)) == 1
        assert sorted(set(tops)) == list(tops)


def test_the_difference_is_the_mean_over_channels_on_one_scale(four):
    _, gallery, figure = four
    maps = pictures(figure)[2::3]
    assert len(maps) == 4
    assert len({image.get_clim() for image in maps}) == 1
    assert maps[0].get_clim()[0] == 0
    expected = np.mean(
        [abs(gallery["image"][3, 5, 7, c] / 255 - gallery["reconstruction"][3, 5, 7, c] / 255) for c in range(3)]
    )
    assert maps[0].get_array()[5, 7] == pytest.approx(expected)
    assert "mean absolute difference" in texts(figure)
    bar = figure.axes[1].get_ylim()
    assert bar == pytest.approx(maps[0].get_clim())


def contours(figure):
    from matplotlib.contour import ContourSet

    return figure.findobj(ContourSet)


def test_only_known_defective_pixels_are_outlined(four):
    table, gallery, figure = four
    assert len(contours(figure)) == 2  # two defective images
    unknown = np.where(table.label[:, None, None] == 1, np.uint8(255), gallery["mask"])
    figure = cases_figure(gallery | {"mask": unknown}, table, METRICS)
    assert contours(figure) == []
    assert not any("true defect" in text for text in texts(figure))


def test_an_outline_encloses_its_defect_in_its_picture(four):
    _, _, figure = four
    line, picture = contours(figure)[0], pictures(figure)[0]
    left, right, bottom, top = picture.get_extent()
    (x0, y0), (x1, y1) = line.get_paths()[0].get_extents().get_points()
    columns, rows = (np.array([x0, x1]) - left) / (right - left) * 16, (np.array([y0, y1]) - top) / (bottom - top) * 16
    # rows 4 to 8 and columns 5 to 11 are defective; the line runs between a half and one and a half pixels outside
    assert columns == pytest.approx([4, 13], abs=0.51)
    assert rows == pytest.approx([3, 10], abs=0.51)


def test_a_mask_over_the_whole_image_neither_leaves_its_picture_nor_changes_the_view():
    table = make_table(1, {"dent": 1}, scores=[0, 1])
    gallery = full_gallery(table)
    gallery["mask"][1] = 1
    figure = drawn(cases_figure(gallery, table, METRICS))
    page, (width, height) = figure.axes[0], figure.get_size_inches()
    assert (page.get_xlim(), page.get_ylim()) == ((0, width), (height, 0))
    (line,) = contours(figure)
    assert line.get_clip_box().bounds == pytest.approx(pictures(figure)[0].get_window_extent().bounds)


def test_flagged_inputs_have_a_frame(four):
    _, _, figure = four  # scores 3, 2, 1, 0, and 1.0 is not above 1.0
    framed = [patch.get_bbox().extents for patch in figure.axes[0].patches]
    boxes = [(left, top, right, bottom) for left, right, bottom, top in (p.get_extent() for p in pictures(figure)[::3])]
    assert np.array(framed) == pytest.approx(np.array(boxes[:2]))


@pytest.mark.parametrize(
    ("drop", "extra", "rows"),
    [
        ((), (), 3),
        (("reconstruction",), (), 1),
        (("reconstruction", "mask"), ("anomaly_map",), 2),
        (("mask",), ("anomaly_map",), 3),
    ],
)
def test_cases_show_what_the_gallery_has(drop, extra, rows):
    table = make_table(2, {"dent": 2})
    gallery = {name: array for name, array in full_gallery(table).items() if name not in drop}
    if extra:
        gallery["anomaly_map"] = np.linspace(-3, 5, 4 * 256, dtype=np.float32).reshape(4, 16, 16)
    figure = drawn(cases_figure(gallery, table, METRICS))
    assert len(pictures(figure)) == 4 * rows
    assert ("anomaly map" in texts(figure)) == (rows == 2)


@pytest.mark.parametrize(("label", "heading"), [(0, GROUPS[2]), (1, GROUPS[0])])
def test_one_image_is_shown_once(label, heading):
    table = make_table(1 - label, {"dent": label})
    figure = drawn(cases_figure(full_gallery(table), table, {}))
    assert len(pictures(figure)) == 3
    assert [text for text in texts(figure) if text in GROUPS] == [heading]


def test_no_image_is_shown_twice():
    table = make_table(0, {"dent": 5}, scores=[5, 4, 3, 2, 1])
    found = captions(cases_figure(full_gallery(table), table, {}))
    assert [text.split("\n")[2].split()[0] for text in found] == ["5", "4", "3", "1", "2"]


def test_a_flat_map_is_drawn():
    table = make_table(2, {"dent": 2})
    gallery = make_gallery(table.index)
    drawn(cases_figure(gallery | {"reconstruction": gallery["image"]}, table, {}))
    drawn(cases_figure(gallery | {"anomaly_map": np.ones((4, 16, 16), np.float32)}, table, {}))


def test_a_gallery_of_other_images_is_refused():
    with pytest.raises(RunError, match=r"image 77 is not in scores\.csv"):
        cases_figure(make_gallery([0, 77]), make_table(), {})


def test_a_segmenter_shows_the_map_that_it_scores_by():
    table = make_table(4, {"dent": 4})
    gallery = full_gallery(table)
    gallery["anomaly_map"] = np.full((8, 16, 16), 0.01, np.float32)
    shown = texts(drawn(cases_figure(gallery, table, {"threshold": 0.5, "pixel_threshold_rule": "method"})))
    assert {"input", "reconstruction", "anomaly map"} <= set(shown)
    assert "difference" not in shown
    residual = {"threshold": 0.5, "pixel_threshold": 0.5, "pixel_threshold_rule": "largest_gap"}
    assert "difference" in texts(drawn(cases_figure(gallery, table, residual)))
