"""What synthesised defects teach, on the generated dataset, whose own are painted by other code: about five minutes."""

import json

import numpy as np
import pytest

from anomaly_lab.cli import main

SEEDS = (0, 1, 2)
NORMAL = ["dataset=synthetic", "dataset.image_size=64", "dataset.protocol=normal_only", "trainer.estimate=false"]
UNET = ["recipe=synthetic_unet", "model.width=8", "model.max_epochs=40", "dataset.labels=synthetic"]


@pytest.mark.slow
def test_synthesised_defects_beat_a_reconstruction(tmp_path):
    sweep = ["-m", *NORMAL, "seed=" + ",".join(map(str, SEEDS)), f"runs_dir={tmp_path}"]
    assert main(["train", "model=unet", *UNET, *sweep]) == 0
    assert main(["train", "model=ae", "recipe=synthetic_ae", *sweep]) == 0
    assert main(["train", "model=pca", *sweep]) == 0
    found = {}
    for path in tmp_path.glob("*/*/*/metrics.json"):
        content = json.loads(path.read_text())
        assert content["status"] == "finished"
        found[path.parts[-3], content["seed"]] = content["metrics"]
    for metric in ("pixel_auroc", "pixel_aupro"):
        values = {name: np.array([found[name, seed][metric] for seed in SEEDS]) for name in ("unet", "ae", "pca")}
        print(metric, {name: np.round(each, 3).tolist() for name, each in values.items()})
        for name in ("ae", "pca"):
            gain = values["unet"] - values[name]
            assert gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(len(gain)), name
            assert gain.min() > 0.1, name
