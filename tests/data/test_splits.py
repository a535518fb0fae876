import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lab.data import splits
from anomaly_lab.data.groups import round_half_up
from anomaly_lab.data.mt import MagneticTile
from anomaly_lab.data.mvtec import CSD
from anomaly_lab.data.painting import KINDS as PAINTED_KINDS
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split, SplitOptions, make_split
from anomaly_lab.errors import ConfigError, DataError

REAL = Path(os.environ.get("ANOMALY_LAB_DATA", "/nonexistent")) / "magnetic_tile"
MT = {"train_count": 330, "val_count": 100, "test_normal_count": 142}
MT_TYPES = {"Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103}


@pytest.fixture(scope="module")
def fake_tiles(tmp_path_factory):
    """952 normal and 392 defective empty files; tiles of up to six exposures, the first of each type mixed."""
    root = tmp_path_factory.mktemp("mt")
    shots = [(f"exp{i % 6 + 1}_num_{1000 * (i // 6) + 20 * (i % 6)}") for i in range(1344)]
    classes = []
    for defect, count in MT_TYPES.items():
        classes += ["Free"] * 3 + [defect] * count
    classes += ["Free"] * (1344 - len(classes))
    for stem, folder in zip(shots, classes, strict=True):
        images = root / f"MT_{folder}" / "Imgs"
        images.mkdir(parents=True, exist_ok=True)
        (images / f"{stem}.jpg").touch()
        (images / f"{stem}.png").touch()
    return MagneticTile(root).scan()


@pytest.fixture(scope="module")
def real_tiles():
    if not REAL.is_dir():
        pytest.skip("ANOMALY_LAB_DATA has no magnetic tiles")
    return MagneticTile(REAL).scan()


@pytest.fixture(params=["fake_tiles", "real_tiles"])
def tiles(request):
    return request.getfixturevalue(request.param)


def counts(split):
    """(normal, defective) of each list."""
    return {name: (sum(not r.label for r in drawn), sum(r.label for r in drawn)) for name, drawn in split.lists.items()}


def sides_of(split, key):
    sides = {}
    for name, records in split.lists.items():
        for record in records:
            sides.setdefault(key(record), set()).add(name)
    return sides


def normal(count, **values):
    return [Record(f"good/{i:04}.png", **values) for i in range(count)]


def defective(count, **values):
    return [Record(f"bad/{i:04}.png", "bad", **values) for i in range(count)]


def test_by_tile_on_the_tiles(tiles):
    for seed in range(3):
        split = make_split(tiles, SplitOptions(split="by_tile", split_seed=seed, **MT))
        assert counts(split) == {"train_normal": (330, 0), "val": (100, 100), "tune": (0, 0), "test": (142, 392)}
        assert all(len(names) == 1 for names in sides_of(split, lambda r: r.part_of).values())
        mixed = {r.part_of for r in tiles if r.label}
        assert not mixed & {r.part_of for name in ("train_normal", "val") for r in split.lists[name]}


def test_a_part_that_a_cut_goes_through_is_in_no_other_list(tiles):
    whole = Counter(r.part_of for r in tiles)
    split = make_split(tiles, SplitOptions(split="by_tile", **MT))
    for name in ("train_normal", "val"):
        held = Counter(r.part_of for r in split.lists[name] if not r.painted)
        assert sum(held[part] < whole[part] for part in held) <= 1


def test_random_on_the_tiles_draws_image_by_image(tiles):
    split = make_split(tiles, SplitOptions(split="random", **MT))
    assert counts(split) == {"train_normal": (330, 0), "val": (100, 100), "tune": (0, 0), "test": (142, 392)}
    sides = sides_of(split, lambda r: r.part_of)
    assert sum({"train_normal", "test"} <= names for names in sides.values()) > 30
    assert all(len(names) == 1 for names in sides_of(split, lambda r: r.path).values())


def test_tuning_halves_the_defective_groups_of_each_type(tiles):
    options = SplitOptions(split="by_tile", split_seed=3, **MT)
    whole, halved = make_split(tiles, options), make_split(tiles, replace(options, tuning=0.5))
    assert halved.lists["train_normal"] == whole.lists["train_normal"]
    assert halved.lists["val"] == whole.lists["val"]
    assert counts(halved)["test"][0] == 142
    assert counts(halved)["tune"][0] == 71
    assert counts(halved)["test"][1] + counts(halved)["tune"][1] == 392
    first = {}  # the type of a group is that of its first defective image
    for record in tiles:
        if record.label:
            first.setdefault(record.part_of, record.defect)
    for kind in {r.defect for r in tiles if r.label}:
        parts = {part for part, of in first.items() if of == kind}
        tuned = parts & {r.part_of for r in halved.lists["tune"] if r.label}
        assert len(tuned) == (len(parts) + 1) // 2
    assert all(len(names) == 1 for names in sides_of(halved, lambda r: r.part_of).values())


def test_by_tile_is_by_group(fake_tiles):
    by_tile, by_group = (make_split(fake_tiles, SplitOptions(split=s, **MT)) for s in ("by_tile", "by_group"))
    assert by_tile.lists == by_group.lists
    assert by_tile.sha256 == by_group.sha256


def test_csd_has_the_papers_counts(tmp_path):
    for folder, count in {"train/good": 280, "test/good": 28, "test/hole": 89}.items():
        (tmp_path / "carpet" / folder).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "carpet" / folder / f"{i:03}.png").touch()
    records = CSD(tmp_path).scan()
    assert counts(make_split(records, SplitOptions())) == {
        **{"train_normal": (280, 0), "val": (0, 0), "tune": (0, 0), "test": (28, 89)},
    }
    cut = make_split(records, SplitOptions(val_fraction=0.1))
    assert counts(cut)["train_normal"] == (252, 0)
    assert counts(cut)["val"] == (28, 28)
    tuned = make_split(records, SplitOptions(tuning=0.5))
    assert counts(tuned) == {"train_normal": (280, 0), "val": (0, 0), "tune": (14, 45), "test": (14, 44)}
    with pytest.raises(
        ConfigError, match=r"test_normal_count asks for 28 normal images, and 14 .*beside the 50% for tune"
    ):
        make_split(records, SplitOptions(tuning=0.5, test_normal_count=28))


def test_apsd_and_rsd_have_the_papers_counts():
    records = normal(650) + defective(450)
    paper = SplitOptions(train_count=500, test_normal_count=150)
    assert counts(make_split(records, paper)) == {
        **{"train_normal": (500, 0), "val": (0, 0), "tune": (0, 0), "test": (150, 450)},
    }
    cut = make_split(records, replace(paper, val_fraction=0.1))
    assert counts(cut) == {"train_normal": (450, 0), "val": (50, 50), "tune": (0, 0), "test": (150, 450)}


def test_a_published_part_is_not_trained_on_when_it_is_tested():
    train = [Record(f"train/{i}.png", part="train", group=f"p{i // 2}") for i in range(8)]
    test = [
        Record("test/a.png", part="test", group="p0"),
        Record("test/b.png", "dent", part="test", group="p3"),
        Record("train/bad.png", "dent", part="train"),
    ]
    split = make_split(train + test, SplitOptions())
    assert [r.path for r in split.lists["train_normal"]] == ["train/2.png", "train/3.png", "train/4.png", "train/5.png"]
    assert any("4 training images show a part that is tested" in note for note in split.notes)
    assert any("1 defective images of the training part" in note for note in split.notes)
    assert len(make_split(train + test, SplitOptions(split="random")).lists["train_normal"]) == 8


def test_val_is_held_out_images_and_a_painted_copy_of_each():
    held = [replace(record, group=f"g{record.path}") for record in normal(50)]
    val = make_split(held, SplitOptions(val_count=7)).lists["val"]
    originals, copies = val[:7], val[7:]
    assert [(r.path, r.group) for r in copies] == [(r.path, r.group) for r in originals]
    assert [r.painted for r in originals] == [None] * 7
    assert [r.painted for r in copies] == [*PAINTED_KINDS, *PAINTED_KINDS, "scratch"]
    assert [r.defect for r in copies] == [f"painted_{r.painted}" for r in copies]
    assert {r.label for r in originals} == {0}
    assert {r.label for r in copies} == {1}


def test_normal_images_alone_are_enough():
    split = make_split(normal(100), SplitOptions(val_fraction=0.1))
    assert counts(split) == {"train_normal": (72, 0), "val": (8, 8), "tune": (0, 0), "test": (20, 0)}
    assert split.notes == ()


def test_tune_with_too_few_normal_images_says_so():
    records = normal(100) + defective(10)
    split = make_split(records, SplitOptions(train_count=80, test_normal_count=10, tuning=0.3))
    assert counts(split)["tune"] == (3, 3)
    assert not any("tune" in note for note in split.notes)
    one = [Record(f"test/{i}.png", "hole" if i == 8 else "good", group="one", part="test") for i in range(9)]
    split = make_split(normal(5, part="train") + one, SplitOptions(test_normal_count=8, tuning=0.3))
    assert counts(split)["test"] == (8, 1)
    assert "tune has 0 normal images instead of 2: there are no more." in split.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_count": 101}, "train_count asks for 101 normal images, and 100 are available"),
        ({"train_count": 90, "val_count": 20}, "val_count asks for 20 normal images, and 10 are available"),
        ({"train_count": 90, "val_count": 5, "test_normal_count": 6}, "test_normal_count asks for 6 .* and 5 are"),
        ({"train_count": 90}, "test_fraction asks for 20 normal images, and 10 are"),
        ({"test_normal_count": 101}, "No normal image is left for training"),
        ({"test_normal_count": 100}, "No normal image is left for training"),
        ({"val_count": 80}, "No normal image is left for training"),
        ({"protocol": "normal_onyl"}, "dataset.protocol='normal_onyl' is unknown. Did you mean 'normal_only'"),
        ({"split": "by_tiles"}, "Did you mean 'by_tile'"),
        ({"split_seed": -1}, "dataset.split_seed=-1 has to be a whole number of at least 0"),
        ({"split_seed": None}, "dataset.split_seed=None"),
        ({"train_count": 0}, "at least 1"),
        ({"val_count": 2.5}, "dataset.val_count=2.5"),
        ({"tuning": 1.0}, "dataset.tuning=1.0 has to be a number from 0 to below 1"),
        ({"test_fraction": float("nan")}, "dataset.test_fraction=nan"),
        ({"val_fraction": "x"}, "dataset.val_fraction='x'"),
    ],
)
def test_what_cannot_work_names_its_option(options, message):
    with pytest.raises(ConfigError, match=message):
        make_split(normal(100) + defective(10), SplitOptions(**options))


def test_records_without_a_normal_one_or_half_divided():
    with pytest.raises(DataError, match="no normal image"):
        make_split(defective(3), SplitOptions())
    with pytest.raises(DataError, match="for all or for none"):
        make_split(normal(3) + normal(3, part="train"), SplitOptions())


def test_overlapping_lists_are_never_returned(monkeypatch):
    records = normal(4, group="same")
    monkeypatch.setitem(
        splits.PROTOCOLS, "normal_only", lambda *_: ({"train_normal": records[:2], "test": records[2:]}, [])
    )
    with pytest.raises(RuntimeError, match="'same' is in train_normal and in test"):
        make_split(records, SplitOptions())
    assert make_split(records, SplitOptions(split="random")).lists["test"] == tuple(records[2:])


def test_halves_round_up():
    assert [round_half_up(x) for x in (0.5, 1.5, 2.5, 0.7 * 45, 2.49)] == [1, 2, 3, 32, 2]


@st.composite
def datasets(draw):
    """Parts of one to six images, some with defects, and the number of normal images that may train."""
    parts = draw(st.lists(st.lists(st.sampled_from(["good", "good", "good", "dent", "hole"]), min_size=1, max_size=6)))
    records = [
        Record(f"{defect}/{i}_{j}.png", defect, group=f"part{i}")
        for i, part in enumerate([["good"] * 4] * 5 + parts)
        for j, defect in enumerate(part)
    ]
    free = 20 + sum(len(part) for part in parts if set(part) == {"good"})
    return records, free


@settings(deadline=None, max_examples=100)
@given(
    datasets(),
    st.data(),
    st.sampled_from(["by_group", "random"]),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.integers(0, 2**32),
)
def test_every_split_keeps_its_promises(dataset, data, how, tuning, seed):
    records, free = dataset
    train_count = data.draw(st.none() | st.integers(1, free // 3))
    options = SplitOptions(
        split=how,
        split_seed=seed,
        train_count=train_count,
        val_count=data.draw(st.integers(0, free // 4)),
        test_normal_count=data.draw(st.integers(0, 3)),
        tuning=tuning,
    )
    try:
        split = make_split(records, options)
    except ConfigError:
        assert tuning > 0 or how == "by_group"  # image by image there are enough for these counts
        return
    lists = split.lists
    assert all(len(names) == 1 for names in sides_of(split, lambda r: r.path).values())
    if how == "by_group":
        assert all(len(names) == 1 for names in sides_of(split, lambda r: r.group).values())
    assert {r.label for r in lists["train_normal"]} == {0}
    assert train_count is None or len(lists["train_normal"]) == train_count
    assert counts(split)["val"] == (options.val_count, options.val_count)
    assert counts(split)["test"][0] == options.test_normal_count
    tested = sorted(r.path for name in ("tune", "test") for r in lists[name] if r.label)
    assert tested == sorted(r.path for r in records if r.label)
    assert tuning > 0 or not lists["tune"]
    reordered = [records[i] for i in np.random.default_rng(seed + 1).permutation(len(records))]
    assert make_split(reordered, options) == split
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split


def test_the_seed_changes_the_draw_and_the_hash():
    records = normal(100) + defective(5)
    drawn = [make_split(records, SplitOptions(split_seed=seed)) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2]
    assert drawn[0].sha256 == drawn[2].sha256 != drawn[1].sha256


def test_the_hash_is_of_what_the_lists_hold():
    split = Split({"train_normal": tuple(normal(2)), "tune": ()}, SplitOptions())
    canonical = '{"train_normal":[{"path":"good/0000.png"},{"path":"good/0001.png"}]}'
    assert split.sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    assert replace(split, notes=("n",), options=SplitOptions(split_seed=9)).sha256 == split.sha256


def broken(change):
    value = make_split(normal(10) + defective(2, mask="m.png"), SplitOptions(val_count=1)).to_json()
    change(value)
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("lists"), "'lists' is missing"),
        (lambda v: v.update(notes="text"), "'notes' is missing, or is no list"),
        (lambda v: v["notes"].append(1), "notes have to be texts"),
        (lambda v: v["options"].update(tuning=7), "options that cannot work: dataset.tuning=7"),
        (lambda v: v["options"].update(extra=7), "options that cannot work"),
        (lambda v: v["lists"].update(more=[]), "'more' is no list of a split"),
        (lambda v: v["lists"].update(test={}), "'test' is no list of a split"),
        (lambda v: v["lists"]["test"].append("x"), r"test\[4\]: a record has to be a mapping"),
        (lambda v: v["lists"]["test"][0].update(path=3), "holds texts only"),
        (lambda v: v["lists"]["test"][0].update(run="x"), r"no \['run'\]"),
        (lambda v: v["lists"]["test"][0].update(path="../../etc/passwd"), "no path below the dataset's folder"),
        (lambda v: v["lists"]["test"][0].update(mask="/etc/passwd"), "no path below the dataset's folder"),
        (lambda v: v["lists"]["test"][0].update(part="both"), "part='both' is unknown"),
        (lambda v: v["lists"]["val"][0].update(painted="rust"), "painted='rust' is unknown"),
        (lambda v: v["lists"]["train_normal"].append(v["lists"]["test"][0]), "is in train_normal and in test"),
        (lambda v: v["lists"]["test"].pop(), "do not fit its sha256"),
    ],
)
def test_a_malformed_split_file_is_refused(change, message):
    with pytest.raises(DataError, match=f"^run/split.json.*{message}"):
        Split.from_json(broken(change), "run/split.json")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_split_file_of_another_kind_is_refused(value):
    with pytest.raises(DataError, match="has to be a mapping"):
        Split.from_json(value)
