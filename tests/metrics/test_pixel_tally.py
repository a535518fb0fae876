import json

import numpy as np
import pytest
import torch
from forked import on_ranks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from anomaly_lab.errors import TrainingError
from anomaly_lab.metrics.pixel import AREAS, BINS, at_largest_gap, gap_threshold, lowest_value, pixel_metrics
from anomaly_lab.metrics.pixel_tally import PixelTally, defect_regions, pixel_bins, pixel_counts, pixel_histograms

IOUS = ("pixel_iou_defect", "pixel_iou_background", "pixel_miou")
RANKED = ("pixel_auroc", "pixel_auroc_error", "pixel_aupro", "pixel_aupro_error")
AT_THRESHOLD = ("pixel_threshold", *IOUS, "pixel_mae", "pixel_miou_per_image", "pixel_recall_by_area")
AT_ORACLE = tuple(f"{name}_oracle" for name in ("pixel_threshold", *IOUS, "pixel_mae"))
FLOORS = ("floor_empty_miou", "floor_empty_mae")
CONTRACT = {*RANKED, *AT_THRESHOLD, *AT_ORACLE, *FLOORS}

REAL = st.floats(width=32, allow_nan=False)
FINITE = st.floats(-1000, 1000, width=32).map(lambda value: value if abs(value) > 1e-9 else 0.0)
PROBABILITY = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0, 1 - 2**-24])
TIED = st.integers(-4, 4).map(float)


@st.composite
def scenes(draw, values=REAL | TIED, kinds=(0, 1, 255)):
    """Maps and masks (B, 1, H, W)."""
    shape = (draw(st.integers(1, 4)), 1, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    maps = draw(hnp.arrays(np.float32, shape, elements=values))
    masks = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(kinds)))
    return torch.from_numpy(maps), torch.from_numpy(masks)


def both_classes(scene):
    return {0, 1} <= set(scene[1].flatten().tolist())


def drawn(count=6, side=40, seed=0):
    """Noisy maps that are higher on round defects of many sizes; the first two images are normal."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((count, 1, side, side), np.uint8)
    for image in range(2, count):
        for largest in (1, 3, 6, side / 10, side / 5):
            (row, column), radius = rng.integers(0, side, 2), largest * rng.uniform(0.5, 1)
            masks[image, 0][(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 1
    maps = rng.normal(masks * 1.2).astype(np.float32)
    masks[:, :, :2, : side // 2] = 255
    return torch.from_numpy(maps), torch.from_numpy(masks)


def tallied(maps, masks, threshold=None, batch=100, **options):
    tally = PixelTally(threshold, **options)
    for start in range(0, len(maps), batch):
        tally.update(maps[start : start + batch], masks[start : start + batch])
    return tally.compute()


def measured(maps, masks, threshold=None, **options):
    return pixel_metrics(tallied(maps, masks, threshold, **options))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def rounded(maps):
    """The maps with the values that bfloat16 has."""
    return maps.bfloat16().float()


def exact_auroc(maps, masks):
    scored = masks != 255
    ranks = np.unique(maps[scored].numpy() + 0.0, return_inverse=True)[1]  # scikit-learn takes no infinite score
    return roc_auc_score(masks[scored].numpy(), ranks)


def flood(mask):
    """The regions of one mask (H, W) as lists of (row, column)."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask == 1)}
    regions = []
    while left:
        region, todo = [], [left.pop()]
        while todo:
            row, column = todo.pop()
            region.append((row, column))
            near = {(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)} & left
            left -= near
            todo += near
        regions.append(region)
    return regions


def slow_aupro(maps, masks, limit=0.3):
    """Recall of every region and the false positive rate at every threshold, one after another."""
    maps, masks = maps[:, 0].double().numpy(), masks[:, 0].numpy()
    regions = [(image, *np.transpose(region)) for image, mask in enumerate(masks) for region in flood(mask)]
    normal = maps[masks == 0]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps[masks != 255])[::-1]:
        fpr.append((normal >= threshold).mean())
        pro.append(np.mean([(maps[region] >= threshold).mean() for region in regions]))
    end = next(place for place, rate in enumerate(fpr) if rate >= limit)
    slope = (pro[end] - pro[end - 1]) / (fpr[end] - fpr[end - 1])
    at_limit = pro[end - 1] + slope * (limit - fpr[end - 1])
    return np.trapezoid([*pro[:end], at_limit], [*fpr[:end], limit]) / limit


@settings(max_examples=50)
@given(scenes())
def test_auroc_is_that_of_scikit_learn_within_its_error(scene):
    assume(both_classes(scene))
    metrics, _ = measured(*scene)
    assert abs(metrics["pixel_auroc"] - exact_auroc(*scene)) <= metrics["pixel_auroc_error"] + 1e-12
    maps, masks = rounded(scene[0]), scene[1]
    assert measured(maps, masks)[0]["pixel_auroc"] == pytest.approx(exact_auroc(maps, masks), abs=1e-12)


@settings(max_examples=50)
@given(scenes(PROBABILITY))
def test_auroc_of_probabilities_is_that_of_scikit_learn_within_its_error(scene):
    assume(both_classes(scene))
    metrics, _ = measured(*scene, probability=True)
    assert abs(metrics["pixel_auroc"] - exact_auroc(*scene)) <= metrics["pixel_auroc_error"] + 1e-12


def test_auroc_of_many_pixels_has_a_small_error():
    maps, masks = drawn(side=120)
    metrics, _ = measured(maps, masks)
    assert 1e-5 < metrics["pixel_auroc_error"] < 2e-3
    assert 0 < abs(metrics["pixel_auroc"] - exact_auroc(maps, masks)) < 1e-5
    # the same ranking, crowded at both ends of [0, 1]; float32 itself ties some of it
    maps = (6 * maps.double()).sigmoid().float()
    metrics, _ = measured(maps, masks, probability=True)
    assert metrics["pixel_auroc_error"] < 1e-3
    assert metrics["pixel_auroc"] == pytest.approx(exact_auroc(maps, masks), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scale", [1.0, 0.3, -1.0])
def test_aupro_is_that_of_a_loop_over_all_thresholds(seed, scale):
    maps, masks = drawn(side=22, seed=seed)
    maps = maps * scale
    metrics, _ = measured(maps, masks)
    assert metrics["pixel_aupro"] == pytest.approx(slow_aupro(maps, masks), abs=1e-3)
    assert abs(metrics["pixel_aupro"] - slow_aupro(maps, masks)) <= metrics["pixel_aupro_error"]
    metrics, _ = measured(rounded(maps), masks)
    assert metrics["pixel_aupro"] == pytest.approx(slow_aupro(rounded(maps), masks), abs=1e-10)


@settings(max_examples=50)
@given(scenes(FINITE | TIED))
def test_aupro_is_within_its_error(scene):
    assume(both_classes(scene))
    metrics, _ = measured(*scene)
    assert abs(metrics["pixel_aupro"] - slow_aupro(*scene)) <= metrics["pixel_aupro_error"] + 1e-9


def line(normal, *regions):
    """One image of a row each of normal pixels and of regions, with ignored pixels between."""
    width = max(map(len, (normal, *regions)))
    maps, masks = torch.zeros(1, 1, 2 * len(regions) + 1, width), None
    masks = torch.full_like(maps, 255, dtype=torch.uint8)
    for row, values in enumerate((normal, *regions)):
        maps[0, 0, 2 * row, : len(values)] = torch.tensor(values)
        masks[0, 0, 2 * row, : len(values)] = min(row, 1)
    return maps, masks


@pytest.mark.parametrize(
    ("normal", "small", "expected"),
    [
        # mean recall 1/4 from 20 on, 3/4 from the small region on
        (range(1, 11), 9.5, 0.1 * 0.25 + 0.2 * 0.75),
        (range(1, 5), 3.5, 0.25 * 0.25 + 0.05 * 0.75),
        (range(1, 5), 3.0, 0.25 * 0.25 + 0.05 * (0.25 + 0.35) / 2),  # tied with a normal pixel
        (range(1, 5), 30.0, 0.3 * 0.75),
        (range(1, 5), 0.5, 0.3 * 0.25),
        ([7.0], 30.0, 0.3 * (0.75 + 0.75) / 2),
    ],
)
def test_aupro_by_hand(normal, small, expected):
    scene = line([float(value) for value in normal], [small], [20.0, 0.25])
    assert measured(*scene)[0]["pixel_aupro"] == pytest.approx(expected / 0.3, abs=1e-9)


@settings(max_examples=40)
@given(scenes(FINITE | TIED), st.integers(-40, 40))
def test_scaling_by_a_power_of_two_changes_no_ranking(scene, power):
    assume(both_classes(scene))
    maps, masks = scene
    plain, scaled = measured(maps, masks)[0], measured(maps * 2.0**power, masks)[0]
    assert scaled.pop("pixel_threshold_oracle") == plain.pop("pixel_threshold_oracle") * 2.0**power
    assert scaled == plain


@settings(max_examples=30)
@given(scenes(), st.sampled_from([np.nan, np.inf, -np.inf, 0.25, -3.0]), st.sampled_from([None, 0.25]))
def test_ignored_pixels_change_nothing(scene, value, threshold):
    maps, masks = scene
    other = torch.where(masks == 255, value, maps)
    assert same(tallied(maps, masks, threshold), tallied(other, masks, threshold))
    outside = torch.where(masks == 255, 7.0, maps.sigmoid())
    assert same(
        tallied(maps.sigmoid(), masks, threshold, probability=True),
        tallied(outside, masks, threshold, probability=True),
    )


@settings(max_examples=30)
@given(scenes(), st.sampled_from([None, 0.0, 1.5]), st.randoms())
def test_parts_in_any_order_add_up_to_the_whole_bit_for_bit(scene, threshold, random):
    maps, masks = scene
    order = list(range(len(maps)))
    random.shuffle(order)
    halves = [PixelTally(threshold), PixelTally(threshold)]
    for place, image in enumerate(order):
        halves[place % 2].update(maps[[image]], masks[[image]])
    halves[0].merge_state(halves[1])
    assert same(halves[0].compute(), tallied(maps, masks, threshold))


@settings(max_examples=50)
@given(scenes(), REAL | TIED)
def test_counts_are_those_of_numpy(scene, threshold):
    maps, masks = scene
    counts = pixel_counts(maps, masks, threshold)
    assert counts.dtype == torch.int64
    flags, truth = maps.numpy() >= np.float32(threshold), masks.numpy()
    expected = [
        [int((flag == flagged)[mask == kind].sum()) for flagged, kind in ((1, 1), (1, 0), (0, 1), (0, 0))]
        for flag, mask in zip(flags, truth, strict=True)
    ]
    assert counts.tolist() == expected
    assert tallied(maps, masks, threshold).counts.tolist() == np.sum(expected, 0).tolist()


@settings(max_examples=50)
@given(scenes(), st.booleans())
def test_counts_at_the_edge_of_a_bin_are_those_of_the_histogram(scene, probability):
    maps, masks = scene
    if probability:
        maps = maps.sigmoid()
    bins = pixel_bins(maps, masks, probability=probability)
    normal, defective = pixel_histograms(bins, masks).numpy()
    assert normal.sum() == (masks == 0).sum()
    assert defective.sum() == (masks == 1).sum()
    for row in {0x7F, BINS // 2, *bins.flatten().tolist()}:
        counts = pixel_counts(maps, masks, lowest_value(row, probability=probability)).sum(0)
        assert counts[:2].tolist() == [defective[row:].sum(), normal[row:].sum()]


@settings(max_examples=100)
@given(hnp.arrays(np.float32, (1, 1, 1, 30), elements=REAL | TIED | PROBABILITY), st.booleans())
def test_bins_rise_with_the_map(maps, probability):
    maps = np.sort(maps, axis=None).reshape(maps.shape)
    if probability:
        maps = maps.clip(0, 1)
    bins = pixel_bins(torch.from_numpy(maps), torch.zeros(maps.shape, dtype=torch.uint8), probability=probability)
    bins, maps = bins.flatten().numpy(), maps.flatten()
    assert (np.diff(bins) >= 0).all()
    assert (bins[maps < (0.5 if probability else 0)] < BINS // 2 + 0x3F80 * probability).all()
    assert (bins[maps >= (0.5 if probability else 0)] >= BINS // 2 + 0x3F80 * probability).all()


def test_bins_of_special_values():
    def bins(*values, **options):
        maps = torch.tensor(values).view(1, 1, 1, -1)
        return pixel_bins(maps, torch.zeros(maps.shape, dtype=torch.uint8), **options).flatten().tolist()

    assert bins(-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf) == [0x7F, 0x407F, 0x8000, 0x8000, 0xBF80, 0xFF80]
    assert bins(1.0, 1 + 1 / 128 - 2**-23, 1 + 1 / 128) == [0xBF80, 0xBF80, 0xBF81]
    assert bins(-1e-45, 1e-45) == [0x7FFF, 0x8000]
    assert bins(0.0, 0.5, 1.0, probability=True) == [0x8000, 0xBF80, 0xFF80]
    under, over = 0.5 - 2**-25, 1 - 2**-24  # next to 0.5 and to 1
    assert bins(under, over, probability=True) == [0xBF7F, 0x8000 + (127 + 24 << 7) - 1]


def test_everything_of_a_drawn_set_is_that_of_a_plain_computation():
    maps, masks = drawn()
    metrics, reasons = measured(maps, masks, 0.7)
    assert metrics.keys() == CONTRACT
    assert reasons == {}

    def plain(threshold):
        flags, scored, truth = maps.numpy() >= np.float32(threshold), masks.numpy() != 255, masks.numpy() == 1
        ious = []
        for image in range(len(maps)):
            parts = []
            for true, flagged in ((truth, flags), (~truth, ~flags)):
                true, flagged = true[image][scored[image]], flagged[image][scored[image]]
                if (true | flagged).any():
                    parts.append((true & flagged).sum() / (true | flagged).sum())
            ious.append(np.mean(parts))
        true, flagged = truth[scored], flags[scored]
        defect = (true & flagged).sum() / (true | flagged).sum()
        background = (~true & ~flagged).sum() / (~true | ~flagged).sum()
        wrong = np.mean([((truth ^ flags)[image] & scored[image]).sum() for image in range(len(maps))])
        return {
            "pixel_iou_defect": defect,
            "pixel_iou_background": background,
            "pixel_miou": (defect + background) / 2,
            "pixel_mae": wrong,
            "pixel_miou_per_image": np.mean(ious),
        }

    expected = plain(0.7)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-10)
    oracle = plain(metrics["pixel_threshold_oracle"])
    del oracle["pixel_miou_per_image"]
    assert {name: metrics[f"{name}_oracle"] for name in oracle} == pytest.approx(oracle, abs=1e-12)
    empty = plain(np.inf)
    assert empty["pixel_iou_defect"] == 0
    found = {name: metrics[f"floor_empty_{name}"] for name in ("miou", "mae")}
    assert found == pytest.approx({name: empty[f"pixel_{name}"] for name in found}, abs=1e-12)


def test_the_threshold_of_the_largest_gap_by_hand():
    # TPR - FPR at 9: 1/4; 8: 1/4 - 1/8; 7: 3/4 - 2/8; 6: 3/4 - 6/8; 5: 0
    scene = line([8.0, 7.0, 6.0, 6.0, 6.0, 6.0, 5.0, 5.0], [9.0, 7.0, 7.0, 5.0])
    totals = tallied(*scene)
    assert gap_threshold(totals) == 7
    metrics, _ = pixel_metrics(totals)
    assert {name: metrics[name] for name in AT_ORACLE} == pytest.approx(
        {
            "pixel_threshold_oracle": 7,
            "pixel_iou_defect_oracle": 3 / 6,
            "pixel_iou_background_oracle": 6 / 9,
            "pixel_miou_oracle": (3 / 6 + 6 / 9) / 2,
            "pixel_mae_oracle": 3,
        }
    )
    probable = tallied(scene[0].sub(7).sigmoid(), scene[1], probability=True)
    assert gap_threshold(probable) == 0.5


@settings(max_examples=30)
@given(scenes(), st.booleans())
def test_a_fitted_threshold_is_as_good_as_any(scene, probability):
    assume(both_classes(scene))
    maps, masks = (scene[0].sigmoid() if probability else scene[0]), scene[1]

    def gap(threshold):
        tp, fp, fn, tn = pixel_counts(maps, masks, threshold).sum(0).tolist()
        return tp / (tp + fn) - fp / (fp + tn)

    maps = maps if probability else rounded(maps)
    threshold = gap_threshold(tallied(maps, masks, probability=probability))
    bins = pixel_bins(maps, masks, probability=probability)[masks != 255]
    edges = [lowest_value(row, probability=probability) for row in bins.tolist()]
    assert gap(threshold) == pytest.approx(max(map(gap, edges)), abs=1e-12)
    if not probability:
        assert gap(threshold) == pytest.approx(max(gap(value) for value in maps[masks != 255].tolist()), abs=1e-12)


def test_saturated_probabilities():
    maps, masks = line([0.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1 - 2**-24, 0.0])
    metrics, reasons = measured(maps, masks, 0.5, probability=True)
    assert reasons == {}
    assert metrics["pixel_auroc"] == pytest.approx(exact_auroc(maps, masks), abs=1e-12)
    assert metrics["pixel_auroc_error"] == pytest.approx((1 * 2 + 2 * 1) / 16 / 2)  # ties at 1 and at 0
    assert metrics["pixel_iou_defect"] == 3 / 6
    assert 0.5 < metrics["pixel_threshold_oracle"] <= 1 - 2**-24
    assert metrics["pixel_iou_defect_oracle"] == 3 / 5


def test_regions_touch_at_corners_and_end_with_their_image():
    masks = np.zeros((2, 1, 4, 4), np.uint8)
    masks[0, 0] = [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 255], [1, 0, 0, 1]]
    masks[1, 0, 0, 0] = 1
    pixels, region = defect_regions(masks)
    found = {tuple(pixels[region == label]) for label in range(region.max() + 1)}
    assert found == {(0, 5), (3, 7), (12,), (15,), (16,)}


def test_recall_by_area_is_that_of_a_flood_fill():
    maps, masks = drawn(16, 180)
    metrics, _ = measured(maps, masks, 2.2)
    expected = {area: [] for area in AREAS}
    for image in range(len(maps)):
        for region in flood(masks[image, 0].numpy()):
            area = [name for name, least in AREAS.items() if len(region) >= least][-1]
            expected[area].append(np.mean([maps[image, 0, row, column] >= 2.2 for row, column in region]))
    assert all(map(len, expected.values()))
    for area, shares in expected.items():
        row = metrics["pixel_recall_by_area"][area]
        assert (row["count"], row["found"]) == (len(shares), np.count_nonzero(shares))
        assert row["pixel_recall"] == pytest.approx(np.mean(shares), abs=1e-10)
    assert metrics["pixel_recall_by_area"]["1-15"]["found"] < len(expected["1-15"])


@pytest.mark.parametrize(
    ("area", "name"),
    [(1, "1-15"), (15, "1-15"), (16, "16-63"), (63, "16-63"), (64, "64-255"), (255, "64-255"), (256, "256-1023"),
     (1023, "256-1023"), (1024, "1024+"), (4000, "1024+")],
)  # fmt: skip
def test_areas_have_the_bounds_of_their_names(area, name):
    maps, masks = line([0.0], [1.0, *[0.0] * (area - 1)])
    rows = measured(maps, masks, 0.5)[0]["pixel_recall_by_area"]
    assert {key: row["count"] for key, row in rows.items()} == {key: int(key == name) for key in AREAS}
    assert rows[name]["pixel_recall"] == pytest.approx(1 / area, abs=1e-10)
    assert all(row["pixel_recall"] is None for key, row in rows.items() if key != name)


def test_an_image_lacking_a_class_has_the_iou_of_the_other():
    masks = torch.zeros(4, 1, 1, 4, dtype=torch.uint8)
    masks[2, 0, 0, :2] = 1
    masks[3] = 255
    maps = torch.zeros(4, 1, 1, 4)
    maps[1, 0, 0, 0] = 1  # a normal image with a flagged pixel has both classes
    maps[2, 0, 0, 1:3] = 1
    metrics, _ = measured(maps, masks, 0.5)
    assert metrics["pixel_miou_per_image"] == pytest.approx(np.mean([1, (0 + 3 / 4) / 2, (1 / 3 + 1 / 3) / 2]))
    assert metrics["pixel_mae"] == pytest.approx((0 + 1 + 2) / 3)


def test_normal_pixels_only():
    maps, masks = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    metrics, reasons = measured(maps, masks, 1.5)
    given = {"pixel_iou_defect": None, "pixel_iou_background": 0.5, "pixel_miou": None, "pixel_mae": 1}
    assert {name: metrics[name] for name in given} == given, "an IoU of zero would be a verdict on the method"
    unknown = {*RANKED, *AT_ORACLE, *FLOORS, "pixel_recall_by_area", "pixel_iou_defect", "pixel_miou"}
    assert reasons == dict.fromkeys(unknown, "no defective pixels in test")
    metrics, _ = pixel_metrics(tallied(maps, masks, 3))
    assert metrics["pixel_iou_background"] == metrics["pixel_miou_per_image"] == 1


def test_defective_pixels_only():
    maps, masks = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 2, dtype=torch.uint8)
    metrics, reasons = measured(maps, masks, 0)
    assert metrics["pixel_iou_defect"] == metrics["pixel_miou_per_image"] == 1
    assert metrics["pixel_iou_background"] is metrics["pixel_miou"] is None
    absent = dict.fromkeys(["pixel_iou_background", "pixel_miou"], "no normal or unflagged pixels in test")
    assert reasons == dict.fromkeys([*RANKED, *AT_ORACLE, *FLOORS], "no normal pixels in test") | absent


def test_without_a_threshold_ranking_and_oracle_are_left():
    totals = tallied(*drawn())
    metrics, reasons = pixel_metrics(totals, no_threshold="no labelled images to fit a threshold on")
    assert reasons == dict.fromkeys(AT_THRESHOLD, "no labelled images to fit a threshold on")
    assert {name for name, value in metrics.items() if value is None} == {*AT_THRESHOLD}


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("count", [0, 3])
def test_without_scored_pixels_there_is_nothing_but_reasons(count, threshold):
    metrics, reasons = measured(
        torch.full((count, 1, 2, 2), np.nan), torch.full((count, 1, 2, 2), 255, dtype=torch.uint8), threshold
    )
    assert metrics == dict.fromkeys(CONTRACT)
    assert reasons == dict.fromkeys(CONTRACT, "no scored pixels in test")


@settings(max_examples=50)
@given(scenes(), st.sampled_from([None, 0.0, np.inf, -np.inf]))
def test_everything_is_plain_json_and_what_is_missing_has_a_reason(scene, threshold):
    metrics, reasons = measured(*scene, threshold)
    assert json.loads(json.dumps([metrics, reasons], allow_nan=False)) == [metrics, reasons]
    assert metrics.keys() == CONTRACT
    assert {name for name, value in metrics.items() if value is None} == reasons.keys()


def test_an_infinite_threshold_is_no_number_but_what_it_flags_is_known():
    maps, masks = line([0.0, 1.0], [np.inf, np.inf, 3.0, 0.0])
    metrics, reasons = measured(maps, masks, np.inf)
    assert reasons == {"pixel_threshold": "the threshold is infinite"}
    assert metrics["pixel_iou_defect"] == 0.5
    assert metrics["pixel_threshold_oracle"] == 3
    _, reasons = measured(*line([0.0, 1.0], [np.inf, 0.0]))
    assert reasons["pixel_threshold_oracle"] == "the threshold is infinite"


def test_not_a_number_is_refused_and_adds_nothing():
    maps, masks = drawn()
    maps[3, 0, 5, 7] = np.nan
    tally = PixelTally(0.5)
    for call in (lambda: tally.update(maps, masks), lambda: pixel_counts(maps, masks, 0.5)):
        with pytest.raises(TrainingError, match=r"image 3 in its batch is nan at row 5, column 7: .* learning rate"):
            call()
    assert same(tally.compute(), tallied(maps[:0], masks[:0], 0.5))


@pytest.mark.parametrize("value", [-1e-45, 1 + 2**-23, 7.0, np.inf, -np.inf])
def test_what_is_no_probability_is_refused(value):
    maps, masks = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    maps[1, 0, 1, 0] = value
    with pytest.raises(ValueError, match=r"image 1 in its batch is .* at row 1, column 0, which is no probability"):
        PixelTally(probability=True).update(maps, masks)
    PixelTally().update(maps, masks)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "resize the map to the mask"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "resize the map to the mask"),
        (torch.full((1, 1, 8, 8), 128, dtype=torch.uint8), "must be uint8"),
        (torch.full((1, 1, 8, 8), 254, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(1, 1, 8, 8), "must be uint8"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        PixelTally().update(torch.zeros(1, 1, 8, 8), mask)
    with pytest.raises(ValueError, match=words):
        pixel_counts(torch.zeros(1, 1, 8, 8), mask, 0.5)


def test_memory_does_not_grow_with_the_images():
    def held(tally):
        return sum(value.untyped_storage().nbytes() for value in tally.metric_state.values())

    maps, masks = drawn()
    tally = PixelTally(0.5)
    sizes = []
    for _ in range(20):
        tally.update(maps, masks)
        sizes.append(held(tally))
    assert {*sizes} == {sizes[0]}
    assert sizes[0] < 5 * 2**20
    assert all(value.dtype == torch.int64 for value in tally.metric_state.values())


def test_the_threshold_is_set_before_the_images():
    maps, masks = drawn()
    tally = PixelTally()
    tally.threshold = 0.5
    tally.update(maps, masks)
    assert same(tally.compute(), tallied(maps, masks, 0.5))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        tally.threshold = 0.7
    tally.reset()
    assert tally.threshold == 0.5
    tally.threshold = 0.7
    tally.update(maps, masks)
    assert same(tally.compute(), tallied(maps, masks, 0.7))
    with pytest.raises(ValueError, match="NaN"):
        PixelTally(np.nan)


def test_sizes_may_differ_and_half_precision_and_gradients_are_no_matter():
    small, large = drawn(3, 16), drawn(3, 24)
    tally = PixelTally(0.5)
    tally.update(small[0].bfloat16().requires_grad_(), small[1])
    tally.update(large[0], large[1])
    expected = PixelTally(0.5)
    expected.update(rounded(small[0]), small[1])
    expected.merge_state(tallied_metric(*large, 0.5))
    assert same(tally.compute(), expected.compute())


def tallied_metric(maps, masks, threshold):
    tally = PixelTally(threshold)
    tally.update(maps, masks)
    return tally


def test_it_goes_on_outside_of_the_inference_mode_it_began_in():
    maps, masks = drawn()
    tally = PixelTally(0.5)
    with torch.inference_mode():
        tally.reset()
        tally.update(maps[:3], masks[:3])
        first = tally.compute()
    kept = first.normal.copy()
    tally.update(maps[3:], masks[3:])
    assert same(tally.compute(), tallied(maps, masks, 0.5))
    assert np.array_equal(first.normal, kept)


def tally_twice(rows, put):
    maps, masks = drawn(7)
    tally = PixelTally(0.5)
    for _ in range(2):  # a second epoch, after a reset
        tally.reset()
        for start in range(0, len(rows), 2):
            some = rows[start : start + 2]
            tally.update(maps[some], masks[some])
        put(same(tally.compute(), tallied_alone))


tallied_alone = tallied(*drawn(7), 0.5)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("shares", [[[0, 2, 4, 6], [1, 3, 5]], [[], [6, 5, 0, 1], [4, 2, 3]]])
def test_every_rank_has_what_a_single_process_has(tmp_path, shares):
    found = on_ranks(tally_twice, shares, tmp_path)
    assert [value for _, value in found] == [True] * 2 * len(shares)


def test_the_counts_at_the_largest_gap_are_those_of_a_second_pass():
    maps, masks = drawn()
    once = at_largest_gap(tallied(maps, masks))
    again = tallied(maps, masks, once.threshold)
    assert once.threshold == gap_threshold(again)
    assert once.counts.tolist() == again.counts.tolist()
    nothing = tallied(maps, torch.zeros_like(masks))
    assert same(at_largest_gap(nothing), nothing)
