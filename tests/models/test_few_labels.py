"""What a few labels are worth on the generated dataset: trainings of three seeds, about seven minutes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.plan import make_plan
from anomaly_lab.fit import fit
from anomaly_lab.metrics.pixel import pixel_metrics
from anomaly_lab.metrics.pixel_tally import PixelTally
from anomaly_lab.runs import Run

SEEDS = (0, 1, 2)
FEW = ["dataset=synthetic", "dataset.image_size=64", "dataset.labelled_per_type=5", "trainer.estimate=false"]
UNET = ["recipe=synthetic_ae_unet", "model.width=8", "model.max_epochs=40"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The metrics of all methods, by name and seed; the first stage of `ae_unet` is the `ae` to compare with."""
    runs = tmp_path_factory.mktemp("runs")
    sweep = ["-m", *FEW, "seed=" + ",".join(map(str, SEEDS)), f"runs_dir={runs}"]
    assert main(["train", "model=unet,ae_unet", *UNET, *sweep]) == 0
    assert main(["train", "model=pca", *sweep]) == 0
    found = {}
    for path in runs.glob("*/*/*/metrics.json"):
        content = json.loads(path.read_text())
        assert content["status"] == "finished"
        found[path.parts[-3], content["seed"]] = content["metrics"]
    return found


@pytest.mark.slow
def test_a_few_labels_beat_none(found):
    iou = {name: [found[name, seed]["pixel_iou_defect"] for seed in SEEDS] for name in ("unet", "ae_unet", "ae", "pca")}
    print({name: np.round(values, 3).tolist() for name, values in iou.items()})
    for labelled in ("unet", "ae_unet"):
        for unlabelled in ("ae", "pca"):
            gain = np.subtract(iou[labelled], iou[unlabelled])
            assert (gain > 0).all(), f"{labelled} against {unlabelled}"
            assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)), f"{labelled} against {unlabelled}"


@pytest.mark.slow
def test_masks_of_other_images_teach_no_more_than_where_defects_lie(found, tmp_path):
    """The mean of the training masks says where; the masks of the images themselves say more."""
    metrics = {"own": [found["unet", seed] for seed in SEEDS], "others": [], "mean": []}
    for seed in SEEDS:
        config = compose("train", ["model=unet", *FEW, *UNET, f"seed={seed}"])
        plan = make_plan(config["dataset"])
        labelled = plan.split.lists["labelled"]
        defective = [record for record in labelled if record.label]
        rest = [record for record in labelled if not record.label]
        turned = [replace(r, mask=other.mask) for r, other in zip(defective, np.roll(defective, 1), strict=True)]
        wrong = replace(plan, split=replace(plan.split, lists=plan.split.lists | {"labelled": (*turned, *rest)}))
        run = Run(tmp_path / str(seed))
        run.start(config, wrong)
        metrics["others"].append(fit(config, wrong, run)["metrics"])
        metrics["mean"].append(_mean_mask(config, plan))
    for metric in ("pixel_auroc", "pixel_iou_defect_oracle"):
        own, others, mean = (np.array([one[metric] for one in metrics[name]]) for name in ("own", "others", "mean"))
        print(metric, *(np.round(values, 3).tolist() for values in (own, others, mean)))
        assert others.mean() < mean.mean() + 2 * others.std(ddof=1)
        assert (own > others).all(), "the comparison would show it"


def _mean_mask(config, plan):
    """The metrics of one map for all test images: how often each pixel of the training masks is defective."""
    data = DefectDataModule(plan, config["seed"])
    data.prepare()
    labelled, test = data.dataset("labelled"), data.dataset("test")
    mean = np.mean([labelled.whole(index)[1] == 1 for index in range(len(labelled))], axis=0, dtype=np.float32)
    masks = torch.from_numpy(np.stack([test.whole(index)[1] for index in range(len(test))]))[:, None]
    tally = PixelTally(probability=True)
    tally.update(torch.from_numpy(mean).expand_as(masks), masks)
    return pixel_metrics(tally.compute())[0]
