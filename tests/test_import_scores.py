"""`anomaly-lab import`: another tool's scores and maps as a run, equal to the run that they came from."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from run_files import rows_of

from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.store import ImageStore
from anomaly_lab.errors import ConfigError, DataError
from anomaly_lab.import_scores import import_run


def dataset_of(tiny):
    return [text for text in tiny if not text.startswith(("model.", "trainer."))]


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def theirs(finished, tmp_path):
    """A table as another tool writes it: absolute paths, held-out normal images too, another order."""
    rows = [
        {
            "path": f"/their/disk/{row['path']}",
            "score": row["score"],
            "PL1": row["PL1"],
            "upper_ci": row["PL1"],
            "remark": "x",
        }
        for name in ("scores.csv", "scores-val.csv")
        for row in rows_of(finished / name)
        if not row["path"].startswith("painted") and (name == "scores.csv" or row["label"] == "0")
    ]
    return write(tmp_path / "theirs.csv", rows[::-1])


def test_scores_that_went_out_come_in_with_the_same_metrics(finished, tiny, theirs, capsys):
    assert main(["import", str(theirs), "name=patch-core", *dataset_of(tiny)]) == 0
    assert "patch-core" in capsys.readouterr().out
    (run,) = finished.parent.parent.glob("patch-core/*")
    ours, other = (json.loads((path / "metrics.json").read_text()) for path in (finished, run))
    assert other["status"] == "finished"
    assert other["imported"] is True
    for name in ("image_auroc", "image_auroc_ci", "image_auroc_PL1", "threshold", "image_f1", "floor_knn_auroc"):
        assert other["metrics"][name] == pytest.approx(ours["metrics"][name], rel=1e-6), name
    assert other["data_sha256"] == ours["data_sha256"]
    assert (run / "figures/roc.png").exists()
    assert main(["evaluate", f"run={run}"]) == 2
    assert main(["compare", str(finished), str(run)]) == 0
    assert main(["import", str(theirs), "name=patch-core", *dataset_of(tiny)]) == 0, "again, to the same place"
    assert len(list(finished.parent.parent.glob("patch-core/*"))) == 1


def test_maps_are_measured_against_the_masks_here(tiny, theirs, tmp_path):
    """The masks themselves as maps find every pixel; as pictures of another size too, but for their edges."""
    config = compose("train", dataset_of(tiny))
    plan = make_plan(config["dataset"])
    store = ImageStore(plan.dataset.root, 32)
    for record in plan.split.lists["test"]:
        mask = store.load(record)[1]
        for folder, ending in (("exact", ".npy"), ("larger", ".png")):
            path = tmp_path / folder / record.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if ending == ".npy":
                np.save(path.with_suffix(".npy"), mask.astype(np.float64))
            else:
                Image.fromarray(mask * 200).resize((96, 96)).save(path.with_suffix(".png"))
    exact = import_run(theirs, "exact", config, tmp_path / "exact", 0.5).read()["metrics"]
    assert exact["pixel_iou_defect"] == 1
    assert exact["pixel_auroc"] == pytest.approx(1, abs=1e-6)
    larger = import_run(theirs, "larger", config, tmp_path / "larger", 100.0).read()["metrics"]
    assert larger["pixel_iou_defect"] > 0.9
    unset = import_run(theirs, "unset", config, tmp_path / "exact").read()
    assert unset["metrics"]["pixel_iou_defect"] is None
    assert "no pixel_threshold was given" in unset["reasons"]["pixel_iou_defect"]


def test_an_image_without_a_score_is_named(tiny, theirs):
    config = compose("train", dataset_of(tiny))
    rows = rows_of(theirs)
    lost = [row for row in rows if "spot" not in row["path"]]
    with pytest.raises(DataError, match=r"8 of 18 test images have no score, such as spot/"):
        import_run(write(theirs, lost), "other", config)
    assert not (theirs.parent / "runs/folder/other").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: [{"file": "a", "score": "1"}], "has no column path"),
        (lambda rows: [{**rows[0], "score": "nan"}], "line 2: the score is 'nan'"),
        (lambda rows: [rows[0], rows[0]], "line 3: .* stands twice"),
        (lambda rows: [*rows, {**rows[0], "path": f"elsewhere{rows[0]['path']}"}], "has two scores"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tiny, theirs, change, told):
    rows = sorted(rows_of(theirs), key=lambda row: "spot" not in row["path"])
    with pytest.raises(DataError, match=told):
        import_run(write(theirs, change(rows)), "other", compose("train", dataset_of(tiny)))


def test_maps_that_are_missing_or_none_are_named(tiny, theirs, tmp_path):
    config = compose("train", dataset_of(tiny))
    with pytest.raises(DataError, match=r"has no map: .*\.npy"):
        import_run(theirs, "other", config, tmp_path / "nowhere")
    first = make_plan(config["dataset"]).split.lists["test"][0].path
    path = (tmp_path / "maps" / first).with_suffix(".npy")
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match=r"is no map .* \(3, 4, 4\)"):
        import_run(theirs, "other", config, tmp_path / "maps")


def test_mistakes_in_the_command_are_named(tiny, theirs, capsys):
    for arguments, told in (
        ([str(theirs)], "name=NAME"),
        ([str(theirs), "name=x", "model.width=3"], "trained elsewhere"),
        ([str(theirs), "name=x", "pixel_threshold=high"], "has to be a number"),
    ):
        assert main(["import", *arguments]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(ConfigError, match="names a folder"):
        import_run(theirs, "../x", compose("train", dataset_of(tiny)))


def test_an_imported_run_stands_in_the_papers_table(tmp_path, capsys):
    asked = ["dataset=synthetic", "seeds=1", "settings=tiny", f"runs_dir={tmp_path}"]
    assert main(["reproduce", "dpae/table6", *asked]) == 0
    (run,) = tmp_path.glob("synthetic/dpae/*")
    scores = [{"path": row["path"], "score": row["RLX"]} for row in rows_of(run / "scores.csv")]
    theirs = write(tmp_path / "t.csv", scores)
    options = ["dataset=synthetic", "dataset.image_size=32", "dataset.split_seed=0", f"runs_dir={tmp_path}"]
    assert main(["import", str(theirs), "name=colleague", *options]) == 0
    capsys.readouterr()
    assert main(["reproduce", "dpae/table4", "model=dpae", *asked]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "colleague (imported)" in shown
    table = rows_of(tmp_path / "tables/dpae/table4-synthetic-dpae-tiny/table.csv")
    of_theirs = ("colleague (imported)", "AUC")
    (first,) = (float(row["mean"]) for row in table if (row["method"], row["metric"]) == of_theirs)
    write(theirs, [{**row, "score": -float(row["score"])} for row in scores])
    assert main(["import", str(theirs), "name=colleague", *options]) == 0
    assert main(["reproduce", "dpae/table4", "model=dpae", *asked]) == 0
    table = rows_of(tmp_path / "tables/dpae/table4-synthetic-dpae-tiny/table.csv")
    (last,) = (float(row["mean"]) for row in table if (row["method"], row["metric"]) == of_theirs)
    assert last == pytest.approx(1 - first), "of two imports of one name the last one counts"


def test_a_runs_own_table_comes_in_and_no_column_stands_in_for_the_score(finished, tiny, tmp_path):
    rows = rows_of(finished / "scores.csv")
    own = write(tmp_path / "own.csv", [{**row, "imported": -float(row["score"])} for row in rows])
    metrics = import_run(own, "copy", compose("train", dataset_of(tiny))).read()["metrics"]
    ours = json.loads((finished / "metrics.json").read_text())["metrics"]
    assert metrics["image_auroc"] == pytest.approx(ours["image_auroc"])
    with pytest.raises(ConfigError, match="name=dpae is a method here"):
        import_run(own, "dpae", compose("train", dataset_of(tiny)))


def test_maps_are_not_taken_where_images_are_not_whole(tiny, theirs, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.resize=pad"):
        import_run(theirs, "other", compose("train", [*dataset_of(tiny), "dataset.resize=pad"]), tmp_path)
