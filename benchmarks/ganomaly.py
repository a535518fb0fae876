"""Part `ganomaly`: GANomaly's training step beside anomalib's, on the same images, batch and size.

anomalib is no dependency: `pip install 'anomaly-lab[compare]'`, best in an environment of its own.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from rich.table import Table
from sklearn.metrics import roc_auc_score

from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.trainer import make_trainer
from benchmarks.loops import Feed, InMemory, Window, train_ours
from benchmarks.setting import Moment, Setting, now
from benchmarks.step import WARM

SIZE, WIDTHS = 64, {"as shipped": 64, "both 16 wide": 16}
OPTIONS = ["model=ganomaly", f"dataset.image_size={SIZE}", "dataset.batch_size=16", "dataset.flip=none"]


def measure(setting: Setting) -> dict[str, Any]:
    """Time both sides' steps in turns at each width, and train both for a few epochs."""
    if importlib.util.find_spec("anomalib") is None:
        return {"skipped": "anomalib is not installed (pip install 'anomaly-lab[compare]')"}
    return {
        "epochs": setting.epochs,
        "size": SIZE,
        "widths": {name: _at_width(setting, width) for name, width in WIDTHS.items()},
    }


def _at_width(setting: Setting, width: int) -> dict[str, Any]:
    given = [*OPTIONS, f"model.width={width}"]
    own = setting.of_its_own(given)
    own.config["trainer"] = own.config["trainer"] | {"precision": "32-true"}
    data = DefectDataModule(own.plan, own.config["seed"])
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    probe = Window(WARM, 1)
    seconds = train_ours(own.config, own.model(), InMemory(batch, probe.total), probe, own.folder).took.wall
    window = Window(WARM, max(1, round(own.seconds / seconds)))
    feed = InMemory(batch, window.total)
    took: dict[str, list[Moment]] = {"ours": [], "anomalib": []}
    for repeat in range(own.repeats):
        for name in sorted(took, reverse=bool(repeat % 2)):
            gc.collect()
            if name == "ours":
                took[name].append(train_ours(own.config, own.model(), feed, window, own.folder).took)
            else:
                took[name].append(_train_theirs(own, width, feed, window))
    pairs = list(zip(took["ours"], took["anomalib"], strict=True))
    return {
        "steps": window.steps,
        "images_per_second": {
            name: [window.steps * own.batch_size / t.wall for t in times] for name, times in took.items()
        },
        "ratio": median(theirs.wall / ours.wall for ours, theirs in pairs),
        "cpu_time_ratio": median(theirs.cpu / ours.cpu for ours, theirs in pairs),
        "image_auroc": _our_aurocs(own, data) | {"anomalib": _their_auroc(own, width, data)},
    }


class _Converted:
    """The package's batches as anomalib takes them."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.sampler = getattr(feed, "sampler", None)  # which Lightning tells the epoch

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Any]:
        from anomalib.data import ImageBatch

        return (ImageBatch(image=batch["image"].contiguous()) for batch in self.feed)


class _Clock(Callback):
    def __init__(self, window: Window) -> None:
        self.window, self.started, self.ended = window, Moment(0.0, 0.0), Moment(0.0, 0.0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *about: Any) -> None:
        batch_idx = about[2]
        if batch_idx + 1 == self.window.warm:
            self.started = now()
        elif batch_idx + 1 == self.window.total:
            self.ended = now()


def _theirs(setting: Setting, width: int) -> Any:
    from anomalib.models import Ganomaly

    seed_everything(setting.config["seed"], verbose=False)
    return Ganomaly(
        batch_size=setting.batch_size,
        n_features=width,
        latent_vec_size=setting.config["model"]["latent_dim"],
        pre_processor=Ganomaly.configure_pre_processor(image_size=(SIZE, SIZE)),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )


def _trainer(setting: Setting, **arguments: Any) -> Trainer:
    return make_trainer(
        setting.config,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **arguments,
    )


def _train_theirs(setting: Setting, width: int, feed: Feed, window: Window) -> Moment:
    clock = _Clock(window)
    trainer = _trainer(setting, max_epochs=1, limit_train_batches=window.total, callbacks=[clock])
    trainer.fit(_theirs(setting, width), _Converted(feed))
    return clock.ended.since(clock.started)


def _our_aurocs(setting: Setting, data: DefectDataModule) -> dict[str, float]:
    """Of both scores: `latent` is the paper's and anomalib's, `peak` the one that the recipe for these images takes."""
    model = setting.model()
    _trainer(setting, max_epochs=setting.epochs).fit(model, data.train_dataloader())
    model.eval()
    with torch.inference_mode():
        found = [model.predict(batch["image"]).scores for batch in data.test_dataloader()]
    return {name: _auroc([scores[name] for scores in found], data) for name in ("latent", "peak")}


def _their_auroc(setting: Setting, width: int, data: DefectDataModule) -> float:
    model = _theirs(setting, width)
    _trainer(setting, max_epochs=setting.epochs).fit(model, _Converted(data.train_dataloader()))
    model.eval()
    with torch.inference_mode():
        # in training its pre-processor, a callback, brings the images to where they are wanted
        prepared = (model.pre_processor.transform(batch["image"]) for batch in data.test_dataloader())
        scores = [model.model(images).pred_score for images in prepared]
    return _auroc(scores, data)


def _auroc(scores: list[torch.Tensor], data: DefectDataModule) -> float:
    labels = np.concatenate([batch["label"].numpy() for batch in data.test_dataloader()])
    return float(roc_auc_score(labels, torch.cat(scores).numpy()))


def table(result: dict[str, Any]) -> Table | str:
    """Speed and AUROC of both sides, or why there are none."""
    if "skipped" in result:
        return f"GANomaly beside anomalib: not measured, {result['skipped']}."
    shown = Table(
        title=f"GANomaly's training step in images/s, {result['size']}x{result['size']}, fp32",
        title_justify="left",
        caption=f"Medians of interleaved repeats. AUROC on the test images after {result['epochs']} epochs, one seed: "
        "here by the latents and by the map's peak, on standardised images; anomalib's by its latents, on images as it "
        "wants them.",
        caption_justify="left",
    )
    for column in ("width", "here", "anomalib", "ratio", "CPU time", "AUROC latent", "peak", "anomalib"):
        shown.add_column(column, justify="left" if column == "width" else "right")
    for name, row in result["widths"].items():
        speeds = {side: median(values) for side, values in row["images_per_second"].items()}
        shown.add_row(
            name,
            *(f"{speeds[side]:.1f}" for side in ("ours", "anomalib")),
            f"{row['ratio']:.3f}",
            f"{row['cpu_time_ratio']:.3f}",
            *(f"{row['image_auroc'][name]:.3f}" for name in ("latent", "peak", "anomalib")),
        )
    return shown
