"""Part `synthesis`: what it costs to put defects onto normal images, beside the training step that waits for them."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.synthesis import DEFECTS, synthesise
from benchmarks.loops import Feed, InMemory, Window, train_ours
from benchmarks.segmenter import OPTIONS
from benchmarks.setting import Setting
from benchmarks.step import WARM

EACH = 20  # images of a kind, in one measurement
WAYS = ("one batch in memory", "normal images", "synthesised", "synthesised by one worker")


def measure(setting: Setting) -> dict[str, Any]:
    """Time a UNet's steps on batches from memory and from loaders, and each kind of defect alone.

    On the generated dataset whatever the other parts look at, at 128x128.
    """
    options = [*OPTIONS, "dataset.protocol=normal_only", "dataset.labels=synthetic", "dataset.synthetic_share=1.0"]
    own = setting.of_its_own(options)
    data = DefectDataModule(own.plan, own.config["seed"])
    data.prepare()
    return {
        "image_size": own.plan.load.image_size,
        "batch_size": own.batch_size,
        "milliseconds": _kinds(data, own.repeats),
        "images_per_second": _loaders(own, data),
    }


def _kinds(data: DefectDataModule, repeats: int) -> dict[str, list[float]]:
    dataset = data.training_dataset("labelled")
    images = [dataset.whole(index)[0] for index in range(2 * EACH)]
    took: dict[str, list[float]] = {kind: [] for kind in DEFECTS}
    for repeat in range(repeats):
        for kind in DEFECTS:
            started = time.perf_counter()
            for number in range(EACH):
                rng = np.random.default_rng((repeat, number))
                synthesise(images[number], images[EACH + number], [kind], rng)
            took[kind].append(1000 * (time.perf_counter() - started) / EACH)
    return took


def _loaders(setting: Setting, data: DefectDataModule) -> dict[str, list[float]]:
    start, load = setting.model(), setting.plan.load

    def feed(**options: Any) -> Feed:
        plan = replace(setting.plan, load=replace(load, **{"num_workers": 0} | options))
        return DefectDataModule(plan, setting.config["seed"]).train_dataloader()  # type: ignore[return-value]

    batch = next(iter(data.train_dataloader()))
    window = Window(WARM, 1)
    once = train_ours(setting.config, start, InMemory(batch, window.total), window, setting.folder).took.wall
    window = Window(WARM, max(1, min(data.steps - WARM, round(setting.seconds / once))))
    unlabelled = {"labels": None, "learns_from": ("unlabelled",)}
    in_turn: list[Feed] = [InMemory(batch, window.total), feed(**unlabelled), feed(), feed(num_workers=1)]
    feeds = dict(zip(WAYS, in_turn, strict=True))
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(setting.repeats):
        for way in WAYS:
            gc.collect()
            took = train_ours(setting.config, start, feeds[way], window, setting.folder).took
            speeds[way].append(window.steps * setting.batch_size / took.wall)
    return speeds


def table(result: dict[str, Any]) -> Table:
    """Images per second of each way, as a share of those from memory."""
    kinds = ", ".join(f"{kind} {median(times):.1f}" for kind, times in result["milliseconds"].items())
    speeds = result["images_per_second"]
    shown = Table(
        title=f"Defects synthesised onto each image, {result['image_size']}x{result['image_size']}: a UNet's training",
        title_justify="left",
        caption=f"Medians of {len(speeds[WAYS[0]])} interleaved repeats, batches of {result['batch_size']}. "
        f"Milliseconds an image of each kind, on one core: {kinds}. Nine in ten images get some unless "
        "dataset.synthetic_share says otherwise; here all do.",
        caption_justify="left",
    )
    for name in ("batches", "images/s", "ratio", "range"):
        shown.add_column(name, justify="left" if name == "batches" else "right")
    for way, values in speeds.items():
        ratios = [value / memory for value, memory in zip(values, speeds[WAYS[0]], strict=True)]
        row = f"{median(values):.1f}", f"{median(ratios):.3f}", f"{min(ratios):.2f}-{max(ratios):.2f}"
        shown.add_row(way, *row)
    return shown
