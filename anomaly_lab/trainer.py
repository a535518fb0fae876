"""The Lightning trainer as every part of the package wants it: the configured hardware, whole files, few words."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from anomaly_lab.config import Config
from anomaly_lab.errors import ConfigError, RunError
from anomaly_lab.hardware import under_torchrun
from anomaly_lab.ranks import world_size

# Lightning's advice that does not apply: the cache makes loading cheap, short epochs are meant, and so on.
_QUIET = (
    "Found .* module.s. in eval mode at the start of training",  # frozen first stages and teachers are meant
    "`LightningModule.configure_optimizers` returned `None`",  # PCA is fitted, not stepped
    "The '.*dataloader' does not have many workers",
    "The number of training batches",
    "Checkpoint directory .* exists and is not empty",
    "GPU available but not used",
    "`isinstance.treespec, LeafSpec.` is deprecated",
    "Trying to infer the `batch_size`",
    "It is recommended to use `self.log",  # what is logged is of all ranks
    "You defined a `validation_step` but have no `val_dataloader`",
)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; Lightning's way copies it from $TMPDIR."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint whole or not at all.

        Raises:
            RunError: if the disk does not take it.
        """
        target = Path(path)
        temporary = target.with_suffix(".tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:  # whose errors say what is wrong with the disk
                torch.save(checkpoint, file)
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError.of(target, error) from None


def make_trainer(config: Config, *, takes_turns: bool = False, **arguments: Any) -> Trainer:
    """A Lightning trainer on the configured hardware; it pads no evaluation batch with repeats.

    The processes that train together are there already (launch.py). `takes_turns` says that a step leaves some
    parameters without gradients, as a GAN's turns do.
    """
    hardware = {key: config["trainer"][key] for key in ("accelerator", "devices", "strategy", "precision")}
    together: dict[str, Any] = {"devices": 1}
    plugins: list[Any] = [WholeCheckpoints()]
    if world_size() > 1:
        plugins.append(
            TorchElasticEnvironment() if under_torchrun() else LightningEnvironment()
        )  # whoever else is here
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        together |= {"devices": here, "num_nodes": world_size() // here}
        if hardware["strategy"] == "auto":
            together["strategy"] = _Together(find_unused_parameters=takes_turns)
        together["sync_batchnorm"] = hardware["accelerator"] != "cpu" and torch.cuda.is_available()
    try:
        return Trainer(
            **hardware | together | arguments,
            plugins=plugins,
            use_distributed_sampler=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        shown = " ".join(f"trainer.{key}={value}" for key, value in hardware.items())
        raise ConfigError(f"This machine does not work with {shown}: {error}") from error


class _Together(DDPStrategy):
    """Lightning's, for a model without anything to learn by gradients too."""

    def _setup_model(self, model: nn.Module) -> Any:
        return super()._setup_model(model) if any(p.requires_grad for p in model.parameters()) else model


def quieten() -> None:
    """Silence what Lightning says at every start, and nothing else."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)
