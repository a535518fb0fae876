"""Part `step`: images per second of a training step, here and in a hand-written loop."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.table import Table

from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.errors import LabError, require
from anomaly_lab.trainer import make_trainer
from anomaly_lab.types import Batch
from benchmarks.loops import BY_HAND, Difference, Feed, InMemory, Window, train_ours, train_plain
from benchmarks.setting import Moment, Setting

BAR = 0.97  # of the hand-written loop's images per second
WARM = 2  # steps before the clock starts
NEXT_TO_NOTHING = {  # options of the smallest network
    "dpae": {"encoder_channels": [4] * 5, "decoder_channels": [4] * 4},
    "unet": {"width": 1, "levels": 2},
}
CHECKED = 3  # steps after which both sides must have come to the same losses and weights


class UnequalError(LabError):
    """The two loops do not do the same work, so their times say nothing."""


def measure(setting: Setting) -> dict[str, Any]:
    """Time both loops in turn, with one batch in memory and with the training loader.

    Raises:
        UnequalError: if they do not come to the same losses and weights.
        ConfigError: if there is no loop by hand for the method.
    """
    name = setting.config["model"]["name"]
    require("model", name, BY_HAND)
    data = DefectDataModule(setting.plan, setting.config["seed"])
    data.prepare()
    loader = data.train_dataloader()
    device = make_trainer(setting.config, logger=False, enable_checkpointing=False).strategy.root_device
    difference, seconds = compare(setting, loader, device)
    window = Window(WARM, max(1, min(data.steps - WARM, round(setting.seconds / seconds))))
    batch = next(iter(loader))
    batch["image"], batch["mask"] = batch["image"].to(device), batch["mask"].to(device)
    feeds: dict[str, Feed] = {"in memory": InMemory(batch, window.total), "from the loader": loader}
    races = {name: race(setting, feed, window, device) for name, feed in feeds.items()}
    return {
        "model": name,
        "device": str(device),
        "precision": setting.config["trainer"]["precision"],
        "batch_size": setting.batch_size,
        "image_size": setting.plan.load.image_size,
        "steps": window.steps,
        "bar": BAR,
        "difference": {"loss": difference.loss, "weights": difference.weights},
        "feeds": races,
        "fixed": fixed_cost(setting, batch, device, 1000 * setting.batch_size / races["in memory"]["median"]["plain"]),
    }


def compare(setting: Setting, feed: Feed, device: torch.device) -> tuple[Difference, float]:
    """Train both ways for a few steps; returns their difference and the plain loop's seconds per step.

    Raises:
        UnequalError: if the difference is more than rounding.
    """
    start, window = setting.model(), Window(1, CHECKED - 1)
    ours = train_ours(setting.config, start, feed, window, setting.folder)
    plain = train_plain(setting.config, start, feed, window, device)
    difference = Difference.between(start, ours, plain)
    # 0 on a CPU; a GPU's sums have no fixed order, and bf16 keeps 8 bits
    tolerance = 1e-3 if setting.config["trainer"]["precision"] == "32-true" else 5e-2
    if not difference.within(tolerance):
        raise UnequalError(
            f"The hand-written loop and the package disagree after {CHECKED} steps (losses by {difference.loss:.1e}, "
            f"weights by {difference.weights:.1e} of the way): a speed ratio would mean nothing. Mend "
            f"benchmarks/loops.py to follow the method."
        )
    return difference, plain.took.wall / window.steps


def race(setting: Setting, feed: Feed, window: Window, device: torch.device) -> dict[str, Any]:
    """Images per second of both sides, repeat by repeat; who begins alternates."""
    start = setting.model()
    sides = {
        "ours": partial(train_ours, setting.config, start, feed, window, setting.folder),
        "plain": partial(train_plain, setting.config, start, feed, window, device),
    }
    took: dict[str, list[Moment]] = {name: [] for name in sides}
    for repeat in range(setting.repeats):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            gc.collect()
            took[name].append(sides[name]().took)
    speeds = {name: [window.steps * setting.batch_size / t.wall for t in times] for name, times in took.items()}
    pairs = list(zip(took["ours"], took["plain"], strict=True))
    ratios = [plain.wall / ours.wall for ours, plain in pairs]
    return {
        "images_per_second": speeds,
        "median": {name: median(values) for name, values in speeds.items()},
        "ratios": ratios,
        "ratio": median(ratios),
        "cpu_time_ratio": median(plain.cpu / ours.cpu for ours, plain in pairs),
        "passed": median(ratios) >= BAR,
    }


def fixed_cost(setting: Setting, batch: Batch, device: torch.device, step: float) -> dict[str, float]:
    """What a step costs beside the network, seen on one that is next to nothing: milliseconds.

    Where other processes disturb the ratio, `share`, the difference as a part of the real step of `step`
    milliseconds by hand, still tells how far from 1 it can be.
    """
    config = copy.deepcopy(setting.config)
    config["model"] |= {"image_size": 32} | NEXT_TO_NOTHING[config["model"]["name"]]
    window = Window(WARM, max(1, round(25 * setting.seconds)))
    feed = InMemory(
        {**batch, **{key: batch[key][..., :32, :32].contiguous() for key in ("image", "mask")}}, window.total
    )
    small = race(replace(setting, config=config), feed, window, device)
    times = {
        name: [1000 * setting.batch_size / v for v in values] for name, values in small["images_per_second"].items()
    }
    more = median(ours - plain for ours, plain in zip(times["ours"], times["plain"], strict=True))
    return {"ours": median(times["ours"]), "plain": median(times["plain"]), "more": more, "share": more / step}


def table(result: dict[str, Any]) -> Table:
    """The medians side by side, and the verdict."""
    fixed = result["fixed"]
    shown = Table(
        title=f"A training step in images/s: {result['model']}, {result['image_size']}x{result['image_size']}, "
        f"batch {result['batch_size']}, {result['precision']}, {result['device']}",
        title_justify="left",
        caption=f"Medians of {len(result['feeds']['in memory']['ratios'])} interleaved repeats of {result['steps']} "
        f"steps. Both loops from the same weights: after {CHECKED} steps the losses differ by "
        f"{result['difference']['loss']:.1e} of their size, the weights by {result['difference']['weights']:.1e} of "
        f"the way they went. The CPU-time ratio is blind to what other processes do, and to a GPU. "
        f"On a network next to nothing a step takes {fixed['ours']:.1f} ms here and {fixed['plain']:.1f} by hand: "
        f"{fixed['more']:.1f} ms more, {fixed['share']:.1%} of the step in memory.",
        caption_justify="left",
    )
    for name in ("batch", "here", "by hand", "ratio", "range", "CPU time", f"bar {result['bar']}"):
        shown.add_column(name, justify="left" if name == "batch" else "right")
    for name, feed in result["feeds"].items():
        shown.add_row(
            name,
            f"{feed['median']['ours']:.1f}",
            f"{feed['median']['plain']:.1f}",
            f"{feed['ratio']:.3f}",
            f"{min(feed['ratios']):.2f}-{max(feed['ratios']):.2f}",
            f"{feed['cpu_time_ratio']:.3f}",
            "[green]PASS[/]" if feed["passed"] else "[red]BELOW[/]",
        )
    return shown
