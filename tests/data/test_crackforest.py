import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from anomaly_lab.config import compose
from anomaly_lab.data.crackforest import CrackForest
from anomaly_lab.data.images import read_mask
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.store import ImageStore
from anomaly_lab.errors import DataError

REAL = Path(os.environ.get("ANOMALY_LAB_DATA", "/nonexistent")) / "crackforest"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="ANOMALY_LAB_DATA has no CrackForest")

VALUES = np.array([[1, 1, 2, 1], [3, 2, 2, 4]], np.uint8)


def write(path, segmentation, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": {"Segmentation": segmentation, "Boundaries": np.zeros((2, 4), np.uint8)}, **more})
    return path


@pytest.fixture
def roads(tmp_path):
    """Three images, two with ground truth, one ground truth without an image, and hidden files."""
    (tmp_path / "image").mkdir()
    for name in ("001", "002", "201"):
        Image.fromarray(np.full((2, 4, 3), 90, np.uint8)).save(tmp_path / f"image/{name}.jpg")
    for name in ("001", "002", "117"):
        write(tmp_path / f"groundTruth/{name}.mat", VALUES)
    (tmp_path / "groundTruth/._001.mat").touch()
    (tmp_path / "README.md").touch()
    return tmp_path


def test_images_with_ground_truth_become_records(roads, caplog):
    records = CrackForest(roads).scan()
    assert [(r.path, r.defect, r.mask, r.part) for r in records] == [
        ("image/001.jpg", "crack", "groundTruth/001.mat", None),
        ("image/002.jpg", "crack", "groundTruth/002.mat", None),
    ]
    assert "1 images without ground truth are left out, since it is not known whether they have cracks (201.jpg)" in (
        caplog.text
    )
    assert "1 masks have no image and are left out (groundTruth/117.mat)" in caplog.text
    assert "0 normal and 2 defective images found, 0 and 118 expected" in caplog.text


@pytest.mark.parametrize("missing", ["image", "groundTruth"])
def test_a_missing_folder_says_what_is_there_and_how_to_get_it(missing, roads):
    (roads / missing).rename(roads / "elsewhere")
    with pytest.raises(DataError, match=rf"there is no {missing} in .*holds .*elsewhere/.*Shi, Cui, Qi, Meng and Chen"):
        CrackForest(roads).scan()


def test_ground_truth_of_other_names(roads):
    for path in sorted((roads / "groundTruth").glob("0*.mat")):
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(DataError, match=r"has ground truth of its name.*holds 117\.mat, x001\.mat, x002\.mat"):
        CrackForest(roads).scan()


@pytest.mark.parametrize("kind", [np.uint8, np.float64, np.int32])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_segmentation_becomes_a_mask(kind, compressed, tmp_path):
    truth = {"groundTruth": {"Segmentation": VALUES.astype(kind)}}
    savemat(tmp_path / "a.mat", truth, do_compression=compressed)
    (tmp_path / "a.mat").rename(tmp_path / "a.MAT")
    mask = read_mask(tmp_path / "a.MAT", size=(2, 4))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 1, 0], [255, 1, 1, 255]]


def test_the_store_loads_it(roads):
    (record, _) = CrackForest(roads).scan()
    _, mask = ImageStore(roads, 4).load(record)
    assert mask.tolist() == [[0, 0, 1, 0]] * 2 + [[255, 1, 1, 255]] * 2


def version_7_3(path):
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600))


def cut(path):
    path.write_bytes(write(path, VALUES).read_bytes()[:-60])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot be opened"),
        (lambda p: p.touch(), "the file is empty"),
        (lambda p: p.write_text("no matrix" * 100), r"no groundTruth\.Segmentation can be read"),
        (cut, r"no groundTruth\.Segmentation can be read"),
        (version_7_3, r"no groundTruth\.Segmentation can be read"),
        (lambda p: Image.fromarray(VALUES).save(p, format="PNG"), r"no groundTruth\.Segmentation can be read"),
        (lambda p: savemat(p, {"other": VALUES}), r"no groundTruth\.Segmentation can be read"),
        (lambda p: savemat(p, {"groundTruth": VALUES}), r"no groundTruth\.Segmentation can be read"),
        (lambda p: savemat(p, {"groundTruth": {"Boundaries": VALUES}}), r"no groundTruth\.Segmentation can be read"),
        (lambda p: write(p, VALUES - 1), r"values 1 to 4, and is uint8 \(2, 4\)"),
        (lambda p: write(p, VALUES + 3), "values 1 to 4"),
        (lambda p: write(p, VALUES / 2), "values 1 to 4, and is float64"),
        (lambda p: write(p, VALUES * np.nan), "values 1 to 4"),
        (lambda p: write(p, np.dstack([VALUES] * 3)), r"values 1 to 4, and is uint8 \(2, 4, 3\)"),
        (lambda p: write(p, "1212"), r"no groundTruth\.Segmentation can be read \(its values are no real numbers\)"),
        (lambda p: write(p, VALUES[:0]), "the mask is 4x0 pixels"),
        (lambda p: write(p, VALUES.T), r"the mask is 2x4 pixels \(width x height\), its image 4x2"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(make, message, tmp_path):
    path = tmp_path / "001.mat"
    make(path)
    with pytest.raises(DataError, match=rf"^{path}: .*{message}"):
        read_mask(path, size=(2, 4))


@needs_data
def test_the_real_images(caplog):
    records = CrackForest(REAL).scan()
    assert len(records) == 118
    (line,) = [r.getMessage() for r in caplog.records if r.name == "anomaly_lab"]
    assert "37 images without ground truth are left out" in line
    masks = np.stack([read_mask(REAL / record.mask, size=(320, 480)) for record in records])
    assert (masks == 1).any(axis=(1, 2)).all()
    values, counts = np.unique(masks, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        **{0: 17_710_362, 1: 292_885, 255: 120_201 + 1_352},
    }
    store = ImageStore(REAL, 64)
    assert sum((store.load(record)[1] == 1).any() for record in records[:10]) == 10


@needs_data
def test_the_shipped_config_on_the_real_images():
    overrides = ["dataset=crackforest", f"dataset.root={REAL}", "dataset.protocol=few_labelled"]
    lists = make_plan(compose("train", overrides)["dataset"]).split.lists
    assert {name: len(drawn) for name, drawn in lists.items()} == {
        **{"labelled": 1, "unlabelled": 67, "val": 0, "tune": 0, "test": 46},
    }
    with pytest.raises(DataError, match=r"no normal image to train on.*dataset\.protocol=few_labelled"):
        make_plan(compose("train", [*overrides[:2], "dataset.protocol=normal_only"])["dataset"])
