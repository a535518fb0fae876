from dataclasses import replace

import numpy as np
import pytest
from figure_tools import drawn, full_gallery, make_table, texts

from anomaly_lab.reporting.segmentations import best_median_worst, defect_ious, segmentation_figure


def counted(ious, normal=2):
    """A table of `normal` normal images and defective ones with these IoUs (None: no scored defect)."""
    table = make_table(normal, {"dent": len(ious)})
    tp = [0] * normal + [0 if iou is None else round(100 * iou) for iou in ious]
    fn = [0] * normal + [0 if iou is None else 100 - round(100 * iou) for iou in ious]
    counts = {"TP": tp, "FP": [0] * len(tp), "FN": fn, "TN": [50] * len(tp)}
    return replace(table, counts={name: np.array(column, np.int64) for name, column in counts.items()})


def test_ious_are_of_images_with_a_scored_defect():
    ious = defect_ious(counted([0.3, None, 1.0]))
    assert np.isnan(ious[[0, 1, 3]]).all()
    assert ious[[2, 4]].tolist() == [0.3, 1.0]
    assert np.isnan(defect_ious(make_table())).all()


@pytest.mark.parametrize(
    ("ious", "expected"),
    [
        ([], ([], [], [])),
        ([0.5], ([2], [], [])),
        ([0.1, 0.9], ([3], [], [2])),
        ([0.1, 0.9, 0.5], ([3], [4], [2])),
        ([i / 10 for i in range(10)], ([11, 10, 9], [8, 7, 6], [4, 3, 2])),
    ],
)
def test_no_image_stands_twice(ious, expected):
    found = best_median_worst(counted(ious))
    assert tuple(found.values()) == expected
    assert list(found) == ["best", "median", "worst"]


def test_a_row_is_one_image_with_all_columns():
    table = counted([0.9, 0.5, 0.1])
    gallery = full_gallery(table)
    gallery["anomaly_map"] = np.random.default_rng(0).random((5, 16, 16), np.float32)
    gallery["mask"][3, 0] = 255
    figure = drawn(segmentation_figure(gallery, table, {"pixel_threshold": 0.5}, "mt · unet · seed 0"))
    found = texts(figure)
    for text in ("Segmentations, mt · unet · seed 0", "input", "reconstruction", "difference", "truth", "map"):
        assert text in found
    assert [text for text in found if text.endswith("of 3")] == ["best of 3", "median of 3", "worst of 3"]
    assert [float(text.rpartition(" ")[2]) for text in found if "IoU of the defect" in text] == [0.9, 0.5, 0.1]
    shown = list(figure.axes[0].images)
    assert len(shown) == 15
    difference = np.abs(gallery["image"].astype(int) - gallery["reconstruction"])
    white = np.percentile(difference[2:], 99.8)
    assert np.abs(shown[7].get_array() - np.minimum(difference[3] * 255 / white, 255)).max() <= 1
    assert any(f"difference white from {white / 255:.2g}" in text for text in found)
    assert set(np.unique(shown[8].get_array())) == {0, 110, 255}
    assert (shown[9].get_array() == gallery["anomaly_map"][3]).all()
    assert len(figure.axes[0].collections) == 3, "a line around what is above the threshold, on each map"


def test_what_is_missing_has_no_column():
    table = counted([0.9, 0.5, 0.1])
    gallery = {name: array for name, array in full_gallery(table).items() if name != "reconstruction"}
    assert segmentation_figure(gallery, table, {}) is None
    gallery["anomaly_map"] = np.zeros((5, 16, 16), np.float32)
    figure = drawn(segmentation_figure(gallery, table, {}))
    assert len(figure.axes[0].images) == 9
    assert segmentation_figure(gallery, make_table(2, {"dent": 3}), {}) is None
