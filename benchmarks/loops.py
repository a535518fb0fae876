"""Two trainings that do the same arithmetic: the package's own, and one in plain PyTorch."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from anomaly_lab.callbacks import History
from anomaly_lab.config import Config, as_partial
from anomaly_lab.fit import training_callbacks
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.models.dpae import DPAE
from anomaly_lab.models.unet import UNetSegmenter
from anomaly_lab.trainer import make_trainer
from anomaly_lab.types import Batch
from benchmarks.setting import Moment, now


class Feed(Sized, Protocol):
    """Batches with a length."""

    def __iter__(self) -> Iterator[Batch]: ...


class InMemory:
    """One batch, `count` times."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.count)


@dataclass(frozen=True)
class Window:
    """Which steps of a training are timed: `steps` of them, after `warm` that are not."""

    warm: int
    steps: int

    @property
    def total(self) -> int:
        """All steps."""
        return self.warm + self.steps


@dataclass(frozen=True)
class Training:
    """What a few steps took and came to."""

    took: Moment  # by the timed steps
    losses: list[float]  # of all steps
    parameters: dict[str, Tensor]  # after the last step, on the CPU


class _Clock(Callback):
    """Times the window from the end of one step to the end of another, so all that lies between counts."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.losses: list[Tensor] = []
        self.started = self.ended = Moment(0.0, 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:  # a GAN takes its steps itself, and has no one loss
            self.losses.append(outputs["loss"])
        if batch_idx + 1 == self.window.warm:
            self.started = now()
        elif batch_idx + 1 == self.window.total:
            self.ended = now()


def train_ours(config: Config, model: AnomalyModel, feed: Feed, window: Window, folder: Path) -> Training:
    """The package's training, with the callbacks of `anomaly-lab train` and a progress bar as in a terminal."""
    model = copy.deepcopy(model)
    clock = _Clock(window)
    terminal = {"force_terminal": True, "file": io.StringIO(), "width": 100}
    trainer = make_trainer(
        config,
        max_epochs=1,
        limit_train_batches=window.total,
        limit_val_batches=0,
        callbacks=[
            clock,
            *training_callbacks(config["seed"], History(folder / "curves.csv"), folder, terminal),
        ],
        logger=False,
        default_root_dir=folder,
    )
    trainer.fit(model, feed)
    parameters = {name: value.detach().cpu() for name, value in model.named_parameters()}
    return Training(clock.ended.since(clock.started), [float(loss) for loss in clock.losses], parameters)


def train_plain(
    config: Config, model: AnomalyModel, feed: Iterable[Batch], window: Window, device: torch.device
) -> Training:
    """The same by hand on the same networks, options, precision and optimizer; nothing of Lightning is called."""
    method = BY_HAND[config["model"]["name"]](config["model"], copy.deepcopy(model), device)
    parameters = [p for net in method.nets.values() for p in net.parameters()]
    optimizer = as_partial("model.optimizer", config["model"]["optimizer"], Optimizer)(parameters)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config["trainer"]["precision"] == "bf16-mixed")
    losses = []
    started = Moment(0.0, 0.0)
    for step, batch in enumerate(islice(feed, window.total), start=1):
        with autocast:
            loss = method.loss({key: batch[key].to(device, non_blocking=True) for key in ("image", "mask")})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step == window.warm:
            started = now()
    took = now().since(started)
    after = {
        f"{name}.{key}": value.detach().cpu()
        for name, net in method.nets.items()
        for key, value in net.named_parameters()
    }
    return Training(took, torch.stack(losses).tolist(), after)


class ByHand(Protocol):
    """A method in plain PyTorch: its networks by the names they have in the package, and its loss."""

    nets: dict[str, nn.Module]

    def loss(self, batch: dict[str, Tensor]) -> Tensor: ...


class DPAEByHand:
    """P1's Eq. 9 and 7."""

    def __init__(self, options: Config, model: DPAE, device: torch.device) -> None:
        self.options = options
        self.nets = {name: getattr(model, name).to(device).train() for name in ("encoder", "decoder", "encoder_hat")}
        self.prototype, self.prototype_hat = model.prototype.to(device), model.prototype_hat.to(device)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        options, (encoder, decoder, encoder_hat), x = self.options, self.nets.values(), batch["image"]
        if options["input_norm"] == "per_image":
            x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp_min(1e-3)
        z = encoder(x)
        x_hat = decoder(z)
        z_hat = encoder_hat(x_hat)
        loss = (
            options["rec_weight"] * self._distance(x, x_hat)
            + options["prototype_weight"] / 2 * self._distance(z, self.prototype)
            + options["prototype_hat_weight"] / 2 * self._distance(z_hat, self.prototype_hat)
            + options["latent_weight"] * self._distance(z, z_hat)
        )
        rate = options["prototype_rate"]
        with torch.no_grad():
            # out of place: the loss still needs the prototypes it was computed with
            self.prototype = self.prototype - rate * (self.prototype - z.float().mean(0))
            self.prototype_hat = self.prototype_hat - rate * (self.prototype_hat - z_hat.float().mean(0))
        return loss

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        squares = (a - b) ** 2
        return squares.sum() if self.options["reduction"] == "sum" else squares.mean()


class UNetByHand:
    """P2's Eq. 5."""

    def __init__(self, options: Config, model: UNetSegmenter, device: torch.device) -> None:
        self.nets = {"unet": model.unet.to(device).train()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits, mask = self.nets["unet"](batch["image"]).float(), batch["mask"]
        known = (mask != 255).float()
        total = F.binary_cross_entropy_with_logits(logits, (mask == 1).float(), known, reduction="sum")
        return total / known.sum().clamp_min(1)


BY_HAND: dict[str, Any] = {"dpae": DPAEByHand, "unet": UNetByHand}


@dataclass(frozen=True)
class Difference:
    """How far two trainings from the same weights are apart."""

    loss: float  # the largest relative difference of two steps' losses
    weights: float  # distance of the final weights, in units of the distance they travelled

    @classmethod
    def between(cls, start: AnomalyModel, a: Training, b: Training) -> Difference:
        """Compare two trainings of `start`."""
        loss = max(abs(x - y) / abs(y) for x, y in zip(a.losses, b.losses, strict=True))
        first = {name: value.detach() for name, value in start.named_parameters()}
        apart = sum(float((a.parameters[name] - b.parameters[name]).double().square().sum()) for name in first)
        way = sum(float((value - b.parameters[name]).double().square().sum()) for name, value in first.items())
        return cls(loss, (apart / way) ** 0.5)

    def within(self, tolerance: float) -> bool:
        """Whether both are small enough to call the two the same training."""
        return self.loss <= tolerance and self.weights <= tolerance
