"""What is measured: a composed configuration with its images, all in a folder that is thrown away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import seed_everything

from anomaly_lab.build import build_model
from anomaly_lab.config import Config, compose
from anomaly_lab.data.plan import DataPlan, make_plan
from anomaly_lab.data.store import CACHE_VARIABLE
from anomaly_lab.hardware import resolve_precision
from anomaly_lab.models.base import AnomalyModel


@dataclass(frozen=True)
class Setting:
    """A training configuration and its split.

    Attributes:
        folder: for whatever a measurement writes.
        repeats: how often each side is measured.
        seconds: how long one measurement of one side should take, about.
        epochs: of training before an AUROC is taken.
    """

    config: Config
    plan: DataPlan
    folder: Path
    repeats: int
    seconds: float
    epochs: int

    @property
    def batch_size(self) -> int:
        """Images in a batch."""
        return self.plan.load.batch_size

    def model(self) -> AnomalyModel:
        """The model with its first weights, the same ones at each call."""
        seed_everything(self.config["seed"], verbose=False)
        return build_model(self.config)

    def of_its_own(self, options: Sequence[str]) -> Setting:
        """Other options, measured as often and on the same hardware; the generated dataset unless they name one."""
        own = make_setting(options, self.folder, self.repeats, self.seconds, self.epochs)
        own.config["trainer"] = self.config["trainer"]
        return own


def make_setting(overrides: Sequence[str], folder: Path, repeats: int, seconds: float, epochs: int) -> Setting:
    """Compose the training configuration; the generated dataset is drawn into `folder` unless it has a root."""
    config = compose("train", overrides)
    config["trainer"]["precision"] = resolve_precision(config["trainer"]["precision"])
    if config["dataset"]["name"] == "synthetic" and config["dataset"]["root"] is None:
        config["dataset"]["root"] = str(folder / "synthetic")
    return Setting(config, make_plan(config["dataset"], tuple(config["allow"])), folder, repeats, seconds, epochs)


@contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Keep decoded images below `folder` for a while."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before


class Moment(NamedTuple):
    """Two clocks in seconds: the wall's, and the processor time of all threads of this process."""

    wall: float
    cpu: float

    def since(self, start: Moment) -> Moment:
        """How much time went by."""
        return Moment(self.wall - start.wall, self.cpu - start.cpu)


def now() -> Moment:
    """Both clocks, once a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Moment(time.perf_counter(), time.process_time())
