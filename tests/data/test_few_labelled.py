import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lab.config import compose
from anomaly_lab.data.mt import MagneticTile
from anomaly_lab.data.mvtec import CATEGORIES, TEXTURES, MVTecAD
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split, SplitOptions, make_split
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.errors import ConfigError, DataError

REAL = Path(os.environ.get("ANOMALY_LAB_DATA", "/nonexistent"))
FEW = SplitOptions(protocol="few_labelled")
MT = {"train_count": 330, "val_count": 100, "test_normal_count": 142}

# the images that MVTec AD is published with: train/good, test/good, and each other folder of test
PUBLISHED = {
    "bottle": (209, 20, {"broken_large": 20, "broken_small": 22, "contamination": 21}),
    "cable": (
        *(224, 58),
        {"bent_wire": 13, "cable_swap": 12, "combined": 11, "cut_inner_insulation": 14}
        | {"cut_outer_insulation": 10, "missing_cable": 12, "missing_wire": 10, "poke_insulation": 10},
    ),
    "capsule": (219, 23, {"crack": 23, "faulty_imprint": 22, "poke": 21, "scratch": 23, "squeeze": 20}),
    "carpet": (280, 28, {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19}),
    "grid": (264, 21, {"bent": 12, "broken": 12, "glue": 11, "metal_contamination": 11, "thread": 11}),
    "hazelnut": (391, 40, {"crack": 18, "cut": 17, "hole": 18, "print": 17}),
    "leather": (245, 32, {"color": 19, "cut": 19, "fold": 17, "glue": 19, "poke": 18}),
    "metal_nut": (220, 22, {"bent": 25, "color": 22, "flip": 23, "scratch": 23}),
    "pill": (
        *(267, 26),
        {"color": 25, "combined": 17, "contamination": 21, "crack": 26}
        | {"faulty_imprint": 19, "pill_type": 9, "scratch": 24},
    ),
    "screw": (
        *(320, 41),
        {"manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25, "thread_side": 23, "thread_top": 23},
    ),
    "tile": (230, 33, {"crack": 17, "glue_strip": 18, "gray_stroke": 16, "oil": 18, "rough": 15}),
    "toothbrush": (60, 12, {"defective": 30}),
    "transistor": (213, 60, {"bent_lead": 10, "cut_lead": 10, "damaged_case": 10, "misplaced": 10}),
    "wood": (247, 19, {"color": 8, "combined": 11, "hole": 10, "liquid": 10, "scratch": 21}),
    "zipper": (
        *(240, 32),
        {"broken_teeth": 19, "combined": 16, "fabric_border": 17, "fabric_interior": 16}
        | {"rough": 17, "split_teeth": 18, "squeezed_teeth": 16},
    ),
}
# P2 Table 1: unlabelled, labelled, test; of the textures, four quarters of each test image
TABLE_1 = {
    **{"bottle": (217, 4, 71), "cable": (242, 9, 123), "capsule": (231, 6, 114), "hazelnut": (401, 5, 95)},
    **{"metal_nut": (230, 5, 100), "pill": (283, 8, 143), "screw": (332, 6, 142), "toothbrush": (64, 2, 36)},
    **{"transistor": (223, 5, 85), "zipper": (256, 8, 127), "carpet": (292, 6, 396), "grid": (276, 6, 240)},
    **{"leather": (257, 6, 424), "tile": (242, 6, 396), "wood": (259, 6, 244)},
}


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory):
    """All 15 categories with their numbers of images and masks; every file is empty."""
    root = tmp_path_factory.mktemp("mvtec_ad")

    def fill(folder, count, suffix=""):
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:03}{suffix}.png").touch()

    for category, (train, good, defects) in PUBLISHED.items():
        fill(root / category / "train/good", train)
        fill(root / category / "test/good", good)
        for defect, count in defects.items():
            fill(root / category / "test" / defect, count)
            fill(root / category / "ground_truth" / defect, count, "_mask")
    return root


@pytest.fixture(scope="module")
def bottle(mvtec):
    return MVTecAD(mvtec, "bottle").scan()


@pytest.fixture(scope="module")
def fake_tiles():
    """952 normal and 392 defective images; three of a tile, and every fourth tile with a defect has a normal image."""
    defects = []
    for defect, count in {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}.items():
        tiles = -(-count // 3)
        defects += [(defect, f"{defect}{i // 3}") for i in range(count)]
        defects += [("good", f"{defect}{i}") for i in range(0, tiles, 4)]
    defects += [("good", f"good{i // 3}") for i in range(1344 - len(defects))]
    return [
        Record(f"{i:04}.jpg", defect, mask=None if defect == "good" else f"{i:04}.png", group=tile)
        for i, (defect, tile) in enumerate(defects)
    ]


@pytest.fixture(scope="module")
def real_tiles():
    if not (REAL / "magnetic_tile").is_dir():
        pytest.skip("ANOMALY_LAB_DATA has no magnetic tiles")
    return MagneticTile(REAL / "magnetic_tile").scan()


@pytest.fixture(params=["fake_tiles", "real_tiles"])
def tiles(request):
    return request.getfixturevalue(request.param)


def normal(count, **values):
    return [Record(f"good/{i:04}.png", **values) for i in range(count)]


def defective(count, defect="dent", **values):
    return [Record(f"{defect}/{i:04}.png", defect, mask=f"m/{defect}/{i:04}.png", **values) for i in range(count)]


def paths(split, *names):
    return {record.path for name in names for record in split.lists[name]}


def types(split, name):
    return Counter(record.defect for record in split.lists[name])


def assert_disjoint(split, key):
    """val, tune and test share nothing with each other and with the training lists."""
    sides = [("labelled", "unlabelled"), ("val",), ("tune",), ("test",)]
    held = [{key(record) for name in side for record in split.lists[name]} for side in sides]
    assert sum(map(len, held)) == len(set().union(*held))


def test_the_counts_are_those_that_mvtec_ad_is_published_with():
    assert sorted(PUBLISHED) == sorted(TABLE_1) == list(CATEGORIES)
    assert sum(train for train, *_ in PUBLISHED.values()) == 3629
    assert sum(good + sum(defects.values()) for _, good, defects in PUBLISHED.values()) == 1725


@pytest.mark.parametrize("category", CATEGORIES)
def test_table_1_of_the_paper(category, mvtec):
    split = make_split(MVTecAD(mvtec, category).scan(), FEW)
    quarters = 4 if category in TEXTURES else 1
    counts = {name: len(drawn) for name, drawn in split.lists.items()}
    assert (counts["unlabelled"], counts["labelled"], counts["test"] * quarters) == TABLE_1[category]
    assert counts["val"] == counts["tune"] == 0
    assert set(types(split, "labelled").values()) == {1}
    assert len(types(split, "labelled")) == 1 + len(PUBLISHED[category][2])
    assert split.notes == ()
    assert_disjoint(split, lambda record: record.path)
    assert not paths(split, "labelled") & paths(split, "unlabelled")


def test_the_shipped_config_gives_table_1_and_holds_out_images_for_normal_only(mvtec):
    def lists(*overrides):
        config = compose("train", ["dataset=mvtec", "dataset.category=bottle", f"dataset.root={mvtec}", *overrides])
        return {name: len(drawn) for name, drawn in make_plan(config["dataset"]).split.lists.items()}

    few = {"labelled": 4, "unlabelled": 217, "val": 0, "tune": 0, "test": 71}
    assert lists("dataset.protocol=few_labelled") == few
    assert lists("dataset.protocol=normal_only") == {"train_normal": 188, "val": 42, "tune": 0, "test": 83}
    cut = lists("dataset.protocol=few_labelled", "dataset.val_fraction=0.1")
    assert cut == {**few, "unlabelled": 217 - 21, "val": 42}


def test_more_labels_leave_the_unlabelled_ones_alone(bottle):
    drawn = {n: make_split(bottle, replace(FEW, labelled_per_type=n)) for n in (1, 2, 5)}
    for fewer, more in ((1, 2), (2, 5)):
        assert paths(drawn[fewer], "labelled") < paths(drawn[more], "labelled")
        assert drawn[fewer].lists["unlabelled"] == drawn[more].lists["unlabelled"]
        assert paths(drawn[fewer], "test") > paths(drawn[more], "test")
    assert set(types(drawn[5], "labelled").values()) == {5}
    assert len(drawn[5].lists["test"]) == 83 - 4 * (2 + 5)


def test_with_a_reserve_the_test_set_is_the_same_for_every_number_of_labels(bottle):
    kept = replace(FEW, label_reserve=5)
    drawn = [make_split(bottle, replace(kept, labelled_per_type=n)) for n in (1, 3, 5)]
    assert {split.lists["test"] for split in drawn} == {drawn[0].lists["test"]}
    assert len(drawn[0].lists["test"]) == 83 - 4 * (2 + 5)
    assert [len(split.lists["labelled"]) for split in drawn] == [4, 12, 20]
    assert "16 images are neither learnt from nor tested" in drawn[0].notes[0]
    assert drawn[2].notes == ()
    # the draw does not depend on the reserve either
    assert drawn[0].lists["labelled"] == make_split(bottle, FEW).lists["labelled"]
    with pytest.raises(ConfigError, match=r"labelled_per_type=6 is more than dataset\.label_reserve=5"):
        make_split(bottle, replace(kept, labelled_per_type=6))


def test_val_of_a_published_dataset_is_cut_from_its_training_images(bottle):
    split = make_split(bottle, replace(FEW, val_count=20, tuning=0.5))
    originals = [record for record in split.lists["val"] if not record.painted]
    assert len(originals) == 20
    assert {record.part for record in originals} == {"train"}
    assert len(split.lists["tune"]) + len(split.lists["test"]) == 71
    assert_disjoint(split, lambda record: record.path)
    assert make_split(bottle, replace(FEW, val_count=20)).lists["labelled"] == split.lists["labelled"]


def test_one_image_of_a_published_part_is_drawn_and_the_others_dropped():
    train = [Record(f"train/{i}.png", part="train", group=f"p{i}") for i in range(12)]
    test = [
        Record(f"test/{defect}/{i}_{j}.png", defect, mask=f"m/{defect}/{i}_{j}.png", group=f"{defect}{i}", part="test")
        for defect in ("good", "dent")
        for i in range(6)
        for j in range(3)
    ]
    test += [replace(test[-1], path="test/good/x.png", defect="good", mask=None, group="p3")]
    split = make_split(train + test, FEW)
    assert types(split, "labelled") == {"good": 1, "dent": 1}
    assert types(split, "unlabelled") == {"good": 11 + 2, "dent": 2}  # without p3, which is tested
    parts = Counter(r.part_of for name in ("labelled", "unlabelled") for r in split.lists[name])
    assert set(parts.values()) == {1}
    assert_disjoint(split, lambda record: record.part_of)
    alone = make_split(train + test, replace(FEW, split="random"))
    assert len(alone.lists["test"]) == 37 - 2 * 3
    assert len(alone.lists["unlabelled"]) == 12 + 2 * 2


def test_any_image_of_a_part_may_be_drawn():
    records = normal(9) + [replace(r, group=f"g{i // 3}") for i, r in enumerate(defective(9))]
    drawn = [make_split(records, replace(FEW, split_seed=seed)).lists["labelled"] for seed in range(40)]
    assert {r.path for labelled in drawn for r in labelled if r.label} == {r.path for r in defective(9)}


@pytest.mark.parametrize("how", ["by_tile", "random"])
@pytest.mark.parametrize("tuning", [0.0, 0.5])
def test_few_labels_on_the_tiles(tiles, how, tuning):
    for seed in range(2):
        plain = SplitOptions(split=how, split_seed=seed, tuning=tuning, **MT)
        whole = make_split(tiles, plain)
        options = replace(plain, protocol="few_labelled", label_reserve=5)
        drawn = {n: make_split(tiles, replace(options, labelled_per_type=n)) for n in (1, 3, 5)}
        for n, split in drawn.items():
            assert list(split.lists) == ["labelled", "unlabelled", "val", "tune", "test"]
            assert split.lists["unlabelled"] == whole.lists["train_normal"]
            assert split.lists["val"] == whole.lists["val"]
            assert split.lists["test"] == drawn[5].lists["test"]
            assert split.lists["tune"] == drawn[5].lists["tune"]
            assert set(types(split, "labelled").values()) == {n}
            assert len(types(split, "labelled")) == 6
            assert {r.path for r in split.lists["labelled"] if not r.label} <= paths(split, "unlabelled")
            assert all(r.mask for r in split.lists["labelled"] if r.label)
            assert_disjoint(split, lambda r: r.part_of if how == "by_tile" else r.path)
            assert len({r.part_of for r in split.lists["labelled"]}) == 6 * n or how == "random"
            assert types(split, "test")["good"] == 142
            # what is tested under both protocols can be compared
            for name in ("tune", "test"):
                tested = {r.path for r in split.lists[name] if r.label}
                assert tested <= {r.path for r in whole.lists[name] if r.label}
        assert paths(drawn[1], "labelled") < paths(drawn[3], "labelled") < paths(drawn[5], "labelled")
        reserved = {r.path for r in tiles if r.label} - paths(drawn[5], "tune", "test")
        assert len({r.part_of for r in tiles if r.path in reserved}) == 25 or how == "random"
        assert len(reserved) == 25 or how == "by_tile"


def test_a_tested_part_that_normal_only_would_draw_normals_from_keeps_the_others():
    records = normal(60) + [
        Record(f"{kind}/{i}_{j}.png", kind, mask=f"m/{i}_{j}.png" if kind == "dent" else None, group=f"mixed{i}")
        for i in range(10)
        for j, kind in enumerate(["good", "good", "dent"])
    ]
    plain = SplitOptions(train_count=40, test_normal_count=20)
    few = make_split(records, replace(plain, protocol="few_labelled", label_reserve=3))
    shared = paths(make_split(records, plain), "test") & paths(few, "test")
    assert types(few, "test") == {"good": 20, "dent": 7}
    assert len({p for p in shared if p.startswith("good")}) >= 20 - 3 * 2
    assert "8 images are neither learnt from nor tested" in few.notes[-1]


def test_defective_parts_of_undivided_data_are_unlabelled_only_on_request():
    records = normal(50) + defective(20) + defective(20, "hole")
    none = make_split(records, replace(FEW, label_reserve=5))
    some = make_split(records, replace(FEW, label_reserve=5, unlabelled_per_type=4))
    assert types(none, "unlabelled") == {"good": 40}
    assert types(some, "unlabelled") == {"good": 40, "dent": 4, "hole": 4}
    assert types(none, "test") == {"good": 10, "dent": 15, "hole": 15}
    assert types(some, "test") == {"good": 10, "dent": 11, "hole": 11}
    assert none.lists["labelled"] == some.lists["labelled"]
    assert none.lists["unlabelled"] == tuple(r for r in some.lists["unlabelled"] if not r.label)


def test_without_any_normal_image():
    split = make_split(defective(20, "crack"), replace(FEW, label_reserve=5, labelled_per_type=2))
    assert {name: len(drawn) for name, drawn in split.lists.items()} == {
        **{"labelled": 2, "unlabelled": 0, "val": 0, "tune": 0, "test": 15},
    }
    with pytest.raises(DataError, match=r"no normal image to train on.*dataset\.protocol=few_labelled"):
        make_split(defective(20, "crack"), SplitOptions())


def test_without_a_normal_image_that_trains():
    split = make_split(normal(10) + defective(9), replace(FEW, test_normal_count=10))
    assert types(split, "labelled") == {"dent": 1}
    assert types(split, "unlabelled") == {}
    assert types(split, "test") == {"good": 10, "dent": 8}


@pytest.mark.parametrize(
    ("parts", "labelled", "unlabelled", "tested"),
    [(1, 0, 0, 1), (2, 1, 0, 1), (3, 1, 1, 1), (4, 1, 2, 1), (6, 3, 2, 1)],
)
def test_a_type_with_few_parts_keeps_one_for_the_test(parts, labelled, unlabelled, tested):
    records = normal(20) + defective(20) + defective(parts, "rare")
    split = make_split(records, replace(FEW, labelled_per_type=5, unlabelled_per_type=2))
    found = tuple(types(split, name)["rare"] for name in ("labelled", "unlabelled", "test"))
    assert found == (labelled, unlabelled, tested)
    (note,) = [note for note in split.notes if note.startswith("rare")]
    few = f", {labelled} are kept for labels instead of 5"
    few += f", {unlabelled} give an unlabelled image instead of 2" if unlabelled < 2 else ""
    assert note == f"rare: of {parts} parts{few}, 1 is left to test."


def test_a_type_without_masks_keeps_none_for_labels():
    bare = [replace(record, mask=None) for record in defective(8, "bare")]
    masked = [replace(record, mask=f"masks/{record.path}") for record in defective(20)]
    split = make_split(normal(20) + masked + bare, replace(FEW, unlabelled_per_type=0))
    assert types(split, "test")["bare"] == 8
    assert "bare: of 8 parts, none with a mask, 0 are kept for labels instead of 1, 8 are left to test." in split.notes


def test_what_stays_of_a_type_with_few_parts_is_tested_rather_than_tuned_on():
    records = normal(20) + defective(20) + defective(4, "rare")
    for seed in range(8):
        options = replace(FEW, split_seed=seed, label_reserve=5, tuning=0.5)
        assert types(make_split(records, options), "test")["rare"] == 1


def test_defective_images_without_a_mask_are_not_labelled():
    records = normal(20) + [replace(r, mask=None) if i % 2 else r for i, r in enumerate(defective(8))]
    for seed in range(5):
        options = replace(FEW, split_seed=seed, labelled_per_type=3, unlabelled_per_type=2)
        split = make_split(records, options)
        assert all(r.mask for r in split.lists["labelled"] if r.label)
        assert types(split, "labelled") == {"dent": 3, "good": 3}
        assert all(r.mask is None for r in split.lists["unlabelled"] if r.label)
        assert "4 defective images have no mask, so they are not labelled." in split.notes
        more = make_split(records, replace(options, labelled_per_type=6))
        assert types(more, "labelled") == {"dent": 4, "good": 6}
        assert "of 8 parts, 4 of them with a mask" in more.notes[0]


def test_fewer_normal_parts_than_labels_are_said():
    records = [replace(r, group=f"g{i // 10}") for i, r in enumerate(normal(30))] + defective(9)
    split = make_split(records, replace(FEW, labelled_per_type=3))
    assert types(split, "labelled") == {"good": 2, "dent": 3}
    assert "good: 2 images are labelled instead of 3: there are no more parts." in split.notes


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (normal(20), r"there is no defective image\. Below dataset\.root.*masks/<type>/<name>\.png"),
        (normal(20, part="train"), "there is no defective image"),
        ([], "there is no defective image"),
        (normal(20) + [replace(r, mask=None) for r in defective(9)], "none of the 9 defective images has one"),
        (normal(20) + defective(1), r"no defective image can be labelled.*at least two parts"),
        (normal(20) + defective(1) + defective(1, "hole"), "no defective image can be labelled"),
    ],
)
def test_without_a_defect_to_label_the_error_says_what_to_do(records, message):
    with pytest.raises(ConfigError, match=message):
        make_split(records, FEW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled_per_type": 0}, "dataset.labelled_per_type=0 has to be a whole number of at least 1"),
        ({"labelled_per_type": None}, "dataset.labelled_per_type=None"),
        ({"unlabelled_per_type": -1}, "dataset.unlabelled_per_type=-1 has to be a whole number of at least 0"),
        ({"label_reserve": 0}, "dataset.label_reserve=0 has to be a whole number of at least 1"),
        ({"test_normal_count": 21}, "test_normal_count asks for 21 normal images"),
        ({"train_count": 21}, "train_count asks for 21 normal images"),
    ],
)
def test_what_cannot_work_names_its_option(options, message):
    with pytest.raises(ConfigError, match=message):
        make_split(normal(20) + defective(9), replace(FEW, **options))


def test_an_image_that_trains_twice_may_not_be_tested():
    value = make_split(normal(20) + defective(9), FEW).to_json()
    shared = next(record for record in value["lists"]["labelled"] if record["path"].startswith("good"))
    assert shared in value["lists"]["unlabelled"]
    assert Split.from_json(value).lists["labelled"]
    for name in ("val", "tune", "test"):
        broken = json.loads(json.dumps(value))
        broken["lists"][name].append(shared)
        with pytest.raises(DataError, match=f"good.* is in labelled and in {name}"):
            Split.from_json(broken)


@st.composite
def datasets(draw):
    """Parts of one to six images, some with defects, some of those without a mask; and a few parts that are plain."""
    parts = draw(
        st.lists(st.lists(st.sampled_from(["good", "good", "dent", "hole", "unmasked"]), min_size=1, max_size=6))
    )
    plain = [["good"] * 3] * 6 + [["dent"], ["dent", "good"], ["hole"], ["hole", "dent"]]
    return [
        Record(
            f"{kind}/{i}_{j}.png",
            "dent" if kind == "unmasked" else kind,
            mask=f"m/{i}_{j}.png" if kind in ("dent", "hole") else None,
            group=f"part{i}",
        )
        for i, part in enumerate(plain + parts)
        for j, kind in enumerate(part)
    ]


@settings(deadline=None, max_examples=100)
@given(
    datasets(),
    st.sampled_from(["by_group", "random"]),
    st.sampled_from([None, 4, 9]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 3, 4]),
    st.integers(0, 2**32),
)
def test_every_split_keeps_its_promises(records, how, train_count, tuning, unlabelled, reserve, seed):
    plain = SplitOptions(
        **{"split": how, "split_seed": seed, "train_count": train_count, "tuning": tuning, "val_count": 2},
        test_normal_count=2,
    )
    options = replace(plain, protocol="few_labelled", unlabelled_per_type=unlabelled, label_reserve=reserve)
    try:
        whole = make_split(records, plain)
    except ConfigError:
        with pytest.raises(ConfigError):
            make_split(records, options)
        return
    try:
        drawn = [make_split(records, replace(options, labelled_per_type=n)) for n in (1, 2, 3)]
    except ConfigError as error:
        assert "no defective image can be labelled" in str(error)  # noqa: PT017  # else the split is promised
        assert unlabelled or tuning
        return
    for split in drawn:
        assert_disjoint(split, lambda r: r.part_of if options.keeps_parts else r.path)
        assert tuple(r for r in split.lists["unlabelled"] if not r.label) == whole.lists["train_normal"]
        assert split.lists["unlabelled"] == drawn[0].lists["unlabelled"]
        assert split.lists["val"] == whole.lists["val"]
        assert all(r.mask for r in split.lists["labelled"] if r.label)
        assert {r.path for r in split.lists["test"] if r.label} <= paths(whole, "test")
        assert {r.path for r in split.lists["tune"] if r.label} <= paths(whole, "tune")
        assert reserve is None or split.lists["test"] == drawn[0].lists["test"]
        assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split
    assert paths(drawn[0], "labelled") <= paths(drawn[1], "labelled") <= paths(drawn[2], "labelled")
    for n, split in enumerate(drawn, start=1):
        assert max(types(split, "labelled").values()) <= n
    reordered = [records[i] for i in np.random.default_rng(seed + 1).permutation(len(records))]
    assert make_split(reordered, options) == drawn[0]


def normal_pictures(root, *, scratched=0):
    """A folder of normal images, and of scratched ones with masks; every file is empty."""
    names = [f"good/{i}.png" for i in range(20)]
    names += [f"{folder}/{i}.png" for i in range(scratched) for folder in ("scratch", "masks/scratch")]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return f"dataset.root={root}"


@pytest.mark.parametrize("model", ["ae", "pca"])
def test_where_nothing_can_be_labelled_a_method_without_labels_does_without(model, tmp_path):
    root = normal_pictures(tmp_path)
    split = make_plan(compose("train", [f"model={model}", "dataset=folder", root])["dataset"]).split
    assert {"train_normal", "val", "test"} <= set(split.lists)
    assert "No image can be labelled" in split.notes[0]
    needs = ["model=unet", "dataset=folder", root]
    with pytest.raises(ConfigError, match="there is no defective image"):
        make_plan(compose("train", [*needs, "dataset.labels=real"])["dataset"])
    plan = make_plan(compose("train", needs)["dataset"])
    assert plan.split.lists == split.lists
    assert "dataset.labels=synthetic" in plan.split.notes[0]


def test_few_defective_images_to_test_are_told_while_some_are_kept_for_labels(tmp_path):
    asked = ["model=unet", "dataset=folder", normal_pictures(tmp_path, scratched=9)]
    split = make_plan(compose("train", asked)["dataset"]).split
    assert any(
        note.startswith("Only 4 defective images are left to test: dataset.label_reserve=null") for note in split.notes
    )
    split = make_plan(compose("train", [*asked, "dataset.label_reserve=null"])["dataset"]).split
    assert sum(record.label for record in split.lists["test"]) == 8
    assert not any("left to test" in note for note in split.notes)


@pytest.mark.parametrize(("category", "side"), [("leather", 128), ("bottle", 64)])
def test_textures_are_tested_as_quarters_of_a_picture_twice_as_wide(category, side, mvtec):
    asked = ["model=unet", "dataset=mvtec", f"dataset.category={category}", f"dataset.root={mvtec}"]
    plan = make_plan(compose("train", [*asked, "dataset.image_size=64"])["dataset"])
    assert plan.full_size == side
    assert plan.is_quartered == (category in TEXTURES)
    assert len(Tiling(64).corners(side, side)) * len(plan.split.lists["test"]) == TABLE_1[category][2]
    whole = make_plan(compose("train", [*asked, "dataset.image_size=64", "dataset.full_size=64"])["dataset"])
    assert (whole.full_size, whole.is_quartered) == (64, False)


@pytest.mark.parametrize("scratched", [0, 1])
def test_a_single_labelled_defect_is_not_taken_from_the_test(scratched, tmp_path):
    root = normal_pictures(tmp_path, scratched=scratched)
    split = make_plan(compose("train", ["model=ae", "dataset=folder", root])["dataset"]).split
    assert sum(record.label for record in split.lists["test"]) == scratched
    needs = ["model=unet", "dataset=folder", root]
    assert make_plan(compose("train", needs)["dataset"]).split.lists == split.lists
    with pytest.raises(ConfigError, match=r"dataset\.protocol=normal_only"):
        make_plan(compose("train", [*needs, "dataset.labels=real"])["dataset"])
