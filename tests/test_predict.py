"""`anomaly-lab predict` and `load`: a trained run on new pictures."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import rows_of

from anomaly_lab import load, predict
from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.errors import DataError, RunError
from anomaly_lab.locks import RunBusyError, hold
from anomaly_lab.predict import find_pictures
from anomaly_lab.runs import Run


@pytest.fixture
def folder(pictures, tmp_path):
    """Five good and two spotted pictures, in folders."""
    root = tmp_path / "new"
    for kind, count in (("good", 5), ("spot", 2)):
        (root / kind).mkdir(parents=True)
        for path in sorted((pictures / kind).iterdir())[:count]:
            shutil.copy(path, root / kind)
    return root


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_the_scores_are_those_of_the_test(finished, pictures, tmp_path):
    assert main(["predict", str(finished), f"input={pictures}", f"output={tmp_path / 'out'}", "overlays=all"]) == 0
    found = {row["path"]: row for row in rows_of(tmp_path / "out/predictions.csv")}
    tested = rows_of(finished / "scores.csv")
    assert len(tested) > 10
    threshold = Run(finished).threshold()
    columns = ["score", "RLX", "RLZ", "PL1", "PL2", "RLX_peak"]
    for row in tested:
        for name in columns:
            assert float(found[row["path"]][name]) == pytest.approx(float(row[name]), rel=1e-6)
        assert (found[row["path"]]["verdict"] == "defective") == (float(row["score"]) > threshold)
        with Image.open(tmp_path / f"out/overlays/{row['path']}.jpg") as drawn:
            assert drawn.size == (36, 36)


def test_what_cannot_be_read_is_named_and_the_rest_is_scored(finished, folder, tmp_path):
    (folder / "good/empty.png").touch()
    (folder / "good/text.png").write_text("no picture")
    options = [f"input={folder}", f"output={tmp_path / 'out'}", "overlays=none"]
    assert main(["predict", str(finished), *options]) == 1
    assert {row["path"] for row in rows_of(tmp_path / "out/errors.csv")} == {"good/empty.png", "good/text.png"}
    assert "the file is empty" in rows_of(tmp_path / "out/errors.csv")[0]["error"]
    readable = [name for name in names(folder) if name not in ("good/empty.png", "good/text.png")]
    assert sorted(row["path"] for row in rows_of(tmp_path / "out/predictions.csv")) == readable
    # mended, only they are scored
    for name in ("empty", "text"):
        shutil.copy(folder / "good/000.png", folder / f"good/{name}.png")
    before = (tmp_path / "out/predictions.csv").read_text()
    assert main(["predict", str(finished), *options]) == 0
    assert (tmp_path / "out/predictions.csv").read_text().startswith(before)
    assert sorted(row["path"] for row in rows_of(tmp_path / "out/predictions.csv")) == names(folder)
    assert not (tmp_path / "out/errors.csv").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_cut_off_anywhere_it_goes_on_and_ends_the_same(kind, finished, folder, tmp_path):
    options = [str(finished), f"input={folder}", f"format={kind}", "batch_size=2"]
    assert main(["predict", *options, f"output={tmp_path / 'whole'}"]) == 0
    whole = (tmp_path / f"whole/predictions.{kind}").read_bytes()
    for length in (0, 3, len(whole) // 2, len(whole) - 1, len(whole)):
        cut = tmp_path / f"cut{length}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / f"predictions.{kind}").write_bytes(whole[:length])
        assert main(["predict", *options, f"output={cut}"]) == 0
        again = (cut / f"predictions.{kind}").read_bytes()
        assert rows(again, kind).keys() == rows(whole, kind).keys()
        for name, score in rows(again, kind).items():
            assert score == pytest.approx(rows(whole, kind)[name], rel=1e-6)
        assert again.startswith(whole[: whole[:length].rfind(b"\n") + 1]), "what was complete is left alone"


def rows(content, kind):
    lines = content.decode().splitlines()
    if kind == "jsonl":
        return {row["path"]: row["score"] for row in map(json.loads, lines)}
    found = list(csv.DictReader(lines))
    assert len(found) == len({row["path"] for row in found}), "no picture stands twice"
    return {row["path"]: float(row["score"]) for row in found}


def test_a_folder_of_other_predictions_is_left_alone(finished, folder, tmp_path, capsys):
    options = ["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}"]
    assert main(options) == 0
    before = (tmp_path / "out/predictions.csv").read_text()
    assert main([*options, "threshold=0"]) == 2
    assert "made otherwise (threshold=" in capsys.readouterr().err
    assert (tmp_path / "out/predictions.csv").read_text() == before
    assert main([*options, "threshold=0", "force=true"]) == 0
    assert {row["verdict"] for row in rows_of(tmp_path / "out/predictions.csv")} == {"defective"}
    (tmp_path / "out/predict.json").write_text("{")
    assert main([*options, "threshold=0"]) == 2
    assert "force=true" in capsys.readouterr().err
    (tmp_path / "out/predict.json").unlink()
    assert main(options) == 2
    assert "nothing says how it was made" in capsys.readouterr().err


def test_predictions_of_another_training_are_not_gone_on_with(finished, folder, tmp_path, capsys):
    """Another seed has the same configuration, and the same threshold if one is given; its weights are others."""
    options = [f"input={folder}", f"output={tmp_path / 'out'}", "threshold=0.1"]
    assert main(["predict", str(finished), *options]) == 0
    other = shutil.copytree(finished, tmp_path / "other")
    checkpoint = torch.load(other / "checkpoints/last.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(0.1)
    torch.save(checkpoint, other / "checkpoints/last.ckpt")
    assert main(["predict", str(other), *options]) == 2
    assert "made otherwise (weights=" in capsys.readouterr().err
    moved = shutil.move(finished, tmp_path / "moved")
    assert main(["predict", str(moved), *options]) == 0, "the same model in another place"


def test_a_picture_smaller_than_the_region_is_named_and_the_rest_is_scored(finished, folder, tmp_path):
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(config.replace("  roi: null", "  roi: [4, 4, 30, 30]"))
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "good/small.png")
    assert main(["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}"]) == 1
    (row,) = rows_of(tmp_path / "out/errors.csv")
    assert row["path"] == "good/small.png"
    assert "small.png: the image has 20x20 pixels" in row["error"]
    assert len(rows_of(tmp_path / "out/predictions.csv")) == 7


def test_old_overlays_go_with_old_predictions(finished, folder, tmp_path):
    options = ["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}"]
    assert main([*options, "threshold=-1"]) == 0
    assert len(list((tmp_path / "out/overlays").rglob("*.jpg"))) == 7
    assert main([*options, "threshold=100", "force=true"]) == 0
    assert not (tmp_path / "out/overlays").exists()


def test_an_output_around_the_input_is_no_trap(finished, folder, tmp_path):
    assert main(["predict", str(finished), f"input={folder}", f"output={folder.parent}"]) == 0
    assert len(rows_of(folder.parent / "predictions.csv")) == 7


def test_a_name_with_a_line_break_is_no_trap(finished, folder, tmp_path):
    shutil.move(folder / "good/000.png", folder / "good/0\n\n0.png")
    options = [
        "predict",
        str(finished),
        f"input={folder}",
        f"output={tmp_path / 'out'}",
        "overlays=all",
        "batch_size=1",
    ]
    assert main(options) == 0
    whole = (tmp_path / "out/predictions.csv").read_bytes()
    cut = whole.index(b"0\n\n0.png") + 2
    (tmp_path / "out/predictions.csv").write_bytes(whole[:cut])
    assert main(options) == 0
    assert (tmp_path / "out/predictions.csv").read_bytes() == whole


@pytest.mark.parametrize(("old", "new"), [(",normal,", ",NORMAL,"), (",", ";")])
def test_a_table_that_somebody_changed_is_left_alone(old, new, finished, folder, tmp_path, capsys):
    options = ["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}", "threshold=100"]
    assert main(options) == 0
    table = tmp_path / "out/predictions.csv"
    table.write_text(table.read_text().replace(old, new, 1 if new == ",NORMAL," else -1))
    before = table.read_text()
    assert main(options) == 2
    assert "was changed" in capsys.readouterr().err
    assert table.read_text() == before


def test_another_checkpoint_has_another_threshold(finished, caplog):
    shutil.copy(finished / "checkpoints/last.ckpt", finished / "checkpoints/best.ckpt")
    assert load(finished, device="cpu").threshold is not None
    assert load(finished, device="cpu", checkpoint="best").threshold is None
    assert "checkpoint=best` finds one" in caplog.text
    (finished / "evaluate-best").mkdir()
    (finished / "evaluate-best/metrics.json").write_text('{"status": "finished", "metrics": {"threshold": 0.25}}')
    assert load(finished, device="cpu", checkpoint="best").threshold == 0.25


def test_two_at_once_do_not_write_over_each_other(finished, folder, tmp_path):
    with hold(tmp_path / "out"), pytest.raises(RunBusyError):
        predict.main([f"run={finished}", f"input={folder}", f"output={tmp_path / 'out'}"])


def test_what_input_may_be(folder, tmp_path):
    out = folder / "good/out"
    every = names(folder)
    assert [p.name for p in find_pictures(str(folder), out)] == every
    assert [p.name for p in find_pictures(f"{folder}/*/*.png", out)] == every
    assert [p.name for p in find_pictures(f"{folder}/**/00*.png", out)] == every[:5]
    assert [p.name for p in find_pictures(str(folder / "good/001.png"), out)] == ["001.png"]
    (folder / "list.txt").write_text(f"good/001.png\n\n{folder}/spot/040.png\n/elsewhere/missing.png\n")
    assert [p.name for p in find_pictures(str(folder / "list.txt"), out)] == [
        "good/001.png", "spot/040.png", "/elsewhere/missing.png",
    ]  # fmt: skip
    (out / "overlays").mkdir(parents=True)
    shutil.copy(folder / "good/001.png", out / "overlays/001.png")
    assert [p.name for p in find_pictures(str(folder), out)] == every, "its own output is no input"
    for wrong in ("nowhere", f"{folder}/*.webp", str(tmp_path / "nothing")):
        (tmp_path / "nothing").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="input="):
            find_pictures(wrong, out)


def test_an_overlay_stays_below_its_folder():
    assert predict._overlay_name("/a/../../b.png").as_posix() == "a/_/_/b.png.jpg"
    assert predict._overlay_name("a/b.png").as_posix() == "a/b.png.jpg"
    long = predict._overlay_name(f"a/{'ü' * 120}.png").name
    assert len(long.encode()) < 250
    assert long != predict._overlay_name(f"a/{'ü' * 121}.png").name


def test_paths_arrays_and_pillow_images_are_one(finished, pictures):
    detector = load(finished, device="cpu")
    path = pictures / "spot/040.png"
    with Image.open(path) as image:
        given = [
            path,
            str(path),
            image,
            np.asarray(image),
            np.asarray(image.convert("RGBA")),
            np.asarray(image)[..., None],
        ]
        found = list(detector.predict_all(given))
    assert len({result.score for result in found}) <= 2  # batches differ by rounding
    assert max(abs(result.score - found[0].score) for result in found) < 1e-6 * abs(found[0].score)
    assert found[0].anomaly_map.shape == (36, 36)
    assert found[0].reconstruction.shape == (32, 32, 3)
    assert found[0].is_defective is (found[0].score > detector.threshold)
    assert found[0].scores[detector.primary_score] == found[0].score
    one = detector.predict(path)
    assert one.score == pytest.approx(found[0].score, rel=1e-6)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((4, 4), np.float32), "of uint8"),
        (np.zeros((4, 4), int), "not of int64: convert it first"),
        (np.zeros((4, 4, 2), np.uint8), "has to be an array"),
        (np.zeros((0, 4), np.uint8), "has to be an array"),
        ("nowhere.png", "cannot be opened"),
    ],
)
def test_what_is_no_picture_is_refused(finished, image, told):
    with pytest.raises(DataError, match=told):
        load(finished, device="cpu").predict(image)


def test_what_cannot_be_loaded_says_so(finished, tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        load(tmp_path)
    (finished / "threshold.json").write_text('{"threshold": 0.25}')
    assert load(finished).threshold == 0.25
    (finished / "threshold.json").write_text("{}")
    with pytest.raises(RunError, match=r"threshold\.json"):
        load(finished)
    (finished / "metrics.json").write_text('{"status": "failed"}')
    with pytest.raises(RunError, match="is failed, not finished"):
        load(finished)


def test_every_option_is_checked(finished, folder, tmp_path, capsys):
    base = ["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}"]
    for wrong in (
        *("format=xml", "overlays=some", "threshold=high", "threshold=nan", "threshold=inf", "batch_size=x"),
        *("batch_size=0", "batch_size=-1", "trainer.accelerator=abacus"),
    ):
        assert main([*base, wrong]) == 2
        assert wrong.partition("=")[0].rpartition(".")[2] in capsys.readouterr().err
    assert compose("predict", ["run=a", "input=b", "output=c"])["overlays"] == "defective"


def test_linked_folders_are_looked_into_and_nothing_is_passed_over_in_silence(finished, folder, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/line1").symlink_to(folder)
    (tmp_path / "in/again").symlink_to(tmp_path / "in")  # leads back up
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/old.gif").write_bytes(b"GIF89a")
    command = ["predict", str(finished), f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert main(command) == 1
    (error,) = rows_of(tmp_path / "out/errors.csv")
    assert error["path"] == "gone.png"
    scored = [row["path"] for row in rows_of(tmp_path / "out/predictions.csv")]
    assert sorted(scored) == [f"line1/{name}" for name in names(folder)]
    assert "1 other files are no pictures and passed over (1 .gif)" in caplog.text


def test_an_output_that_cannot_be_written_is_named(finished, folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlays").write_text("a file")
    command = ["predict", str(finished), f"input={folder}", f"output={tmp_path / 'out'}", "overlays=all"]
    assert main(command) == 2
    assert "overlays" in capsys.readouterr().err
    assert (
        main(["predict", str(finished), f"input={folder}", f"output={tmp_path / 'o'}", "trainer.accelerator=tpu"]) == 2
    )
    assert "does not work with trainer.accelerator=tpu" in capsys.readouterr().err
    for kind in ("torch", "onnx"):
        place = tmp_path / f"out/overlays/x{'.pt2' if kind == 'torch' else '.onnx'}"
        assert main(["export", str(finished), f"format={kind}", f"output={place}"]) == 2
        assert "cannot be written" in capsys.readouterr().err
