"""Part `precision`: fp32 against bf16, with and without channels_last, in speed and in AUROC."""

from __future__ import annotations

import copy
import gc
from statistics import median
from typing import Any

import torch
from rich.table import Table
from sklearn.metrics import roc_auc_score

from anomaly_lab.config import Config
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.hardware import has_fast_bf16
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.trainer import make_trainer
from benchmarks.loops import InMemory, Window, train_ours
from benchmarks.setting import Setting
from benchmarks.step import WARM

VARIANTS = {  # name: (precision, memory format of the weights); the loader's images are in channels_last
    "fp32": ("32-true", torch.contiguous_format),
    "fp32, channels_last": ("32-true", torch.channels_last),
    "bf16": ("bf16-mixed", torch.contiguous_format),
    "bf16, channels_last": ("bf16-mixed", torch.channels_last),
}


def measure(setting: Setting) -> dict[str, Any]:
    """Time each variant's step in turn and train it for a few epochs; only where bf16 is expected to pay."""
    if not has_fast_bf16():
        return {"skipped": "there is no GPU, and the CPU has neither AMX nor AVX-512 BF16"}
    data = DefectDataModule(setting.plan, setting.config["seed"])
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    probe = Window(WARM, 1)
    config, model = _variant(setting, "fp32")
    seconds = train_ours(config, model, InMemory(batch, probe.total), probe, setting.folder).took.wall
    window = Window(WARM, max(1, round(setting.seconds / seconds)))
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repeat in range(setting.repeats):
        for name in list(VARIANTS)[:: -1 if repeat % 2 else 1]:
            config, model = _variant(setting, name)
            gc.collect()
            training = train_ours(config, model, InMemory(batch, window.total), window, setting.folder)
            speeds[name].append(window.steps * setting.batch_size / training.took.wall)
    ratios = {name: median(a / b for a, b in zip(speeds[name], speeds["fp32"], strict=True)) for name in VARIANTS}
    return {
        "epochs": setting.epochs,
        "steps": window.steps,
        "images_per_second": speeds,
        "median": {name: median(values) for name, values in speeds.items()},
        "ratio": ratios,
        "image_auroc": {name: _auroc(setting, data, name) for name in VARIANTS},
    }


def _variant(setting: Setting, name: str) -> tuple[Config, AnomalyModel]:
    precision, memory_format = VARIANTS[name]
    config = copy.deepcopy(setting.config)
    config["trainer"]["precision"] = precision
    return config, setting.model().to(memory_format=memory_format)


def _auroc(setting: Setting, data: DefectDataModule, name: str) -> float:
    config, model = _variant(setting, name)
    trainer = make_trainer(
        config,
        max_epochs=setting.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, data.train_dataloader())
    model.evaluation.start(data.tiling, data.frames("test"))
    trainer.test(model, data.test_dataloader(), verbose=False)
    found = model.evaluation.compute()
    return float(roc_auc_score(found.label, found.columns[model.primary_score]))


def table(result: dict[str, Any]) -> Table | str:
    """Speed and AUROC of each variant, or why there are none."""
    if "skipped" in result:
        return f"fp32 against bf16: not measured, {result['skipped']}."
    shown = Table(
        title="Precision of a training step, the batch in memory",
        title_justify="left",
        caption=f"Medians of {len(result['images_per_second']['fp32'])} interleaved repeats of {result['steps']} "
        f"steps; AUROC on the test images after {result['epochs']} epochs, one seed.",
        caption_justify="left",
    )
    for column in ("precision", "images/s", "of fp32", "test AUROC"):
        shown.add_column(column, justify="left" if column == "precision" else "right")
    for name in VARIANTS:
        values = result["median"][name], result["ratio"][name], result["image_auroc"][name]
        shown.add_row(name, f"{values[0]:.1f}", f"{values[1]:.2f}", f"{values[2]:.4f}")
    return shown
