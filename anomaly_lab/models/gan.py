"""What AnoGAN and GANomaly share: a generator and a discriminator, trained in turns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from anomaly_lab.models.base import AnomalyModel, Restore, checked

_DEVIATIONS = 3.0  # of standardised pixels: further ones are cut off


class GAN(AnomalyModel):
    """Trains by Lightning's manual optimization, one step of each network on every batch."""

    losses_in_bar: ClassVar[tuple[str, ...]] = ("discriminator",)  # the loss is the generator's

    @checked
    def __init__(self, **training: Any) -> None:
        super().__init__(**training)
        self.automatic_optimization = False

    @abstractmethod
    def generator_parameters(self) -> Iterable[Parameter]:
        """What the generator's optimizer moves."""

    @abstractmethod
    def discriminator_parameters(self) -> Iterable[Parameter]:
        """What the discriminator's optimizer moves."""

    @abstractmethod
    def samples(self, image: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] that show what has been learnt so far; `image` is as for `predict`."""

    def configure_optimizers(self) -> Any:
        """The config's optimizer, once for the generator and once for the discriminator, and their schedules."""
        assert self._optimizer is not None
        optimizers = [self._optimizer(self.generator_parameters()), self._optimizer(self.discriminator_parameters())]
        return optimizers, [] if self._scheduler is None else list(map(self._scheduler, optimizers))

    def on_train_epoch_end(self) -> None:
        """Step the schedules, which Lightning leaves to manual optimization."""
        schedules = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()  # type: ignore[call-arg]  # none of them watches a metric

    def descend(self, which: int, loss: Tensor) -> None:
        """One step of optimizer number `which` down the loss."""
        optimizer = self.optimizers()[which]  # type: ignore[index]  # there are two
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

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
