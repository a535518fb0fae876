"""What AnoGAN and GANomaly share: a generator and a discriminator, trained in turns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from anomaly_lab.models.base import AnomalyModel, Restore, checked

_DEVIATIONS = 3.0  # of standardised pixels: further ones are cut off


class GAN(AnomalyModel):
    """Trains by Lightning's manual optimization, one step of each network on every batch.

    A subclass has a `discriminator`; all its other parameters are the generator's.
    """

    discriminator: nn.Module

    losses_in_bar: ClassVar[tuple[str, ...]] = ("discriminator",)  # the loss is the generator's

    @checked
    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.automatic_optimization = False

    @abstractmethod
    def samples(self, image: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] that show what has been learnt so far; `image` is as for `predict`."""

    def configure_optimizers(self) -> Any:
        """The config's optimizer, once for the generator and once for the discriminator, and their schedules."""
        assert self._optimizer is not None
        sides: dict[bool, list[Parameter]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            sides[name.startswith("discriminator.")].append(parameter)
        optimizers = [self._optimizer(side) for side in sides.values()]
        return optimizers, [] if self._scheduler is None else list(map(self._scheduler, optimizers))

    def on_train_epoch_end(self) -> None:
        """Step the schedules, which Lightning leaves to manual optimization."""
        schedules = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()  # type: ignore[call-arg]  # none of them watches a metric

    @contextmanager
    def turn(self, of: Literal["generator", "discriminator"]) -> Iterator[Callable[[Tensor], None]]:
        """One network's turn, in which the other one gets no gradients; yields what goes a step down a loss."""
        optimizer = self.optimizers()[of == "discriminator"]  # type: ignore[index]  # there are two

        def descend(loss: Tensor) -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        self.toggle_optimizer(optimizer)
        yield descend
        self.untoggle_optimizer(optimizer)

    def normalise(self, image: Tensor) -> tuple[Tensor, Restore]:
        """Images (B, 3, H, W) in [0, 1] to [-1, 1], where tanh ends, and the way back.

        Under `input_norm=per_image` the ends stand for three standard deviations.
        """
        if self._input_norm == "none":
            return 2 * image - 1, lambda x: (x + 1) / 2
        x, restore = super().normalise(image)
        return (x / _DEVIATIONS).clamp(-1, 1), lambda x: restore(x * _DEVIATIONS)


def told_apart(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits: the mean cross-entropy of calling real 1 and generated 0."""
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    return (F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)) / 2
