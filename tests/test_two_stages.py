"""Methods of two stages, and of a few labels, from the command line."""

import csv
import json
import logging
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_lab import config, load
from anomaly_lab.cli import main
from anomaly_lab.config import compose, conf_dir
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.options import SYNTHETIC_KINDS
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.synthesis import Synthesis
from anomaly_lab.draw import draw_synthesised
from anomaly_lab.errors import ConfigError
from anomaly_lab.jobs import prepare
from anomaly_lab.runs import Run

TINY = [
    "dataset=folder",
    "dataset.image_size=32",
    "dataset.batch_size=4",
    "dataset.steps_per_epoch=2",
    "dataset.test_fraction=0.25",
    "dataset.val_fraction=0.2",
    "dataset.label_reserve=3",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.estimate=false",
]
SMALL = {
    "ae_unet": ["model.width=4", "model.latent_dim=4"],
    "ae": ["model.latent_dim=4"],
    "pca": ["model.latent_dim=4"],
}


@pytest.fixture
def train(pictures, tmp_path):
    def run(model, *overrides):
        small = SMALL.get(model, ["model.width=4"])
        return main(
            [
                "train",
                *TINY,
                f"model={model}",
                *small,
                f"dataset.root={pictures}",
                f"runs_dir={tmp_path}/runs",
                *overrides,
            ]
        )

    return run


@pytest.fixture
def runs(tmp_path):
    def found(model):
        return sorted((tmp_path / "runs").glob(f"*/{model}/*-s*"))

    return found


def content(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize("model", ["unet", "ae", "pca", "pi_model", "mean_teacher"])
def test_one_command_leaves_pixel_metrics(model, train, runs):
    assert train(model) == 0
    (run,) = runs(model)
    metrics = content(run)["metrics"]
    wanted = ["pixel_miou", "pixel_iou_defect", "pixel_mae", "pixel_auroc", "pixel_aupro", "train_pixel_miou"]
    assert all(metrics[name] is not None for name in wanted), {name: metrics[name] for name in wanted}
    assert content(run)["seconds"]["per_image"] > 0
    with (run / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tp, fp, fn, tn = (sum(int(row[name]) for row in rows) for name in ("TP", "FP", "FN", "TN"))
    assert metrics["pixel_iou_defect"] == pytest.approx(tp / (tp + fp + fn))
    assert metrics["pixel_miou"] == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2)
    assert metrics["pixel_mae"] == pytest.approx((fp + fn) / len(rows))
    assert (run / "figures/segmentations.png").stat().st_size > 0


def test_pixel_counts_are_those_of_the_stored_maps(train, runs):
    assert train("ae", "predictions=all") == 0
    (run,) = runs("ae")
    gallery = np.load(run / "predictions/gallery.npz")
    threshold = content(run)["metrics"]["pixel_threshold"]
    with (run / "scores.csv").open(newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == gallery["index"].tolist()
    for index, found, mask in zip(gallery["index"], gallery["anomaly_map"], gallery["mask"], strict=True):
        flagged, truth = found >= np.float32(threshold), mask == 1
        by_hand = [(flagged & truth).sum(), (flagged & (mask == 0)).sum(), (~flagged & truth).sum()]
        counted = [int(rows[index][name]) for name in ("TP", "FP", "FN")]
        assert np.abs(np.subtract(by_hand, counted)).max() <= 1  # convolutions differ by 1e-8 between batch sizes


def test_the_threshold_of_a_residual_comes_from_the_labelled_images(train, runs):
    assert train("ae") == 0
    (run,) = runs("ae")
    metrics = content(run)["metrics"]
    assert (run / "scores-labelled.csv").exists()
    with (run / "scores-labelled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tp, fp, fn, tn = (sum(int(row[name]) for row in rows) for name in ("TP", "FP", "FN", "TN"))
    assert tp / (tp + fn) - fp / (fp + tn) > 0
    assert metrics["pixel_threshold"] != metrics["pixel_threshold_oracle"]


def test_the_first_stage_is_an_ordinary_run_and_is_found_again(train, runs, caplog):
    caplog.set_level(logging.INFO, logger="anomaly_lab")
    assert train("ae_unet") == 0
    assert "Stage 1 of 2" in caplog.text
    (first,) = runs("ae")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file() and path.name != ".lock"}
    for overrides in (["model.inputs=difference"], ["dataset.labelled_per_type=2"], ["model.width=8"]):
        caplog.clear()
        assert train("ae_unet", *overrides) == 0
        assert f"Stage 1: reusing {first}" in caplog.text
    assert train("ae") == 0  # the same command for the first stage alone: finished
    assert runs("ae") == [first]
    assert len(runs("ae_unet")) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    weights = torch.load(first / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    inside = torch.load(runs("ae_unet")[0] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, inside[f"autoencoder.{name}"]) for name, value in weights.items())


def test_an_option_of_the_first_stage_makes_another_one(train, runs):
    assert train("ae_unet", "model.stage1.loss=ssim", "trainer.max_epochs=1") == 0
    (first,) = runs("ae")
    assert Run(first).config()["model"]["loss"] == "ssim"
    assert train("ae", "model.loss=ssim", "trainer.max_epochs=1") == 0
    assert runs("ae") == [first]
    assert train("ae_unet", "trainer.max_epochs=1") == 0
    assert len(runs("ae")) == len(runs("ae_unet")) == 2


def test_a_finished_run_needs_no_first_stage(train, runs, caplog):
    import shutil

    assert train("ae_unet") == 0
    shutil.rmtree(runs("ae")[0])
    caplog.set_level(logging.INFO, logger="anomaly_lab")
    assert train("ae_unet") == 0
    assert "nothing was trained" in caplog.text
    assert runs("ae") == []
    assert main(["evaluate", f"run={runs('ae_unet')[0]}"]) == 0


def test_a_sweep_trains_the_first_stage_once(train, runs):
    assert train("ae_unet", "-m", "model.inputs=image,difference", "seed=0,1", "dataset.split_seed=${seed}") == 0
    assert len(runs("ae_unet")) == 4
    assert len(runs("ae")) == 2
    assert sorted(Run(run).split().options.split_seed for run in runs("ae")) == [0, 1]


def test_a_given_first_stage_is_used_or_refused_by_name(train, runs, caplog):
    assert train("ae", "model.loss=ssim") == 0
    (first,) = runs("ae")
    caplog.set_level(logging.INFO, logger="anomaly_lab")
    assert train("ae_unet", f"model.autoencoder={first}") == 0
    assert f"Stage 1: reusing {first}" in caplog.text
    assert runs("ae") == [first]
    for override, why in (
        ("dataset.image_size=48", "dataset.image_size=32, here it is 48"),
        ("dataset.split_seed=5", "parts that are tested here"),
    ):
        caplog.clear()
        assert train("ae_unet", f"model.autoencoder={first}", override) == 1
        assert why in caplog.text
        assert str(first) in caplog.text
    caplog.clear()
    assert train("ae_unet", f"model.autoencoder={runs('ae_unet')[0]}") == 1
    assert "is a run of ae_unet" in caplog.text
    caplog.clear()
    assert train("ae_unet", "model.autoencoder=/nowhere") == 1
    assert "/nowhere is no run directory" in caplog.text


def test_a_failing_first_stage_is_named(train, runs, caplog):
    assert train("ae_unet", "model.stage1.optimizer.lr=1e30") == 1
    assert "Stage 1 failed" in caplog.text
    assert content(runs("ae_unet")[0])["status"] == "failed"
    assert content(runs("ae")[0])["status"] == "failed"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["dataset.labelled_per_type=0"], "labelled_per_type"),
        (["dataset.protocol=normal_only", "dataset.labels=real"], "few_labelled"),
        (["dataset.image_size=40"], "40 is no multiple of 16"),
        (["model.width=0"], "model.width=0"),
        (["dataset.learns_from=[labels]"], "Did you mean 'labelled'"),
        (["dataset.tile_overlap=32"], "tile_overlap=32"),
        (["dataset.full_size=16"], "full_size=16"),
        (["dataset.rotate=200"], "rotate=200"),
        (["dataset.flip=up"], "flip='up'"),
    ],
)
def test_what_cannot_work_is_named(overrides, why, train, caplog):
    assert train("unet", *overrides) != 0
    assert why in caplog.text


def test_a_tiled_run_scores_each_image_once(train, runs, pictures):
    assert train("unet", "dataset.full_size=64", "dataset.tile_overlap=8", "predictions=all") == 0
    (run,) = runs("unet")
    gallery = np.load(run / "predictions/gallery.npz")
    assert gallery["image"].shape[1:] == (64, 64, 3)
    assert gallery["anomaly_map"].shape[1:] == (64, 64)
    rows = (run / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + len(Run(run).split().lists["test"])
    with (run / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert sum(int(row[name]) for name in ("TP", "FP", "FN", "TN")) == 64 * 64
            place = gallery["index"].tolist().index(int(row["index"]))
            found = load(run, device="cpu").predict(pictures / row["path"])
            assert found.score == pytest.approx(float(row["score"]), rel=1e-6)
            assert found.anomaly_map.shape == (36, 36)
            assert float(row["max"]) == pytest.approx(gallery["anomaly_map"][place].max(), rel=1e-4)


def test_normal_images_alone_train_a_segmenter_and_show_what_it_is_taught(train, runs, pictures, tmp_path, caplog):
    shutil.copytree(pictures / "good", tmp_path / "normal" / "good")
    caplog.set_level(logging.INFO)
    assert train("ae_unet", f"dataset.root={tmp_path / 'normal'}", "dataset.synthetic_kinds=[crack,spots]") == 0
    (run,) = runs("ae_unet")
    shown = run / "figures" / "synthesised.png"
    assert f"Defects to learn from: {shown}" in caplog.text
    assert "recipe=normal_only_ae_unet" in caplog.text
    with Image.open(shown) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
    metrics = content(run)["metrics"]
    assert 0 <= metrics["val_image_auroc"] <= 1
    assert metrics["threshold"] is not None
    assert metrics["image_auroc"] is None


def test_a_recipe_for_both_stages_is_named_once(train, runs, pictures, tmp_path, caplog):
    shutil.copytree(pictures / "good", tmp_path / "normal" / "good")
    caplog.set_level(logging.INFO)
    assert train("ae_unet", f"dataset.root={tmp_path / 'normal'}", "recipe=normal_only_ae_unet") == 0
    for model, (score, average) in {"ae_unet": ("top", 0.99), "ae": (None, None)}.items():
        (run,) = runs(model)
        trained = Run(run).config()["model"]
        assert (trained["input_norm"], trained["score"], trained["weight_average"]) == ("per_image", score, average)
        assert trained["optimizer"]["lr"] == 0.001
    assert "has settings for that" not in caplog.text  # it is taken already


def test_the_recipe_s_two_stages_fit_and_a_recipe_for_one_is_refused_before_any_training(pictures):
    both = [compose("train", [f"model={name}", f"recipe=normal_only_{name}"]) for name in ("ae", "ae_unet")]
    assert len({config["dataset"]["image_size"] for config in both}) == 1
    command = ["model=ae_unet", "dataset=folder", f"dataset.root={pictures}", "dataset.val_fraction=0.2"]
    for recipe in ("recipe=normal_only_ae_unet", "recipe='normal_only_ae_unet'"):
        stage1 = prepare(compose("train", [*command, recipe]), [*command, recipe]).stage1
        assert stage1.config["model"]["input_norm"] == "per_image"
    alone = [*command, "recipe=normal_only_unet"]
    with pytest.raises(ConfigError, match="image_size is 128, and 256 for the first stage"):
        prepare(compose("train", alone), alone)


@pytest.fixture
def mine(pictures, tmp_path, monkeypatch):
    """A place for a recipe of one's own, and a command that takes it."""
    shutil.copytree(conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(config, "conf_dir", lambda: tmp_path / "conf")
    command = ["model=ae_unet", "dataset=folder", f"dataset.root={pictures}", "dataset.val_fraction=0.2"]
    return tmp_path / "conf" / "recipe" / "mine_ae_unet.yaml", [*command, "recipe=mine_ae_unet"]


def test_what_a_recipe_says_of_the_first_stage_in_vain_is_refused(mine):
    recipe, command = mine
    for text, key in (("stage1: {loss: ssim}", "loss=ssim"), ("latent_dim: 8", "latent_dim=8")):
        recipe.write_text(f"# @package _global_\nmodel: {{{text}}}\n")
        with pytest.raises(ConfigError, match=f"model.stage1.{key}, and the first stage gets"):
            prepare(compose("train", command), command)
    given = [*command, "model.latent_dim=4"]
    assert prepare(compose("train", given), given).stage1.config["model"]["latent_dim"] == 4
    own = recipe.parent / "mine_ae.yaml"
    own.write_text("# @package _global_\nmodel: {latent_dim: 8}\n")
    assert prepare(compose("train", command), command).stage1.config["model"]["latent_dim"] == 8
    sgd = "# @package _global_\nmodel: {optimizer: {_target_: torch.optim.SGD, momentum: 0.9}}\n"
    recipe.write_text(sgd)
    given = [*command, "model.optimizer.momentum=0.5"]  # an option that is there with the recipe alone
    prepare(compose("train", given), given)


def test_a_first_stage_does_not_learn_from_what_the_second_is_tested_on(mine):
    recipe, command = mine
    command.append("dataset.image_size=32")
    for text, said in (("split_seed: 3", "parts that are tested here"), ("full_size: 64", "dataset.full_size=32")):
        recipe.write_text(f"# @package _global_\ndataset: {{{text}}}\n")
        with pytest.raises(ConfigError, match=said):
            prepare(compose("train", command), command)


def test_labels_that_are_not_there_are_missed_before_the_first_stage_is_trained(pictures):
    command = ["model=ae_unet", "dataset=folder", f"dataset.root={pictures}", "dataset.protocol=normal_only"]
    command += ["dataset.val_fraction=0.2", "dataset.labels=both"]
    with pytest.raises(ConfigError, match="needs labelled defects"):
        prepare(compose("train", command), command)


def test_what_learns_from_no_labels_is_taught_none(train, runs):
    assert train("ae", "dataset.protocol=normal_only", "dataset.labels=both") == 0
    (run,) = runs("ae")
    assert not (run / "figures/synthesised.png").exists()


def test_a_row_of_the_figure_is_of_one_kind(pictures, monkeypatch):
    config = compose("train", [*TINY, "model=unet", f"dataset.root={pictures}", "dataset.labels=synthetic"])
    data = DefectDataModule(make_plan(config["dataset"]))
    data.prepare()
    drawn = []
    recorded = Synthesis.__call__
    monkeypatch.setattr(
        Synthesis, "__call__", lambda self, *given: (drawn.append(self.kinds), recorded(self, *given))[1]
    )
    words = {text.get_text() for axes in draw_synthesised(data).axes for text in axes.texts}
    assert set(SYNTHETIC_KINDS) <= words
    assert drawn == [(kind,) for kind in SYNTHETIC_KINDS for _ in range(4)]


def test_given_first_stages_are_told_apart_by_what_they_are(train, runs, tmp_path):
    assert train("ae") == 0
    assert train("ae", "trainer.max_epochs=1") == 0
    for name, run in zip(("a", "b"), runs("ae"), strict=True):
        (tmp_path / name).mkdir()
        run.rename(tmp_path / name / "ae")
        assert train("ae_unet", f"model.autoencoder={tmp_path / name / 'ae'}") == 0
    assert len(runs("ae_unet")) == 2


def test_a_given_first_stage_that_learnt_from_tested_images_is_refused(train, runs, caplog):
    learnt = ["dataset.learns_from=all", "dataset.labelled_per_type=3", "dataset.label_reserve=3"]
    assert train("ae", *learnt) == 0
    (first,) = runs("ae")
    assert train("ae_unet", f"model.autoencoder={first}", "dataset.label_reserve=1") == 1
    assert "parts that are tested here" in caplog.text


def test_the_first_stage_has_the_labels_it_learns_from(train, runs):
    assert train("ae_unet", "model.stage1.learns_from=[all]", "dataset.labelled_per_type=3") == 0
    (first,) = runs("ae")
    assert Run(first).split().options.labelled_per_type == 3


@pytest.mark.slow  # test_crashes.py kills more often
@pytest.mark.parametrize("model", ["mean_teacher", "ae_unet"])
def test_a_killed_training_ends_with_the_same_weights_bit_for_bit(model, train, runs, pictures, tmp_path):
    long = ["trainer.max_epochs=12", "dataset.steps_per_epoch=3", "model.norm=batch", "model.scheduler.step_size=2"]
    command = [
        "train",
        *TINY,
        f"model={model}",
        *SMALL.get(model, ["model.width=4"]),
        f"dataset.root={pictures}",
        *long,
    ]
    assert main([*command, f"runs_dir={tmp_path}/undisturbed"]) == 0
    killed_runs = [sys.executable, "-m", "anomaly_lab", *command, f"runs_dir={tmp_path}/runs"]
    with subprocess.Popen(killed_runs, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as training:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not any(_epochs(run) >= 3 for run in runs(model)):
            time.sleep(0.05)
        training.send_signal(signal.SIGKILL)
    (run,) = runs(model)
    assert 3 <= _epochs(run) < 12, "the training was to be killed in the middle"
    assert Run(run).status() == "interrupted"
    assert train(model, *long) == 0
    (other,) = (tmp_path / "undisturbed").glob(f"*/{model}/*-s*")
    ours, theirs = (
        torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (run, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _epochs(run):
    curves = run / "curves.csv"
    return len(curves.read_text().splitlines()) - 1 if curves.exists() else 0


def test_a_given_first_stage_of_other_images_is_refused(train, runs, pictures, tmp_path, caplog):
    assert train("ae") == 0
    (first,) = runs("ae")
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    with Image.open(other / "good/000.png") as picture:
        changed = np.array(picture)
    changed[0, 0] ^= 1  # of the same name, and likely of the same size
    Image.fromarray(changed).save(other / "good/000.png")
    assert train("ae_unet", f"model.autoencoder={first}", f"dataset.root={other}") == 1
    assert "was trained on other images than those under" in caplog.text


@pytest.mark.parametrize("text", ["model.stage1={latent_dim:8}", "~model.stage1.scheduler"])
def test_options_of_the_first_stage_are_set_one_by_one(text, train, caplog):
    assert train("ae_unet", text) != 0
    assert "are set one by one" in caplog.text


def test_what_cannot_work_in_the_second_stage_is_said_before_the_first(train, runs, caplog):
    assert train("ae_unet", "model.inputs=diff") == 1
    assert "model.inputs='diff'" in caplog.text
    assert not any((run / "checkpoints").exists() for run in runs("ae"))


@pytest.mark.parametrize("model", ["ae_unet", "pca", "pi_model"])
def test_all_of_it_runs_in_bf16(model, train, runs):
    assert train(model, "trainer.precision=bf16-true") == 0
    (run,) = runs(model)
    assert content(run)["metrics"]["pixel_auroc"] is not None


def test_masks_without_a_defect_are_named_before_the_training(train, pictures, tmp_path, caplog):
    root = tmp_path / "empty"
    shutil.copytree(pictures, root)
    for mask in (root / "masks/spot").iterdir():
        Image.new("L", (36, 36)).save(mask)
    assert train("unet", f"dataset.root={root}") == 1
    assert "no mask to learn from has a defective pixel" in caplog.text
