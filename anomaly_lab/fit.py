"""One training: from a planned dataset to a checkpoint, scores, metrics and figures in the run directory."""

from __future__ import annotations

import copy
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from anomaly_lab.build import build_model
from anomaly_lab.callbacks import (
    AfterStep,
    AveragedWeights,
    History,
    ProgressBar,
    Samples,
    SaveWhenTerminated,
    SeedEachBatch,
)
from anomaly_lab.checkpoints import load_checkpoint, restore, save_weights
from anomaly_lab.config import Config
from anomaly_lab.dashboard import Dashboard, SendEpochs, open_dashboard
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.draw import draw_synthesised
from anomaly_lab.errors import ConfigError
from anomaly_lab.hardware import shows_bars
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.models.gan import GAN
from anomaly_lab.ranks import first_rank_first, is_first_here, rank, world_size
from anomaly_lab.reporting.style import DPI
from anomaly_lab.reporting.tables import duration
from anomaly_lab.runs import Run
from anomaly_lab.score import score
from anomaly_lab.trainer import make_trainer, quieten

log = logging.getLogger("anomaly_lab")

_SAMPLES = 8  # training images whose reconstructions are drawn now and then


def fit(config: Config, plan: DataPlan, run: Run, stage1: Run | None = None) -> dict[str, Any]:
    """Train (or go on training) and score; returns `metrics`, `reasons` and `seconds` for metrics.json.

    Runs on each of the processes that train together; the first one writes, and returns something.
    `stage1` is the finished run of the first of two stages; from then on its weights are a part of this one's.
    """
    quieten()
    seed_everything(config["seed"], verbose=False)
    model = build_model(config)
    _check_average(config, model)
    if stage1 is not None:
        restore(model.get_submodule("autoencoder"), stage1.checkpoints / f"{stage1.config()['checkpoint']}.ckpt")
    data = DefectDataModule(plan, config["seed"])
    with first_rank_first():
        if is_first_here() or plan.full_size is None:  # images of their own size are in no cache, but known by frame
            data.prepare(progress=shows_bars() and rank() == 0)
    if plan.load.labels is None and plan.learns_real_labels and rank() == 0:
        labelled = sum(record.label for record in plan.pool("labelled"))
        log.info("Labelled defects to learn from: %d, and none synthesised (dataset.labels=both adds those)", labelled)
    if plan.synthesises and rank() == 0:
        path = run.path / "figures" / "synthesised.png"
        path.parent.mkdir(exist_ok=True)
        draw_synthesised(data).savefig(path, dpi=DPI)
        log.info("Defects to learn from: %s", path)
    with open_dashboard(config, run) as dashboard:
        history = train(config, run, model, data, dashboard)
        started = time.perf_counter()
        results = score(config, data, model, run.path, run.splits)
        if rank() > 0:
            return {}
        results["seconds"] |= {"train": history.seconds, "evaluate": time.perf_counter() - started}
        if dashboard is not None:
            dashboard.log_epochs(history.rows)  # where it was cut off after the training, all of them
            dashboard.finish(run, results)
    return results


def train(
    config: Config, run: Run, model: AnomalyModel, data: DefectDataModule, dashboard: Dashboard | None = None
) -> History:
    """Bring `model` to the checkpoint that counts, leaving only its weights on disk."""
    history = History(run.path / "curves.csv")
    last, best = run.checkpoints / "last.ckpt", run.checkpoints / "best.ckpt"
    epochs = config["trainer"]["max_epochs"]
    epochs = min(epochs, 1) if model.fits_once else epochs
    checkpoint = load_checkpoint(last) if last.exists() else None
    if checkpoint is not None and "optimizer_states" not in checkpoint:
        history.load_state_dict(checkpoint["history"])  # cut off after training, while it was scored
    else:
        wants_best = config["checkpoint"] == "best"
        if wants_best and not data.plan.split.lists.get("val"):
            raise ConfigError("checkpoint=best needs held-out images: set dataset.val_fraction or dataset.val_count.")
        if wants_best and len(data.plan.split.lists["val"]) < world_size():
            raise ConfigError(f"checkpoint=best needs a held-out image for each of the {world_size()} processes.")
        if config["trainer"]["estimate"] and epochs > 0 and not model.fits_once:
            log.info("%s", estimate(config, model, data, epochs))
        callbacks = training_callbacks(config["seed"], history, run.checkpoints)
        if decay := config["model"]["weight_average"]:
            callbacks.insert(2, AveragedWeights(decay))  # once a step is whole, before anything is saved
        if isinstance(model, GAN):
            callbacks.insert(-1, Samples(run.path / "samples", data.examples(_SAMPLES)))
        if wants_best:
            callbacks.insert(-1, _best_checkpoint(run.checkpoints))  # before `last`, which marks the epoch as done
        if dashboard is not None:
            callbacks.insert(-1, SendEpochs(dashboard, history))
        trainer = make_trainer(
            config,
            takes_turns=isinstance(model, GAN),
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,
            limit_val_batches=None if wants_best else 0,
            num_sanity_val_steps=0,
            default_root_dir=run.path,
        )
        resume = last if checkpoint is not None else None
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        with first_rank_first():
            if rank() == 0:
                if (
                    epochs == 0 or model.fits_once
                ):  # untrained, to compare with; or without steps, which Lightning counts by
                    save_weights(last, {"state_dict": model.state_dict(), "epoch": epochs - 1}, history)
                for path in filter(Path.exists, (last, best)):
                    save_weights(path, load_checkpoint(path), history)  # a finished run needs no optimizer
    restore(model, best if config["checkpoint"] == "best" else last)
    return history


def training_callbacks(
    seed: int, history: History, checkpoints: Path, console: dict[str, Any] | None = None
) -> list[Callback]:
    """What every training has around it; `console` has arguments for the progress bar's."""
    return [
        SeedEachBatch(seed),
        AfterStep(),
        history,
        # ten redraws a second: a redraw at every step costs more than the step's own bookkeeping
        ProgressBar(refresh_rate=10 if shows_bars() else 0, console_kwargs=console or {"force_jupyter": False}),
        SaveWhenTerminated(checkpoints / "last.ckpt"),
        ModelCheckpoint(checkpoints, "last", enable_version_counter=False),
    ]


def _check_average(config: Config, model: AnomalyModel) -> None:
    decay, precision = config["model"]["weight_average"], config["trainer"]["precision"]
    if decay is None:
        return
    asked = f"model.weight_average={decay!r}"
    if model.fits_once:
        raise ConfigError(f"{asked}: {config['model']['name']} takes no steps whose weights to average.")
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise ConfigError(f"{asked} has to be a number between 0 and 1, such as 0.999.")
    if precision in ("bf16-true", "16-true"):
        raise ConfigError(f"{asked} needs more digits than trainer.precision={precision} has: bf16-mixed or 32-true.")


def estimate(config: Config, model: AnomalyModel, data: DefectDataModule, epochs: int) -> str:
    """Time three batches on a copy of the model; says how long the training will take and in what memory."""

    class Clock(Callback):
        times: list[float]

        def on_train_start(self, *_: Any) -> None:
            self.times = [time.perf_counter()]

        def on_train_batch_end(self, *_: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    with torch.random.fork_rng():
        trainer = make_trainer(
            config,
            takes_turns=isinstance(model, GAN),
            max_epochs=1,
            limit_train_batches=3,
            limit_val_batches=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(copy.deepcopy(model), data.train_dataloader())
    batches = data.steps
    if len(clock.times) < 3:
        return f"Training up to epoch {epochs}, {batches} batches each."
    seconds = (clock.times[-1] - clock.times[1]) / (len(clock.times) - 2) * batches * epochs
    if trainer.strategy.root_device.type == "cuda":
        memory, where = torch.cuda.max_memory_allocated(), "GPU memory"
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        memory, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "memory"
    used = f"about {duration(seconds)} and {memory / 2**30:.1f} GiB of {where}"
    return f"Training up to epoch {epochs}, {batches} batches each: {used}."


def _best_checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "best", monitor="val_image_auroc", mode="max", enable_version_counter=False)
