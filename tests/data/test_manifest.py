"""Labels that people have: CSV manifests, LabelMe and COCO polygons, and the layouts of published datasets."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from run_files import rows_of

from anomaly_lab.cli import main
from anomaly_lab.data.images import MaskRule, read_mask
from anomaly_lab.data.manifest import Manifest
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.polygons import read_annotations
from anomaly_lab.data.splits import make_split
from anomaly_lab.errors import ConfigError, DataError

SIZE = (24, 32)  # height, width


def save(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    image = rng.integers(90, 130, SIZE, np.uint8) if values is None else values
    Image.fromarray(image).save(path)


def mask_of(top, left, height, width, value=255):
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = value
    return mask


def labelme(*shapes, size=SIZE):
    listed = [{"label": label, "points": points, "shape_type": kind} for label, kind, points in shapes]
    return json.dumps({"shapes": listed, "imagePath": "x.png", "imageHeight": size[0], "imageWidth": size[1]})


def coco(images, annotations):
    return json.dumps(
        {
            "categories": [{"id": 1, "name": "scratch"}, {"id": 2, "name": "ignore"}],
            "images": [
                {"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for n, name in enumerate(images)
            ],
            "annotations": [
                {"image_id": image, "category_id": category, "segmentation": segmentation}
                for image, category, segmentation in annotations
            ],
        }
    )


SQUARE = [[4, 6], [14, 6], [14, 16], [4, 16]]  # x 4..14, y 6..16


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("polygon", SQUARE, mask_of(6, 4, 10, 10)),
        ("rectangle", [[14, 16], [4, 6]], mask_of(6, 4, 10, 10)),
        ("polygon", [[0, 0], [32, 0], [32, 24], [0, 24]], mask_of(0, 0, 24, 32)),
    ],
)
def test_outlines_cover_the_pixels_inside(kind, points, expected, tmp_path):
    (tmp_path / "x.json").write_text(labelme(("scratch", kind, points)))
    found = read_mask(tmp_path / "x.json", size=SIZE, image=tmp_path / "x.png")
    assert np.array_equal(found == 1, expected == 255)


def test_slanted_outlines_enclose_the_centres_inside(tmp_path):
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(0)
    for number in range(5):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = np.column_stack([16 + 13 * np.cos(angles), 12 + 9 * np.sin(angles)]) * rng.uniform(0.8, 1, (9, 1))
        (tmp_path / f"{number}.json").write_text(labelme(("scratch", "polygon", points.tolist())))
        found = read_mask(tmp_path / f"{number}.json", size=SIZE, image=tmp_path / f"{number}.png")
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
        inside = Outline(points).contains_points(np.column_stack([columns.ravel(), rows.ravel()])).reshape(SIZE)
        assert np.array_equal(found == 1, inside)


def test_a_circle_is_as_large_as_its_radius(tmp_path):
    (tmp_path / "x.json").write_text(labelme(("dent", "circle", [[16, 12], [16, 20]])))
    found = read_mask(tmp_path / "x.json", size=SIZE, image=tmp_path / "x.png")
    assert (found == 1).sum() == pytest.approx(np.pi * 64, rel=0.05)


def test_what_is_named_ignore_lies_above(tmp_path):
    (tmp_path / "x.json").write_text(labelme(("Ignore", "polygon", SQUARE), ("scratch", "polygon", SQUARE)))
    found = read_mask(tmp_path / "x.json", size=SIZE, image=tmp_path / "x.png")
    assert set(np.unique(found)) == {0, 255}


def test_coco_holds_polygons_and_run_lengths_of_many_images(tmp_path):
    mask = mask_of(6, 4, 10, 10) > 0
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    file = tmp_path / "all.json"
    polygon = [[coordinate for point in SQUARE for coordinate in point]]
    file.write_text(
        coco(["a/1.png", "b/1.png", "b/2.png"], [(0, 1, polygon), (1, 1, {"counts": counts, "size": list(SIZE)})])
    )
    first, second, third = (
        read_mask(file, size=SIZE, image=tmp_path / name) for name in ("a/1.png", "b/1.png", "b/2.png")
    )
    assert np.array_equal(first == 1, mask)
    assert np.array_equal(second == 1, mask)
    assert not third.any()
    with pytest.raises(DataError, match=r"names the image 3\.png 0 times"):
        read_mask(file, size=SIZE, image=tmp_path / "b/3.png")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read as polygons"),
        ("[]", "neither a LabelMe file"),
        ('{"shapes": [{"label": "a", "points": [[1, 2]]}]}', "three points"),
        ('{"shapes": [{"label": "a", "points": [[1, 2], [3, 4], [5, NaN]]}]}', "three points"),
        ('{"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask"}]}', "type mask is not read"),
        (labelme(("a", "polygon", SQUARE), size=(5, 5)), "5x5 pixels"),
    ],
)
def test_files_that_mark_nothing_are_named(content, told, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=told) as caught:
        read_mask(tmp_path / "x.json", size=SIZE, image=tmp_path / "x.png")
    assert "x.json" in str(caught.value)


def test_grey_values_mean_what_is_said(tmp_path):
    values = np.zeros(SIZE, np.uint8)
    values[0], values[1], values[2] = 2, 127, 255
    save(tmp_path / "m.png", values)
    rows = {rule: read_mask(tmp_path / "m.png", size=SIZE, rule=rule)[:4, 0].tolist() for rule in (
        MaskRule(), MaskRule(threshold=1), MaskRule(ignore=127), MaskRule(threshold=1, ignore=255),
    )}  # fmt: skip
    assert list(rows.values()) == [[0, 0, 1, 0], [1, 1, 1, 0], [0, 255, 1, 0], [1, 1, 255, 0]]
    values[0], values[1], values[2] = 1, 255, 1
    save(tmp_path / "small.png", values)
    assert read_mask(tmp_path / "small.png", size=SIZE, rule=MaskRule(ignore=255))[:4, 0].tolist() == [1, 255, 1, 0]


@pytest.fixture
def listed(tmp_path):
    """Ten normal pictures and four defective ones, with a manifest."""
    lines = ["path,label,mask,group,split"]
    for number in range(14):
        kind = "ok" if number < 10 else "scratch"
        save(tmp_path / f"images/{number}.png")
        if number >= 10:
            save(tmp_path / f"masks/{number}.png", mask_of(2, 2, 6, 6))
        lines.append(f"images/{number}.png,{kind},{f'masks/{number}.png' if number >= 10 else ''},part{number // 2},")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "all.csv"


def test_a_manifest_says_all(listed):
    records = Manifest(manifest=listed).scan()
    assert len(records) == 14
    by_path = {record.path: record for record in records}
    assert (by_path["images/0.png"].label, by_path["images/0.png"].group) == (0, "part0")
    assert by_path["images/12.png"].mask == "masks/12.png"
    assert by_path["images/12.png"].defect == "scratch"
    split = make_split(records, SplitOptions(val_count=2))
    assert {len(split.lists["test"]), len(split.lists["val"])} == {6, 4}


def test_a_division_that_is_there_is_kept(listed):
    text = listed.read_text().splitlines()
    parts = ["train"] * 6 + ["validation"] * 2 + ["test"] * 6
    listed.write_text("\n".join([text[0], *(line + part for line, part in zip(text[1:], parts, strict=True))]))
    split = make_split(Manifest(manifest=listed).scan(), SplitOptions(val_fraction=0.1))
    normal = {name: [r.path for r in records if not r.label and not r.painted] for name, records in split.lists.items()}
    assert [len(normal[name]) for name in ("train_normal", "val", "test")] == [6, 2, 2]
    assert normal["val"] == ["images/6.png", "images/7.png"]
    by_part = ["train"] * 5 + ["val"] * 3 + ["test"] * 6  # of the two pictures of one part, one trains
    listed.write_text("\n".join([text[0], *(line + part for line, part in zip(text[1:], by_part, strict=True))]))
    split = make_split(Manifest(manifest=listed).scan(), SplitOptions())
    assert "1 training images show a part that is tested or held out" in " ".join(split.notes)
    listed.write_text("\n".join([text[0], *(line + "train" for line in text[1:])]))
    with pytest.raises(DataError, match="nothing of it is to be tested"):
        make_split(Manifest(manifest=listed).scan(), SplitOptions())
    parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 4 + ["val"] * 2
    listed.write_text("\n".join([text[0], *(line + part for line, part in zip(text[1:], parts, strict=True))]))
    assert "2 defective images of the held-out part" in " ".join(
        make_split(Manifest(manifest=listed).scan(), SplitOptions()).notes
    )
    listed.write_text("\n".join([text[0], *(line + "train" for line in text[1:-1]), text[-1]]))
    with pytest.raises(DataError, match="for every picture, or for none"):
        Manifest(manifest=listed).scan()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("images/3.png", "images/33.png"), "line 5: .*33.png is no file"),
        (("images/3.png", "images/2.png"), "line 5: images/2.png stands twice"),
        (("images/3.png", "../3.png"), "line 5: ../3.png is no path below"),
        (("images/3.png", "/etc/passwd"), "line 5: /etc/passwd is no path below"),
        (("path,label", "file,label"), "no column path"),
        (("part1,", "part1,later"), "split=later has to be one of train, val, test"),
        (("part1,", "part1,test,more"), "not as many cells"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_named(change, told, listed):
    listed.write_text(listed.read_text().replace(*change, 1))
    with pytest.raises(DataError, match=told):
        Manifest(manifest=listed).scan()


def test_a_manifest_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.manifest=FILE\.csv"):
        Manifest()
    with pytest.raises(DataError, match="is no file"):
        Manifest(manifest=tmp_path / "no.csv").scan()


def visa(root):
    lines = ["object,split,label,image,mask"]
    for kind, split, label in (
        ("Normal", "train", "normal"),
        ("Normal", "test", "normal"),
        ("Anomaly", "test", "anomaly"),
    ):
        for number in range(3):
            path, mask = (
                f"candle/Data/Images/{kind}/{split}{number}.JPG",
                f"candle/Data/Masks/Anomaly/{split}{number}.png",
            )
            save(root / path)
            if kind == "Anomaly":
                save(root / mask, mask_of(2, 2, 8, 8, value=1 + number))
            lines.append(f"candle,{split},{label},{path},{mask if kind == 'Anomaly' else ''}")
    lines.append("pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,")  # an object that is not there
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines))
    return {"train good": 3, "test good": 3, "test anomaly": 3}


def btad(root):
    for split, kind in (("train", "ok"), ("test", "ok"), ("test", "ko")):
        for number in range(3):
            save(root / f"01/{split}/{kind}/{number:04}.bmp")
    for number in range(3):
        save(root / f"01/ground_truth/ko/{number:04}.png", mask_of(2, 2, 8, 8))
    return {"train good": 3, "test good": 3, "test ko": 3}


def mpdd(root):
    for split, kind in (("train", "good"), ("test", "good"), ("test", "hole")):
        for number in range(3):
            save(root / f"bracket_black/{split}/{kind}/{number:03}.png")
    for number in range(3):
        save(root / f"bracket_black/ground_truth/hole/{number:03}_mask.png", mask_of(2, 2, 8, 8))
    return {"train good": 3, "test good": 3, "test hole": 3}


def kolektor2(root):
    for split in ("train", "test"):
        for number in range(4):
            save(root / f"{split}/{number}.png")
            save(root / f"{split}/{number}_GT.png", mask_of(2, 2, 8, 8) if number == 3 else mask_of(0, 0, 0, 0))
    return {"train good": 3, "train defect": 1, "test good": 3, "test defect": 1}


def mvtec_ad_2(root):
    for folder in ("train/good", "validation/good", "test_public/good", "test_public/bad", "test_private"):
        for number in range(3):
            save(root / f"can/{folder}/{number:03}_regular.png")
    for number in range(3):
        save(root / f"can/test_public/ground_truth/bad/{number:03}_regular_mask.png", mask_of(2, 2, 8, 8))
    return {"train good": 3, "val good": 3, "test good": 3, "test bad": 3}


def labelme_folder(root):
    for number in range(6):
        save(root / f"line1/{number}.png")
    for number in (4, 5):
        (root / f"line1/{number}.json").write_text(
            labelme(("small", "polygon", [[1, 1], [2, 1], [2, 2]]), ("scratch", "polygon", SQUARE))
        )
    (root / "line1/3.json").write_text(
        labelme(("scratch", "line", [[1, 1], [9, 9]]))
    )  # a defect, and nobody knows where
    (root / "line1/0.json").write_text(labelme(("ignore", "polygon", SQUARE)))
    return {" good": 3, " scratch": 3}


@pytest.mark.parametrize("layout", [visa, btad, mpdd, kolektor2, mvtec_ad_2, labelme_folder])
def test_layouts_that_people_have(layout, tmp_path, caplog):
    """One command writes the manifest; every mask in it marks what was marked."""
    expected = layout(tmp_path)
    assert main(["manifest", str(tmp_path)]) == 0
    rows = rows_of(tmp_path / "manifest.csv")
    counts = {}
    for row in rows:
        counts[f"{row['split']} {row['label']}"] = counts.get(f"{row['split']} {row['label']}", 0) + 1
    assert counts == expected
    assert f"dataset.manifest={tmp_path}/manifest.csv" in caplog.text
    rule = MaskRule(threshold=1) if layout is visa else MaskRule()
    assert ("mask_threshold=1" in caplog.text) == (layout is visa)
    for record in Manifest(manifest=tmp_path / "manifest.csv").scan():
        assert bool(record.mask) == bool(record.label) or record.path in ("line1/0.png", "line1/3.png")
        if record.label and record.mask:
            mask = read_mask(tmp_path / record.mask, size=SIZE, rule=rule, image=tmp_path / record.path)
            assert 60 <= (mask == 1).sum() <= 110


def test_a_coco_file_becomes_a_manifest(tmp_path, capsys):
    for number in range(4):
        save(tmp_path / f"images/{number}.png")
    polygon = [[coordinate for point in SQUARE for coordinate in point]]
    (tmp_path / "all.json").write_text(coco([f"{n}.png" for n in range(4)], [(2, 1, polygon), (3, 2, polygon)]))
    command = ["manifest", str(tmp_path), f"annotations={tmp_path / 'all.json'}", r"group_regex='(\d)\.png'"]
    assert main(command) == 0
    rows = {row["path"]: row for row in rows_of(tmp_path / "manifest.csv")}
    assert {path: (row["label"], row["mask"], row["group"]) for path, row in rows.items()} == {
        "images/0.png": ("good", "", "0"),
        "images/1.png": ("good", "", "1"),
        "images/2.png": ("scratch", "all.json", "2"),
        "images/3.png": ("good", "all.json", "3"),
    }
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "force=true"]) == 0


def test_what_no_manifest_can_be_made_of_is_said(tmp_path, capsys):
    save(tmp_path / "a/1.png")
    for options, told in (
        ([], "no layout is recognised"),
        (["layout=visa"], "split_csv/1cls.csv is missing"),
        (["layout=vis"], "Did you mean 'visa'"),
        (["layouts=visa"], "Did you mean 'layout'"),
        (["layout=btad"], "has train/ok"),
        (["layout=kolektor2"], "KolektorSDD2"),
        (["layout=labelme"], "no LabelMe file"),
    ):
        assert main(["manifest", str(tmp_path), *options]) == 2
        assert told in capsys.readouterr().err
    assert main(["manifest", str(tmp_path / "nowhere")]) == 2


def test_what_is_not_to_be_looked_at_counts_on_normal_pictures_too(tmp_path):
    from anomaly_lab.data.records import Record
    from anomaly_lab.data.store import ImageStore

    save(tmp_path / "x.png")
    (tmp_path / "x.json").write_text(labelme(("ignore", "polygon", SQUARE), ("line", "linestrip", [[0, 0], [9, 9]])))
    store = ImageStore(tmp_path, None, cache=tmp_path / "cache")
    for record in (Record("x.png", mask="x.json"), Record("x.png", "painted_x", "x.json", painted="scratch")):
        _, mask = store.load(record)
        assert np.array_equal(mask == 255, mask_of(6, 4, 10, 10) > 0)
        assert not (mask == 1).any()


def test_odd_folders_are_no_trap(tmp_path, capsys, monkeypatch):
    btad(tmp_path / "b")
    save(tmp_path / "b/01/preview.png")
    assert main(["manifest", str(tmp_path / "b")]) == 0
    kolektor2(tmp_path / "k")
    shutil.rmtree(tmp_path / "k/test")
    assert main(["manifest", str(tmp_path / "k")]) == 0
    save(tmp_path / "c/i/1.png")
    polygon = [[coordinate for point in SQUARE for coordinate in point]]
    (tmp_path / "c/a.json").write_text(coco(["train2017/1.png"], [(0, 1, polygon)]))
    assert main(["manifest", str(tmp_path / "c"), f"annotations={tmp_path}/c/a.json"]) == 2
    assert "its image train2017/1.png is 0 times below" in capsys.readouterr().err
    (tmp_path / "c/a.json").write_text(coco(["1.png"], [(0, 1, polygon)]))
    monkeypatch.chdir(tmp_path / "c")
    assert main(["manifest", str(tmp_path / "c"), "annotations=a.json"]) == 0
    (tmp_path / "c/a.json").write_text(coco(["1.png"], [(7, 1, polygon)]))
    with pytest.raises(DataError, match="is of image 7, which the file does not list"):
        read_annotations(tmp_path / "c/a.json")
    (tmp_path / "c/a.json").write_text(coco(["1.png"], [(0, 1, [])]))
    assert main(["manifest", ".", "annotations=a.json", "force=true"]) == 2
    assert "has no segmentation" in capsys.readouterr().err
    for name in ("a.png", "sub/a.png"):  # the one in the folder itself, however it is written
        save(tmp_path / "e/photos" / name)
    for written in ("a.png", "./a.png", "photos/a.png"):
        (tmp_path / "e/photos/a.json").write_text(coco([written], [(0, 1, polygon)]))
        assert main(["manifest", f"{tmp_path}/e/photos", f"annotations={tmp_path}/e/photos/a.json", "force=true"]) == 0
        (row,) = rows_of(tmp_path / "e/photos/manifest.csv")
        assert row["path"] == "a.png"
        assert (read_mask(tmp_path / "e/photos/a.json", size=SIZE, image=tmp_path / "e/photos/a.png") == 1).sum() == 100


def test_a_file_of_polygons_is_read_anew_when_it_changes(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(labelme(("scratch", "polygon", SQUARE)))
    assert len(read_annotations(file).images[0].regions) == 1
    file.write_text(labelme())
    assert len(read_annotations(file).images[0].regions) == 0


def test_a_run_on_a_manifest_with_polygons_and_a_region(tmp_path):
    """From a LabelMe folder to scores: normal ones train, marked ones are tested, the border is cut off."""
    rng = np.random.default_rng(0)
    for number in range(24):
        image = rng.integers(90, 110, SIZE, np.uint8)
        if number >= 18:
            image[8:14, 6:12] = 250
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / f"in/{number:02}.json").write_text(labelme(("spot", "rectangle", [[6, 8], [12, 14]])))
        save(tmp_path / f"in/{number:02}.png", image)
    assert main(["manifest", str(tmp_path / "in")]) == 0
    small = [
        "model=pca",
        "dataset.protocol=normal_only",
        "model.latent_dim=2",
        "dataset.image_size=16",
        "model.score=max",
    ]
    options = [
        f"dataset.manifest={tmp_path / 'in/manifest.csv'}",
        f"runs_dir={tmp_path / 'runs'}",
        "dataset.roi=[4,2,16,16]",
    ]
    assert main(["train", "dataset=manifest", *small, *options]) == 0
    (run,) = (tmp_path / "runs").glob("manifest/pca/*/metrics.json")
    metrics = json.loads(run.read_text())["metrics"]
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.8
    from anomaly_lab import load

    detector = load(run.parent, device="cpu")
    found = detector.predict(tmp_path / "in/20.png")
    outside = np.isnan(found.anomaly_map)
    assert found.anomaly_map.shape == SIZE
    assert not outside[4:20, 2:18].any()
    assert outside.sum() == SIZE[0] * SIZE[1] - 16 * 16
    peak = np.unravel_index(np.nanargmax(found.anomaly_map), SIZE)
    assert 8 <= peak[0] < 14
    assert 6 <= peak[1] < 12
    assert main(["train", "dataset=manifest", *small, *options[:2], "dataset.roi=[4,2,30,16]"]) == 1
