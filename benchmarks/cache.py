"""Part `cache`: the first pass over the training images, which decodes them, against those that read the cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from rich.table import Table

from anomaly_lab.data.datamodule import DefectDataModule
from benchmarks.setting import Setting, cache_at

CACHED = 3  # passes after the first


def measure(setting: Setting) -> dict[str, Any]:
    """Time passes of the training loader and of `prepare`, each from an empty cache, in one process."""
    plan = replace(setting.plan, load=replace(setting.plan.load, num_workers=0))  # a worker's start is not decoding

    def module() -> DefectDataModule:
        return DefectDataModule(plan, setting.config["seed"])

    next(iter(module().train_dataloader()))  # imports, and the first use of every library

    def one_epoch(data: DefectDataModule) -> int:
        return sum(len(batch["image"]) for batch in data.train_dataloader())

    def prepare(data: DefectDataModule) -> int:
        data.prepare()
        return len({(r.path, r.mask) for records in plan.split.lists.values() for r in records})

    work = {"training loader": one_epoch, "prepare": prepare}
    return {name: _from_empty(setting, name, step, module) for name, step in work.items()}


def _from_empty(
    setting: Setting, name: str, step: Callable[[DefectDataModule], int], module: Callable[[], DefectDataModule]
) -> dict[str, Any]:
    with cache_at(setting.folder / f"cache-{name.replace(' ', '-')}"):
        data = module()
        seconds = []
        images = 0
        for _ in range(1 + CACHED):
            started = time.perf_counter()
            images = step(data)
            seconds.append(time.perf_counter() - started)
    return {
        "images": images,
        "first_seconds": seconds[0],
        "cached_seconds": seconds[1:],
        "ratio": seconds[0] / median(seconds[1:]),
    }


def table(result: dict[str, Any]) -> Table:
    """Milliseconds per image of the first pass and of the later ones."""
    shown = Table(
        title="The image cache in milliseconds per image",
        title_justify="left",
        caption=f"One process; the files were just read or written, so the first pass decodes but hardly waits for the "
        f"disk. Cached: median of {CACHED} passes.",
        caption_justify="left",
    )
    for column in ("pass over", "images", "first", "cached", "ratio"):
        shown.add_column(column, justify="left" if column == "pass over" else "right")
    for name, row in result.items():
        first, cached = (1000 * s / row["images"] for s in (row["first_seconds"], median(row["cached_seconds"])))
        shown.add_row(name, str(row["images"]), f"{first:.2f}", f"{cached:.2f}", f"{row['ratio']:.1f}")
    return shown
