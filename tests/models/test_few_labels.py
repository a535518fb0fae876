"""What a few labels are worth on the generated dataset: trainings of three seeds, about eight minutes."""

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


def metrics_of(runs):
    """The metrics of each run below a directory, by model and seed."""
    found = {}
    for path in runs.glob("*/*/*/metrics.json"):
        content = json.loads(path.read_text())
        assert content["status"] == "finished"
        found[path.parts[-3], content["seed"]] = content["metrics"]
    return found


@pytest.mark.slow
def test_a_few_labels_beat_none(tmp_path):
    seeds = "seed=" + ",".join(map(str, SEEDS))
    assert main(["train", "-m", "model=unet,ae_unet", *FEW, *UNET, seeds, f"runs_dir={tmp_path}"]) == 0
    # its first stage is the `ae` to compare with
    assert main(["train", "-m", "model=pca", *FEW, seeds, f"runs_dir={tmp_path}"]) == 0
    found = metrics_of(tmp_path)
    iou = {name: [found[name, seed]["pixel_iou_defect"] for seed in SEEDS] for name in ("unet", "ae_unet", "ae", "pca")}
    print({name: np.round(values, 3).tolist() for name, values in iou.items()})
    for labelled in ("unet", "ae_unet"):
        for unlabelled in ("ae", "pca"):
            gain = np.subtract(iou[labelled], iou[unlabelled])
            assert (gain > 0).all(), f"{labelled} against {unlabelled}"
            assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain)), f"{labelled} against {unlabelled}"


@pytest.mark.slow
def test_masks_of_other_images_teach_no_more_than_where_defects_lie(tmp_path):
    """The mean of the training masks says where; the masks of the images themselves say more."""
    found = {"own": [], "others": [], "mean": []}
    for seed in SEEDS:
        config = compose("train", ["model=unet", *FEW, *UNET, f"seed={seed}"])
        plan = make_plan(config["dataset"])
        labelled = plan.split.lists["labelled"]
        defective = [record for record in labelled if record.label]
        rest = [record for record in labelled if not record.label]
        turned = [replace(r, mask=other.mask) for r, other in zip(defective, np.roll(defective, 1), strict=True)]
        wrong = replace(plan, split=replace(plan.split, lists=plan.split.lists | {"labelled": (*turned, *rest)}))
        for name, one in (("own", plan), ("others", wrong)):
            run = Run(tmp_path / f"{name}-{seed}")
            run.start(config, one)
            found[name].append(fit(config, one, run)["metrics"])
        found["mean"].append(_mean_mask(config, plan))
    auroc, iou = (
        {name: np.array([one[metric] for one in metrics]) for name, metrics in found.items()}
        for metric in ("pixel_auroc", "pixel_iou_defect_oracle")
    )
    for values in (auroc, iou):
        print({name: np.round(of, 3).tolist() for name, of in values.items()})
        spread = max(of.std(ddof=1) for of in values.values())
        assert values["others"].mean() < values["mean"].mean() + 2 * spread
        assert values["own"].mean() > values["others"].mean() + 2 * spread, "the comparison would show it"


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
