"""What happens around a training: its curves, its random numbers, averaged weights, an end when the loss is none."""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.utils import save_image

from anomaly_lab.errors import TrainingError
from anomaly_lab.files import write_text
from anomaly_lab.ranks import mean_over_ranks, sum_over_ranks, world_size


class History(Callback):
    """The epochs' losses and seconds, as a CSV file; kept in the checkpoint, so a resumed run has them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._elapsed = 0.0  # of an epoch that was cut off
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Time spent in finished training epochs."""
        return sum(row["seconds"] for row in self.rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock where it was stopped; an epoch that goes on in the middle has no start."""
        self._started = time.perf_counter() - self._elapsed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row, or stop; checkpoints are written after this, so the last good one stays.

        Raises:
            TrainingError: if the epoch's mean loss, or a weight, is not finite.
        """
        losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        if not math.isfinite(losses["loss"]):
            kept = "the checkpoint of the epoch before is kept" if self.rows else "there is no checkpoint yet"
            raise TrainingError(
                f"The loss became {losses['loss']} in epoch {epoch} of {trainer.max_epochs}; {kept}. Try a lower "
                f"model.optimizer.lr, or model.reduction=mean where the method has it."
            )
        if not all(torch.isfinite(p).all() for p in pl_module.parameters()):
            raise TrainingError(
                f"A weight is no longer a finite number after epoch {epoch} of {trainer.max_epochs}; the checkpoint of "
                "the epoch before, if there is one, is kept. Try a lower model.optimizer.lr."
            )
        self.rows.append({"epoch": epoch, "seconds": self._clock(), **losses})
        self._started = None
        if trainer.is_global_zero:
            write_text(self.path, self._csv())

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, plain values only."""
        return {"rows": self.rows, "elapsed": self._clock()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the rows of an interrupted run."""
        self.rows, self._elapsed = list(state_dict["rows"]), state_dict.get("elapsed", 0.0)

    def _clock(self) -> float:
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in self.rows for name in row)))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        return text.getvalue()


class SaveWhenTerminated(Callback):
    """Saves and stops after the step in which SIGTERM comes, as clusters send it some time before SIGKILL.

    The same command goes on with the next step.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._told = path, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in the place of Lightning, which gives the signal back as it was after the training."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._tell)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save and stop, on all ranks after the same step; what is fitted at once begins anew.

        The last step of an epoch is followed by a checkpoint anyway, and then by a stop.

        Raises:
            KeyboardInterrupt: once saved.
        """
        if not trainer.is_last_batch and self._is_told():
            if not pl_module.fits_once:
                trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before what was trained is scored."""
        self._stop()

    def _stop(self) -> None:
        if self._is_told():
            raise KeyboardInterrupt

    def _is_told(self) -> bool:
        return bool(sum_over_ranks(torch.tensor(float(self._told))))

    def _tell(self, *_: object) -> None:
        self._told = True


class AfterStep(Callback):
    """What follows a step: all ranks get the mean of their batch norms' running statistics, and the model has its say.

    Where `SyncBatchNorm` normalises by the whole batch, on GPUs, the statistics agree already.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average, then let the model go on, before anything is saved."""
        if world_size() > 1:
            self._average(pl_module)
        pl_module.after_step()  # type: ignore[operator]  # an AnomalyModel

    @staticmethod
    def _average(model: LightningModule) -> None:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        statistics = [s for m in layers for s in (m.running_mean, m.running_var) if s is not None]
        if not statistics:
            return
        means = mean_over_ranks(torch.cat(statistics))
        for old, new in zip(statistics, torch.split(means, [len(s) for s in statistics]), strict=True):
            old.copy_(new)


class AveragedWeights(WeightAveraging):
    """Keeps an exponential moving average of weights and batch norm's statistics, which `val` judges and the run keeps.

    Args:
        decay: of the average with each step. Early on it is (1 + steps) / (10 + steps), so that a short training's
            average is not of its first steps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._move)
        self.decay = decay

    @torch.no_grad()
    def _move(self, averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        if averages[0].is_floating_point():
            count = int(steps)
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + count) / (10 + count)))
        else:  # batch norm's count of batches
            torch._foreach_copy_(averages, weights)


class ProgressBar(RichProgressBar):
    """Counts epochs from 1, as curves.csv and everything else a person sees does."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


class Samples(Callback):
    """Saves pictures of what a GAN has learnt after epochs 1, 2, 4, 8 and so on, and after the last one.

    Args:
        folder: where `epoch_0001.png` and so on go.
        image: what the model is shown, (N, 3, H, W) in [0, 1].
    """

    def __init__(self, folder: Path, image: Tensor) -> None:
        self.folder, self.image = folder, image

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, in evaluation mode, and leave the model as it was."""
        epoch = trainer.current_epoch + 1
        is_power_of_two = epoch & (epoch - 1) == 0
        if not trainer.is_global_zero or not (is_power_of_two or epoch == trainer.max_epochs):
            return
        pl_module.eval()
        with torch.inference_mode():
            image = self.image.to(next(pl_module.parameters()))  # its device and precision
            pictures = pl_module.samples(image)  # type: ignore[operator]  # a GAN's
        pl_module.train()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(pictures, self.folder / f"epoch_{epoch:04}.png", nrow=8)


class SeedEachBatch(Callback):
    """Seed torch by (seed, epoch, batch, rank), so that a resumed training draws what an undisturbed one does."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the batch."""
        key = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        if pl_module.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also formats a traceback per absent GPU
        else:
            torch.manual_seed(seed)
