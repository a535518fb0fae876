"""P1's baselines on the generated dataset, as its recipes train them: three seeds each, about twelve minutes."""

import csv
import json

import numpy as np
import pytest

from anomaly_lab.cli import main

SEEDS = (0, 1, 2)
LEARN = ("ae_l2", "ganomaly", "vae")
DO_NOT = ("ae_ssim", "anogan")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The run directories by way, method and seed, trained and untrained."""
    found = {}
    for way, more in {"trained": [], "untrained": ["trainer.max_epochs=0"]}.items():
        runs = tmp_path_factory.mktemp(way)
        models = ",".join((*LEARN, *DO_NOT))
        sweep = ["-m", f"model={models}", "seed=" + ",".join(map(str, SEEDS)), f"runs_dir={runs}"]
        assert main(["train", "dataset=synthetic", "trainer.estimate=false", *sweep, *more]) == 0
        for path in runs.glob("*/*/*/metrics.json"):
            content = json.loads(path.read_text())
            assert content["status"] == "finished"
            found[way, path.parts[-3], content["seed"]] = path.parent
    return found


def metric(found, way, model, name="image_auroc"):
    """One value for each seed."""
    runs = [found[way, model, seed] for seed in SEEDS]
    return np.array([json.loads((run / "metrics.json").read_text())["metrics"][name] for run in runs])


def on_normal_images(found, model, column):
    """The mean of a column of scores.csv, for each seed."""
    means = []
    for seed in SEEDS:
        with (found["trained", model, seed] / "scores.csv").open(newline="") as file:
            means.append(np.mean([float(row[column]) for row in csv.DictReader(file) if row["label"] == "0"]))
    return np.array(means)


@pytest.mark.slow
@pytest.mark.parametrize("model", LEARN)
def test_training_beats_no_training_and_chance(found, model):
    """By more than twice the spread over seeds."""
    trained, untrained = metric(found, "trained", model), metric(found, "untrained", model)
    print(model, trained.round(3), untrained.round(3))
    assert trained.mean() - untrained.mean() > 2 * max(trained.std(ddof=1), untrained.std(ddof=1))
    assert trained.mean() - 0.5 > 2 * trained.std(ddof=1)


@pytest.mark.slow
def test_ssim_sees_no_defect_in_grain_that_it_does_not_reproduce(found):
    """A finding (experiments/LOG.md): nothing of the grain is matched, so a defect is matched no worse."""
    print("ae_ssim", *(metric(found, way, "ae_ssim").round(3) for way in ("trained", "untrained")))
    dissimilar = on_normal_images(found, "ae_ssim", "mean")
    pixels = metric(found, "trained", "ae_ssim", "pixel_auroc")
    print("1 - SSIM of normal images", dissimilar.round(3), "pixel AUROC", pixels.round(3))
    assert (dissimilar > 0.5).all()
    assert pixels.max() < 0.55


@pytest.mark.slow
def test_anogan_generates_grain_in_other_places(found):
    """A finding (experiments/LOG.md): what its search ends at is farther from a normal image than a smooth picture."""
    print("anogan", *(metric(found, way, "anogan").round(3) for way in ("trained", "untrained")))
    searched, smooth = on_normal_images(found, "anogan", "residual"), on_normal_images(found, "ganomaly", "mean")
    print("residual of normal images", searched.round(4), "of GANomaly's reconstructions", smooth.round(4))
    assert (searched > smooth).all()
