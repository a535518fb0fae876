"""Part `pixels`: pixel AUROC in constant memory beside torchmetrics' exact one, in time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import torch
from rich.table import Table
from torchmetrics.functional.classification import binary_auroc

from anomaly_lab.metrics.pixel import pixel_metrics
from anomaly_lab.metrics.pixel_tally import PixelTally
from benchmarks.setting import Setting

SIDE, BATCH = 128, 10
COUNTS = (100, 1000)  # images
WAYS = ("here", "torchmetrics, exact")


def measure(setting: Setting) -> dict[str, Any]:
    """Each way in a process of its own, so that its memory is its own."""
    return {"side": SIDE, "runs": [_apart(way, count) for count in COUNTS for way in WAYS]}


def _apart(way: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pixels", way, str(count)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, growth, auroc = map(float, words)
    return {"way": way, "images": count, "seconds": seconds, "mebibytes": growth, "auroc": auroc}


def run(way: str, count: int) -> tuple[float, float, float]:
    """Seconds for the metric, MiB that the process grew by meanwhile, and the AUROC, over generated maps."""
    torch.manual_seed(0)
    tally, maps, masks, seconds = PixelTally(), [], [], 0.0
    tally.update(*_batch())  # what is imported or laid out once is no growth
    tally.reset()
    before = _memory()
    for _ in range(count // BATCH):
        anomaly_map, mask = _batch()
        started = time.perf_counter()
        if way == WAYS[0]:
            tally.update(anomaly_map, mask)
        else:
            maps.append(anomaly_map)
            masks.append(mask)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    if way == WAYS[0]:
        auroc = pixel_metrics(tally.compute())[0]["pixel_auroc"]
    else:
        auroc = float(binary_auroc(torch.cat(maps).flatten(), torch.cat(masks).flatten().long()))
    return seconds + time.perf_counter() - started, _memory() - before, auroc


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(BATCH, 1, SIDE, SIDE, dtype=torch.uint8)
    mask[::2, :, 40:60, 30:80] = 1
    return (torch.randn(mask.shape) + mask).sigmoid(), mask


def _memory() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def table(result: dict[str, Any]) -> Table:
    """Time, memory and value of each way."""
    shown = Table(
        title=f"Pixel AUROC of {result['side']}x{result['side']} maps",
        title_justify="left",
        caption="here: all pixel metrics, AUPRO and regions too",
        caption_justify="left",
    )
    for name in ("images", "way", "seconds", "grew by MiB", "AUROC"):
        shown.add_column(name, justify="left" if name == "way" else "right")
    for row in result["runs"]:
        values = f"{row['seconds']:.2f}", f"{row['mebibytes']:.0f}", f"{row['auroc']:.6f}"
        shown.add_row(str(row["images"]), row["way"], *values)
    return shown


if __name__ == "__main__":
    print(*run(sys.argv[1], int(sys.argv[2])))
