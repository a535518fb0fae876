import pytest
from terminal import line_with, text_of

from anomaly_lab.reporting.tables import auroc_remark, duration, interval, number, result_table


def example_metrics():
    rates = {"precision": 0.9121, "sensitivity": 0.31, "specificity": 0.92, "f1": 0.46}
    return {
        "image_auroc": 0.6421,
        "image_auroc_ci": [0.594, 0.688],
        "image_auroc_RLX": 0.6421,
        "image_auroc_RLZ": 0.431,
        "image_ap": 0.8123,
        **{f"image_{name}": value for name, value in rates.items()},
        **{f"image_{name}_defect_ratio": value / 2 for name, value in rates.items()},
        **{f"image_{name}_oracle": 0.95 for name in rates},
        "threshold": 0.0123456,
        "threshold_interval": [0.011, None],
        "threshold_normals": 100,
        "floor_knn_auroc": 0.65,
        "floor_pca_auroc": 0.59,
        "floor_all_f1": 0.847,
        "per_defect": {
            "scratch": {"image_auroc": 0.71, "count": 115, "sensitivity": 0.304},
            "dent": {"image_auroc": 0.47, "count": 57, "sensitivity": None},
            "[bold]$odd": {"image_auroc": None, "count": 1},
        },
    }


def test_numbers_have_three_decimals_and_intervals_two():
    assert number(0.64249) == "0.642"
    assert number(None) == "—"
    assert interval(0.6421, [0.594, 0.688]) == "0.642 [0.59, 0.69]"
    assert interval(0.6421, None) == "0.642"
    assert interval(None, None) == "—"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "—"), (0.4, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3200, "53 min"), (6400, "1.8 h")]
)
def test_durations_take_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "remark"),
    [
        (None, ""),
        (0.65, ""),
        (0.649, "! below the thumbnail floor"),
        (0.58, "! below both floors"),
        (0.499, "! below chance and both floors"),
    ],
)
def test_an_auroc_is_held_against_chance_and_the_floors(value, remark):
    assert auroc_remark(value, {"floor_knn_auroc": 0.65, "floor_pca_auroc": 0.59}) == remark


def test_an_auroc_without_floors_is_held_against_chance():
    assert auroc_remark(0.4, {"floor_knn_auroc": None}) == "! below chance"


def test_the_result_table_shows_each_number_where_it_belongs():
    text = text_of(result_table(example_metrics(), {}, "mt · dpae · seed 0"))
    assert text.startswith("mt · dpae · seed 0\n")
    assert "0.642 [0.59, 0.69]  ! below the thumbnail floor" in line_with(text, "AUROC ")
    assert line_with(text, "score RLZ").split() == [
        "score",
        "RLZ",
        "0.431",
        "!",
        "below",
        "chance",
        "and",
        "both",
        "floors",
    ]
    assert line_with(text, "average precision").split()[-1] == "0.812"
    assert line_with(text, "precision").split() == ["precision", "0.912", "0.456", "0.950"]
    assert line_with(text, "F1").split() == ["F1", "!", "0.460", "!", "0.230", "0.950"]
    assert "! below the floor: calling every image defective has F1 0.847" in text
    assert "0.01235" in text
    assert "0.011 to no bound" in text
    assert line_with(text, "floor: nearest thumbnail").split()[-1] == "0.650"


def test_columns_stand_in_the_order_of_the_thresholds():
    text = text_of(result_table(example_metrics(), {}))
    assert line_with(text, "val_quantile").split() == ["val_quantile", "defect_ratio", "oracle"]


def test_defects_stand_worst_first_with_their_counts():
    text = text_of(result_table(example_metrics(), {}))
    assert line_with(text, "dent").split() == ["dent", "57", "0.470", "—", "!", "below", "chance"]
    assert line_with(text, "scratch").split() == ["scratch", "115", "0.710", "30%"]
    assert line_with(text, "[bold]$odd").split() == ["[bold]$odd", "1", "—", "—"]
    assert text.index("dent") < text.index("scratch") < text.index("[bold]$odd")


def test_what_is_missing_is_a_dash_with_its_reason_once():
    metrics = dict.fromkeys([name for name in example_metrics() if name.startswith("image_")])
    reason = "no defective images in test; a long reason has to be broken into lines, and not be cut off at the end"
    text = text_of(result_table(metrics, dict.fromkeys(metrics, reason)))
    assert line_with(text, "AUROC ").split() == ["AUROC", "—"]
    assert "F1" not in text
    assert " ".join(text.split()).count(reason) == 1
    assert f"and {len(metrics) - 3} more" in text


def test_a_threshold_not_to_trust_is_a_warning_and_no_missing_value():
    text = text_of(result_table({"threshold": 1.0}, {"threshold_trust": "it stands on 7 images"}))
    assert "! it stands on 7 images" in text
    assert "threshold_trust" not in text


def test_a_run_without_any_metric_still_has_a_table():
    assert line_with(text_of(result_table({}, {})), "AUROC").split() == ["AUROC", "—"]


def test_a_name_that_is_no_utf8_can_be_printed():
    text = text_of(result_table({"per_defect": {"d\udce9": {"image_auroc": 0.7, "count": 2}}}, {}))
    assert text.encode("utf-8").decode("utf-8").count("d?") == 1


def test_normal_images_only_leave_a_short_table():
    rates = {"image_specificity": 0.58, "image_specificity_oracle": None, "image_f1": None}
    metrics = {"image_auroc": None, "image_auroc_RLX": None, "floor_knn_auroc": None, "image_ap": None, **rates}
    metrics |= {"val_image_auroc": 0.6, "threshold": 1.0, "threshold_interval": [0.9, None]}
    reasons = {"image_auroc": "no defective images in test", "threshold_interval": "open on one side"}
    text = text_of(result_table(metrics, reasons))
    assert "AUROC on val (painted)  0.600" in text
    assert line_with(text, "specificity").split() == ["specificity", "0.580"]
    assert line_with(text, "threshold  ").split() == ["threshold", "(to", "deploy)"]
    assert "0.9 to no bound" in text
    for absent in ("RLX", "floor", "precision", "F1", "oracle", "open on one side"):
        assert absent not in text


def test_pixels_stand_at_both_thresholds_and_by_area():
    metrics = example_metrics() | {
        "pixel_iou_defect": 0.4321,
        "pixel_iou_defect_oracle": 0.5,
        "pixel_miou": 0.7,
        "pixel_miou_oracle": None,
        "pixel_mae": 123.4,
        "pixel_mae_oracle": 99.6,
        "pixel_auroc": 0.95,
        "pixel_threshold": 0.5,
        "pixel_threshold_oracle": 0.123456,
        "floor_empty_miou": 0.498,
        "pixel_recall_by_area": {
            "1-15": {"count": 4, "found": 1, "pixel_recall": 0.055},
            "1024+": {"count": 0, "found": 0, "pixel_recall": None},
        },
    }
    text = text_of(result_table(metrics, {}))
    assert line_with(text, "IoU of defects").split()[-2:] == ["0.432", "0.500"]
    assert line_with(text, "IoU, mean").split()[-2:] == ["0.700", "—"]
    assert line_with(text, "wrong pixels").split()[-2:] == ["123", "100"]
    assert line_with(text, "threshold of the map").split()[-2:] == ["0.5", "0.1235"]
    assert line_with(text, "floor: marking nothing").split()[-1] == "0.498"
    assert line_with(text, "1-15").split() == ["1-15", "4", "1", "6%"]
    assert "1024+" not in text
    assert "pixels" not in text_of(result_table(example_metrics(), {}))


def test_a_segmentation_worse_than_marking_nothing_is_marked():
    pixels = {"pixel_miou": 0.49, "pixel_miou_oracle": 0.6, "floor_empty_miou": 0.498}
    assert line_with(text_of(result_table(pixels, {})), "IoU, mean").split()[-3:] == ["!", "0.490", "0.600"]


def test_the_score_that_counts_is_named_and_stands_once():
    text = text_of(result_table(example_metrics() | {"image_score": "RLX"}, {}))
    assert line_with(text, "AUROC of RLX").split()[3] == "0.642"
    assert "score RLX" not in text
    assert "score RLZ" in text


def test_few_tested_images_are_marked():
    counted = {"image_auroc": 1.0, "image_counts": {"normal": 2, "defective": 15}}
    assert line_with(text_of(result_table(counted, {})), "tested on").split()[2:7] == [
        "2",
        "normal,",
        "15",
        "defective",
        "!",
    ]
    on_val = {"val_image_auroc": 0.333, "val_image_counts": {"normal": 3, "defective": 3}}
    assert "0.333 of 3 and 3 ! few" in " ".join(text_of(result_table(on_val, {})).split())
    on_val["val_image_counts"] = {"normal": 30, "defective": 30}
    assert "0.333 of 30 and 30 ! below chance" in " ".join(text_of(result_table(on_val, {})).split())
    counted["image_counts"]["normal"] = 10
    assert "!" not in line_with(text_of(result_table(counted, {})), "tested on")


@pytest.mark.parametrize(("rates", "said"), [((0.0, 1.0), "calls no test"), ((1.0, 0.0), "calls every test")])
def test_a_threshold_that_tells_nothing_apart_is_marked(rates, said):
    found = {"threshold": 0.5, "image_sensitivity": rates[0], "image_specificity": rates[1]}
    assert said in text_of(result_table(found, {}))
    assert "! it calls" not in text_of(result_table(example_metrics(), {}))
