import inspect
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from anomaly_lab.data.apsd import APSD
from anomaly_lab.data.crackforest import CrackForest
from anomaly_lab.data.folder import ImageFolder
from anomaly_lab.data.mt import MagneticTile, tile_groups
from anomaly_lab.data.mvtec import CATEGORIES, CSD, MVTecAD
from anomaly_lab.data.plan import LoadOptions
from anomaly_lab.data.rsd import RSD
from anomaly_lab.data.splits import SplitOptions
from anomaly_lab.errors import ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf"
REAL = Path(os.environ.get("ANOMALY_LAB_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not (REAL / "magnetic_tile").is_dir(), reason="ANOMALY_LAB_DATA has no real images")


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def defects(records):
    return Counter(record.defect for record in records)


def by_path(records):
    return {record.path: record for record in records}


class TestMVTec:
    def test_layout_becomes_records(self, tmp_path):
        touch(tmp_path, "tile/train/good/000.png", "tile/test/good/000.png", "tile/test/gray stroke/000.png")
        touch(tmp_path, "tile/ground_truth/gray stroke/000_mask.png", "tile/readme.txt")
        records = by_path(MVTecAD(tmp_path, "tile").scan())
        assert {(p, r.defect, r.part, r.mask) for p, r in records.items()} == {
            ("tile/train/good/000.png", "good", "train", None),
            ("tile/test/good/000.png", "good", "test", None),
            ("tile/test/gray stroke/000.png", "gray stroke", "test", "tile/ground_truth/gray stroke/000_mask.png"),
        }

    def test_unknown_category_names_the_nearest(self, tmp_path):
        assert len(CATEGORIES) == 15
        with pytest.raises(ConfigError, match="Did you mean 'leather'"):
            MVTecAD(tmp_path, "lether")
        with pytest.raises(ConfigError, match="toothbrush"):
            MVTecAD(tmp_path)

    def test_missing_category_says_what_is_there_and_how_to_get_it(self, tmp_path):
        touch(tmp_path, "wood/train/good/0.png")
        with pytest.raises(DataError, match=r"no leather/train/good.*holds wood/.*MVTec AD \(Bergmann"):
            MVTecAD(tmp_path, "leather").scan()

    def test_root_given_one_folder_too_deep(self, tmp_path):
        touch(tmp_path, "wood/train/good/0.png")
        with pytest.raises(DataError, match=rf"dataset.root={tmp_path}\."):
            MVTecAD(tmp_path / "wood", "wood").scan()

    def test_csd_is_carpet_and_says_when_it_is_incomplete(self, tmp_path, caplog):
        touch(tmp_path, *(f"carpet/train/good/{i:03}.png" for i in range(280)))
        touch(tmp_path, *(f"carpet/test/good/{i:03}.png" for i in range(28)))
        for defect, count in {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19}.items():
            touch(tmp_path, *(f"carpet/test/{defect}/{i:03}.png" for i in range(count)))
            touch(tmp_path, *(f"carpet/ground_truth/{defect}/{i:03}_mask.png" for i in range(count)))
        records = CSD(tmp_path).scan()
        assert Counter((r.part, r.label, r.mask is None) for r in records) == {
            ("train", 0, True): 280,
            ("test", 0, True): 28,
            ("test", 1, False): 89,
        }
        assert not caplog.records
        (tmp_path / "carpet/train/good/007.png").unlink()
        CSD(tmp_path).scan()
        assert "307 normal and 89 defective images found, 308 and 89 expected" in caplog.text

    @needs_data
    def test_real_leather_names_what_has_no_partner(self, caplog):
        records = MVTecAD(REAL / "mvtec_ad", "leather").scan()
        assert len(records) == 28
        assert sum(r.label for r in records) == 20
        assert sum(r.mask is not None for r in records) == 11
        (line,) = [r.getMessage() for r in caplog.records if r.name == "anomaly_lab"]
        assert "9 defective images have no mask" in line
        assert "7 masks have no image" in line
        assert line.count("leather/test/") == 9
        assert line.count("leather/ground_truth/") == 7
        assert "leather/test/glue/002.png" in line
        assert "leather/ground_truth/glue/009_mask.png" in line


class TestMagneticTile:
    def test_layout_becomes_records(self, tmp_path, caplog):
        touch(tmp_path, "README.md", "MT_Free/Imgs/exp1_num_100.jpg", "MT_Free/Imgs/exp1_num_100.png")
        touch(tmp_path, "MT_Fray/Imgs/exp2_num_120.jpg", "MT_Fray/Imgs/exp2_num_120.png", "MT_Fray/Imgs/odd name.JPG")
        records = by_path(MagneticTile(tmp_path).scan())
        assert {(p, r.defect, r.mask, r.group) for p, r in records.items()} == {
            ("MT_Free/Imgs/exp1_num_100.jpg", "good", None, "exp1_num_100"),
            ("MT_Fray/Imgs/exp2_num_120.jpg", "fray", "MT_Fray/Imgs/exp2_num_120.png", "exp1_num_100"),
            ("MT_Fray/Imgs/odd name.JPG", "fray", None, ""),
        }
        assert (
            "1 defective images have no mask, so their pixels are not scored (MT_Fray/Imgs/odd name.JPG)" in caplog.text
        )
        assert "952 and 392 expected" in caplog.text

    def test_a_group_is_a_run_of_rising_exposures(self):
        groups = tile_groups(
            [
                *("exp1_num_100", "exp2_num_160", "exp4_num_170"),  # a gap of 60 still belongs
                *("exp5_num_231", "exp6_num_232"),  # one of 61 does not
                *("exp6_num_233",),  # K has to rise
                *("exp0_num_240", "exp3_num_1000"),
                "other",
            ]
        )
        members = Counter(groups.values())
        assert members == {
            "exp1_num_100": 3,
            "exp5_num_231": 2,
            "exp6_num_233": 1,
            "exp0_num_240": 1,
            "exp3_num_1000": 1,
        }
        assert "other" not in groups
        assert groups["exp4_num_170"] == "exp1_num_100"

    def test_groups_are_sorted_by_number_not_by_name(self):
        assert set(tile_groups(["exp2_num_1005", "exp1_num_999"]).values()) == {"exp1_num_999"}

    def test_without_normal_images(self, tmp_path):
        touch(tmp_path, "MT_Fray/Imgs/exp2_num_120.jpg")
        with pytest.raises(DataError, match=r"MT_Free.*holds MT_Fray/.*Huang, Qiu and Yuan"):
            MagneticTile(tmp_path).scan()

    @needs_data
    def test_real_tiles(self, caplog):
        records = MagneticTile(REAL / "magnetic_tile").scan()
        assert defects(records) == {
            **{"good": 952, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103},
        }
        labels = {}
        for record in records:
            labels.setdefault(record.part_of, set()).add(record.label)
        assert len(labels) == 303
        assert sum(found == {0, 1} for found in labels.values()) == 18
        assert all((REAL / "magnetic_tile" / r.mask).is_file() for r in records if r.label)
        assert not caplog.records


class TestFolder:
    def test_only_images(self, tmp_path, caplog):
        touch(tmp_path, "a b.png", "Ünïcode.JPG", "._a b.png", "Thumbs.db", "notes.txt", "day 1/x.TIFF", ".git/y.png")
        records = ImageFolder(tmp_path).scan()
        assert [r.path for r in records] == ["a b.png", "day 1/x.TIFF", "Ünïcode.JPG"]
        assert {r.label for r in records} == {0}
        assert "1 files among the images are no images and left out (notes.txt)" in caplog.text
        assert "the 1 in its sub-folders (day 1) too" in caplog.text

    def test_normal_sub_folders_defect_types_and_masks(self, tmp_path, caplog):
        touch(tmp_path, "Good/1.png", "ok/cam 1/1.png", "scratch/1.png", "scratch/deep/2.bmp", "dent/1.png")
        touch(
            tmp_path,
            "Masks/scratch/1.png",
            "Masks/scratch/deep/2_mask.png",
            "Masks/dent/7.png",
            "stray.png",
            "empty/x.txt",
        )
        records = by_path(ImageFolder(tmp_path).scan())
        assert {p: (r.defect, r.mask, r.part) for p, r in records.items()} == {
            "Good/1.png": ("good", None, None),
            "ok/cam 1/1.png": ("good", None, None),
            "scratch/1.png": ("scratch", "Masks/scratch/1.png", None),
            "scratch/deep/2.bmp": ("scratch", "Masks/scratch/deep/2_mask.png", None),
            "dent/1.png": ("dent", None, None),
        }
        assert "1 defective images have no mask, so their pixels are not scored (dent/1.png)" in caplog.text
        assert "1 masks have no image and are left out (Masks/dent/7.png)" in caplog.text
        assert "1 images directly in" in caplog.text

    def test_no_masks_folder_is_no_warning(self, tmp_path, caplog):
        touch(tmp_path, "good/1.png", "bad/1.png")
        assert defects(ImageFolder(tmp_path).scan()) == {"good": 1, "bad": 1}
        assert not caplog.records

    def test_options_name_the_folders(self, tmp_path):
        touch(tmp_path, "fine/1.png", "bad/scratch/1.png", "bad/2.png", "truth/scratch/1.png", "other/3.png")
        records = by_path(ImageFolder(tmp_path, normal="fine", masks="truth", defects="bad").scan())
        assert {p: (r.defect, r.mask) for p, r in records.items()} == {
            "fine/1.png": ("good", None),
            "bad/scratch/1.png": ("scratch", "truth/scratch/1.png"),
            "bad/2.png": ("bad", None),
        }

    def test_mvtec_layout(self, tmp_path):
        touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/hole/3.png", "ground_truth/hole/3_mask.png")
        records = by_path(ImageFolder(tmp_path).scan())
        assert {p: (r.defect, r.part) for p, r in records.items()} == {
            "train/good/1.png": ("good", "train"),
            "test/good/2.png": ("good", "test"),
            "test/hole/3.png": ("hole", "test"),
        }
        assert records["test/hole/3.png"].mask == "ground_truth/hole/3_mask.png"

    def test_mvtec_layout_without_a_test_folder_is_not_divided(self, tmp_path):
        touch(tmp_path, "train/good/1.png")
        (record,) = ImageFolder(tmp_path).scan()
        assert (record.defect, record.part) == ("good", None)

    def test_symbolic_links_to_folders(self, tmp_path):
        touch(tmp_path, "elsewhere/1.png", "root/bad/1.png")
        (tmp_path / "root/good").symlink_to(tmp_path / "elsewhere")
        assert defects(ImageFolder(tmp_path / "root").scan()) == {"good": 1, "bad": 1}

    @pytest.mark.parametrize(
        ("pattern", "groups"),
        [
            (r"part(\d+)", ["1", "1", ""]),
            (r"part\d+", ["part1", "part1", ""]),
            (r"part\d+(_b)?", ["", "_b", ""]),
            (r"^good/p", ["good/p", "", ""]),
        ],
    )
    def test_group_regex(self, tmp_path, pattern, groups):
        touch(tmp_path, "good/part1_a.png", "scratch/part1_b.png", "scratch/x.png")
        records = ImageFolder(tmp_path, group_regex=pattern).scan()
        assert [r.group for r in records] == groups
        assert records[2].part_of == "scratch/x.png"

    def test_bad_regex(self, tmp_path):
        touch(tmp_path, "good/part1_a.png")
        with pytest.raises(ConfigError, match=r"dataset.group_regex='prt' is found in none of the \d+ paths"):
            ImageFolder(tmp_path, group_regex="prt").scan()
        with pytest.raises(ConfigError, match=r"dataset.group_regex='\(' is not a regular expression: missing \)"):
            ImageFolder(tmp_path, group_regex="(")

    @pytest.mark.parametrize(
        ("paths", "options", "message"),
        [
            ([], {}, "no image in .* is empty"),
            (["notes.txt"], {}, "no image in .* holds notes.txt"),
            (["a/1.png", "b/2.png"], {}, r"sub-folders of .* \(a, b\).*dataset.normal=NAME"),
            (["good/x.txt", "b/2.png"], {}, "folder of normal images is empty"),
            (["good/1.png"], {"normal": "fine"}, "dataset.normal=fine: .* holds good/"),
            (["good/1.png"], {"masks": "m"}, "dataset.masks=m: .* holds good/"),
            (["good/1.png"], {"defects": "d"}, "dataset.defects=d: .* holds good/"),
            (["fine/1.png", "good/1.png"], {"normal": "fine"}, "good cannot be a defect type"),
            (["train/good/x.txt"], {}, "no image in .*good; it holds those to train on"),
        ],
    )
    def test_what_cannot_work_is_an_error(self, tmp_path, paths, options, message):
        touch(tmp_path, *paths)
        with pytest.raises(DataError, match=message):
            ImageFolder(tmp_path, **options).scan()

    def test_missing_root(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere .*is not a folder.*your own folder of images"):
            ImageFolder(tmp_path / "nowhere").scan()


def test_apsd_and_rsd(tmp_path, caplog):
    apsd, rsd = tmp_path / "apsd", tmp_path / "rsd"
    for root in (apsd, rsd):
        touch(root, *(f"normal/{i}.png" for i in range(650)))
    touch(apsd, *(f"defect/{'bump' if i < 200 else 'jet_flow'}/{i}.png" for i in range(450)))
    touch(rsd, *(f"defect/{i}.png" for i in range(450)))
    assert defects(APSD(apsd).scan()) == {"good": 650, "bump": 200, "jet_flow": 250}
    assert defects(RSD(rsd).scan()) == {"good": 650, "defect": 450}
    assert not caplog.records
    touch(apsd, "defect/bunp/x.png")
    APSD(apsd).scan()
    assert "does not list: bunp" in caplog.text


@pytest.mark.parametrize(
    "dataset", [MVTecAD(None, "wood"), CSD(), MagneticTile(), APSD(), RSD(), CrackForest(), ImageFolder()]
)
def test_without_a_root_the_error_says_how_to_get_the_data(dataset, monkeypatch):
    monkeypatch.delenv("ANOMALY_LAB_DATA", raising=False)
    with pytest.raises(DataError, match=r"dataset.root=DIR") as raised:
        dataset.scan()
    assert dataset.how_to_get in str(raised.value)


def test_the_warnings_go_to_the_packages_logger(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.txt")
    with caplog.at_level(logging.WARNING, logger="anomaly_lab"):
        ImageFolder(tmp_path).scan()
    assert {record.name for record in caplog.records} == {"anomaly_lab"}


@pytest.mark.parametrize("name", ["mvtec", "csd", "mt", "apsd", "rsd", "crackforest", "folder"])
def test_shipped_config_composes_and_has_no_stray_key(name, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(f"dataset/{name}", ["+model.protocol=normal_only", "+model.batch_size=8"])
    values = config.dataset
    if name == "mvtec":
        assert OmegaConf.is_missing(values, "category")
        values.category = "carpet"
    dataset_class = get_class(values["_target_"])
    scanner = set(inspect.signature(dataset_class).parameters)
    split = {field.name for field in fields(SplitOptions)}
    load = {field.name for field in fields(LoadOptions)}
    helpers = {"val_fraction_of"} if name == "mvtec" else set()
    assert set(values) == {"_target_", "name"} | scanner | split | load | helpers
    assert values.name == dataset_class.name == name
    dataset_class(**{key: values[key] for key in scanner} | {"root": tmp_path})
    options = SplitOptions(**{key: values[key] for key in split})
    assert values.batch_size == 8
    paper = {"mt": (330, 142, 100), "apsd": (500, 150, None), "rsd": (500, 150, None)}
    assert (options.train_count, options.test_normal_count, options.val_count) == paper.get(name, (None,) * 3)
    assert options.val_fraction == (0.1 if name in ("mvtec", "folder") else 0)
    assert options.label_reserve == (None if name == "mvtec" else 5)
    values.protocol = "few_labelled"
    assert values.val_fraction == (0.1 if name == "folder" else 0)


def test_scanning_and_splitting_import_nothing_heavy():
    modules = ("mvtec", "mt", "apsd", "rsd", "crackforest", "folder", "splits")
    code = "".join(f"import anomaly_lab.data.{name}\n" for name in modules) + "import sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "anomaly_lab.data.splits" in loaded
    assert not loaded & {
        "torch",
        "lightning",
        "torchmetrics",
        "albumentations",
        "scipy",
        "sklearn",
        "cv2",
        "matplotlib",
    }
