"""Part `search`: AnoGAN's latent search, a batch of images at a time beside one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.setting import Setting, make_setting, now
from benchmarks.step import UnequalError

OPTIONS = ["model=anogan", "dataset.image_size=64", "model.width=32", "model.search_steps=20"]
IMAGES = 16


def measure(setting: Setting) -> dict[str, Any]:
    """Time both ways in turns; they have to give the same scores."""
    own = make_setting(OPTIONS, setting.folder, setting.repeats, setting.seconds, setting.epochs)
    model = own.model().eval()
    images = torch.rand(IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    took: dict[str, list[float]] = {"batched": [], "one by one": []}
    for _ in range(min(setting.repeats, 3)):
        for way, parts in (("batched", [images]), ("one by one", list(images.split(1)))):
            started = now()
            scores = torch.cat([model.predict(part).scores["anomaly"] for part in parts])
            took[way].append(now().since(started).wall)
            if way == "batched":
                expected = scores
            elif not torch.allclose(scores, expected, rtol=1e-3):
                raise UnequalError(f"scores differ by up to {float((scores - expected).abs().max()):.3g}")
    return {
        "images": IMAGES,
        "steps": own.config["model"]["search_steps"],
        "seconds": took,
        "ratio": float(np.median(took["one by one"]) / np.median(took["batched"])),
    }


def table(result: dict[str, Any]) -> Table:
    """Seconds for each way, and how many times faster the batch is."""
    shown = Table(
        title=f"AnoGAN's search for {result['images']} images of 64x64, {result['steps']} steps",
        title_justify="left",
        caption=f"batched is {result['ratio']:.2f} times as fast, with the same scores",
        caption_justify="left",
    )
    shown.add_column("way")
    shown.add_column("seconds", justify="right")
    for way, seconds in result["seconds"].items():
        shown.add_row(way, f"{np.median(seconds):.2f}")
    return shown
