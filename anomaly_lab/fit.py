"""One training: from a planned dataset to a checkpoint, scores, metrics and figures in the run directory."""

from __future__ import annotations

import copy
import logging
import pickle
import resource
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import ValidationError
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from anomaly_lab.callbacks import (
    AfterStep,
    AveragedWeights,
    History,
    ProgressBar,
    Samples,
    SaveWhenTerminated,
    SeedEachBatch,
)
from anomaly_lab.config import ASKED, Config, as_partial, locate
from anomaly_lab.dashboard import Dashboard, SendEpochs, open_dashboard
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.draw import draw_synthesised
from anomaly_lab.errors import ConfigError, RunError, require
from anomaly_lab.hardware import shows_bars
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.models.gan import GAN
from anomaly_lab.ranks import first_rank_first, is_first_here, rank, world_size
from anomaly_lab.reporting.style import DPI
from anomaly_lab.reporting.tables import duration
from anomaly_lab.runs import Run
from anomaly_lab.score import score
from anomaly_lab.trainer import WholeCheckpoints, make_trainer, quieten

log = logging.getLogger("anomaly_lab")

_SAMPLES = 8  # training images whose reconstructions are drawn now and then
_NOT_ARGUMENTS = (
    "_target_",
    "name",
    "version",
    "optimizer",
    "scheduler",
    "weight_average",
    "stage1",
    "stage1_hash",
    "autoencoder",
    *ASKED,
)


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
    if plan.synthesises and "labelled" in plan.load.learns_from and rank() == 0:
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
                    _save_weights(last, {"state_dict": model.state_dict(), "epoch": epochs - 1}, history)
                for path in filter(Path.exists, (last, best)):
                    _save_weights(path, load_checkpoint(path), history)  # a finished run needs no optimizer
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


def build_model(config: Config) -> AnomalyModel:
    """The method of a resolved configuration, with fresh weights.

    Raises:
        ConfigError: for an option that its class does not have, or a value that it refuses.
    """
    model = _build("model", config["model"], tuple(config["allow"]))
    asked = config["dataset"]["learns_from"]
    require("dataset.learns_from", asked if isinstance(asked, str) else "+".join(asked), model.streams)
    try:
        model.configure_optimizers()  # tried here, before anything is computed
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.optimizer or model.scheduler: {error}.") from error
    return model.to(memory_format=torch.channels_last)  # as the images come; a step takes less time (LOG)


def trained_model(run: Run, config: Config) -> AnomalyModel:
    """The method of a finished run, as it was trained; `config` is the run's, or a change of what is no weight's.

    Raises:
        RunError: if its checkpoint is missing, damaged, or of another configuration.
    """
    model = build_model(config)
    restore(model, run.checkpoints / f"{config['checkpoint']}.ckpt")
    return model


def _build(where: str, node: Config, allow: tuple[str, ...]) -> AnomalyModel:
    model_class = locate(node["_target_"], AnomalyModel, allow)
    arguments = {key: value for key, value in node.items() if key not in _NOT_ARGUMENTS}
    if node["latent_dim"] is None or "stage1" in node:  # means nothing, or is the first stage's
        del arguments["latent_dim"]
    if not model_class.fits_once:
        optimizer = arguments["optimizer"] = as_partial(f"{where}.optimizer", node["optimizer"], Optimizer, allow)
        if issubclass(model_class, GAN) and issubclass(optimizer.func, LBFGS):  # type: ignore[arg-type]  # a class
            raise ConfigError(f"{where}.optimizer: LBFGS asks for the loss again, and a GAN's turns give it once.")
    if node["scheduler"] is not None:
        scheduler = arguments["scheduler"] = as_partial(f"{where}.scheduler", node["scheduler"], LRScheduler, allow)
        if issubclass(scheduler.func, ReduceLROnPlateau):  # type: ignore[arg-type]  # a class
            raise ConfigError(
                f"{where}.scheduler: ReduceLROnPlateau watches a metric, and schedules here count epochs, as "
                "StepLR and CosineAnnealingLR do."
            )
    if "stage1" in node:
        arguments["autoencoder"] = _build(f"{where}.stage1", node["stage1"], allow)
    try:
        return model_class(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([where, *map(str, first["loc"])])
        if first["type"].startswith("missing"):
            raise ConfigError(f"{name} needs a value.") from None
        raise ConfigError(f"{name}={first['input']!r}: {first['msg']}.") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model={node['name']} does not take these options: {error}") from error


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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; one that carries code is refused, not run.

    Raises:
        RunError: if the file is missing, truncated, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()) or file.testzip():
                raise zipfile.BadZipFile("its content does not fit its checksums")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a stranger's file, about how it might be read after all
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: `last` is there once a run is trained, `best` if it was trained with checkpoint=best."
        ) from None
    except MemoryError:
        raise
    except pickle.UnpicklingError:  # whose advice is to run its code
        raise RunError(
            f"{path} is damaged or holds more than tensors and plain values. Delete it and train again."
        ) from None
    except Exception as error:  # whatever a stranger's file makes of the reader
        first = str(error).partition("\n")[0]
        raise RunError(f"{path} cannot be read ({first}): if it is damaged, delete it and train again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RunError(f"{path} is no checkpoint: it has no state_dict.")
    return content


def restore(model: nn.Module, path: Path) -> None:
    """Load the weights of a checkpoint.

    Raises:
        RunError: if it is missing or damaged, or of another configuration.
    """
    try:
        model.load_state_dict(load_checkpoint(path)["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RunError(f"{path} does not fit the run's configuration: {' '.join(str(error).split())}") from None


def _best_checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "best", monitor="val_image_auroc", mode="max", enable_version_counter=False)


def _save_weights(path: Path, checkpoint: dict[str, Any], history: History) -> None:
    """Write weights, epoch and curves; the file is replaced in one step."""
    slim = {"state_dict": checkpoint["state_dict"], "epoch": checkpoint["epoch"], "history": history.state_dict()}
    WholeCheckpoints().save_checkpoint(slim, path)
