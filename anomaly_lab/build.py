"""The method of a configuration, with fresh weights or with a run's."""

from __future__ import annotations

import torch
from pydantic import ValidationError
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from anomaly_lab.checkpoints import restore
from anomaly_lab.config import ASKED, Config, as_partial, locate
from anomaly_lab.errors import ConfigError, require
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.models.gan import GAN
from anomaly_lab.runs import Run

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
