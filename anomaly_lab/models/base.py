"""What all methods share: input normalisation, optimizers from the config, and evaluation, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from pydantic import ConfigDict, validate_call
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anomaly_lab.errors import require
from anomaly_lab.metrics.evaluation import Evaluation
from anomaly_lab.ranks import mean_over_ranks, sum_over_ranks
from anomaly_lab.types import Batch, Prediction

InputNorm = Literal["none", "per_image"]
Restore = Callable[[Tensor], Tensor]

# On a model's constructor: an option of another type or out of its range is an error that names it.
checked = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))


class AnomalyModel(LightningModule, ABC):
    """A method that scores images; a subclass has its networks, its training step and `predict`.

    Args:
        optimizer: partial of an optimizer, called with the parameters that learn; None where none does.
        scheduler: partial of a learning rate schedule, stepped once an epoch, or None.
        input_norm: `per_image` brings each image to zero mean and unit variance before the network,
            which takes exposure and contrast out of what is compared.
        score: which of `score_names` counts, for thresholds and `image_auroc`; None for the method's own.
    """

    primary_score: str  # the score that counts; a subclass names the method's own
    score_names: ClassVar[tuple[str, ...]]
    latent_names: ClassVar[tuple[str, ...]] = ()
    fits_once: ClassVar[bool] = False  # one pass over the training images is all
    has_map: ClassVar[bool] = True
    exportable: ClassVar[bool] = True  # its scores are one pass, without gradients
    streams: ClassVar[tuple[str, ...]] = ("unlabelled", "all")  # of one of which its batches come
    pixel_threshold: ClassVar[float | None] = None  # of the anomaly map; None: fitted on labelled images
    map_is_probability: ClassVar[bool] = False
    losses_in_bar: ClassVar[tuple[str, ...]] = ()  # terms that the progress bar shows beside the loss

    @checked
    def __init__(
        self,
        *,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        input_norm: InputNorm = "none",
        score: str | None = None,
    ) -> None:
        super().__init__()
        if score is not None:
            require("model.score", score, self.score_names)
            self.primary_score = score
        self._optimizer, self._scheduler, self._input_norm = optimizer, scheduler, input_norm
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images to score than ranks
        self._loss_sums: Tensor | None = None  # of the terms, each times its images, and last the images
        self.evaluation = Evaluation(self.score_names, self.latent_names, probability=self.map_is_probability)

    @abstractmethod
    def predict(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1]; the module is in eval mode."""

    def configure_optimizers(self) -> Any:
        """The config's optimizer over the parameters that learn, and its schedule."""
        if self._optimizer is None:
            return None
        optimizer = self._optimizer(p for p in self.parameters() if p.requires_grad)
        return optimizer if self._scheduler is None else ([optimizer], [self._scheduler(optimizer)])

    def normalise(self, image: Tensor) -> tuple[Tensor, Restore]:
        """The network's input (B, 3, H, W), and the way back to the scale of the image."""
        if self._input_norm == "none":
            return image, lambda x: x
        if torch.compiler.is_exporting():  # ONNX Runtime adds up naively: 50,000 values in one go are off by 1e-5
            mean, count = _mean_by_rows(image), image[0].numel()
            std = (_mean_by_rows((image - mean).square()) * (count / (count - 1))).sqrt()
        else:
            mean, std = image.mean((1, 2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)
        std = std.clamp_min(1e-3)  # a blank image stays blank
        return (image - mean) / std, lambda x: x * std + mean

    def after_step(self) -> None:
        """What follows a training step, once batch norm's statistics agree on all ranks."""

    def on_train_epoch_start(self) -> None:
        """Forget the losses of an epoch that was cut off."""
        self._loss_sums = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses of an epoch that is not over, of all ranks, as each one's share."""
        checkpoint["loss_sums"] = None if self._loss_sums is None else mean_over_ranks(self._loss_sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self._loss_sums = checkpoint.get("loss_sums")

    def log_losses(self, loss: Tensor, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Keep the epoch's mean of the loss and of its terms, over all ranks, for the progress bar and the curves."""
        if self._trainer is None:  # a training step called by hand
            return
        # `self.log` looks through all that is logged at each call: in every step it took longer than all else here
        sums = torch.stack([value.detach().float() for value in (loss, *terms.values(), loss.new_ones(()))])
        sums = sums * batch_size
        self._loss_sums = sums if self._loss_sums is None else self._loss_sums.to(sums) + sums  # from a checkpoint
        if self.trainer.is_last_batch:
            *means, images = sum_over_ranks(self._loss_sums)
            for name, mean in zip(("loss", *(f"loss_{name}" for name in terms)), means, strict=True):
                in_bar = name == "loss" or name.removeprefix("loss_") in self.losses_in_bar
                self.log(name, mean / images, prog_bar=in_bar, on_step=False, on_epoch=True, batch_size=1)

    def global_mean(self, values: Tensor) -> Tensor:
        """The mean over dimension 0 of (B, ...) and over all ranks."""
        total = sum_over_ranks(torch.cat([values.sum(0).flatten(), values.new_tensor([len(values)])]))
        return (total[:-1] / total[-1]).view_as(values[0])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the scores of one batch."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Gather the scores of one batch."""
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the epoch before."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # a DefectDataModule
        self.evaluation.start(data.tiling, data.frames("val"))

    def on_validation_epoch_end(self) -> None:
        """Log how well painted defects are told from the held-out normal images."""
        from sklearn.metrics import roc_auc_score

        found = self.evaluation.compute()
        label, scores = found.label, found.columns[self.primary_score]
        computable = len(np.unique(label)) == 2 and np.isfinite(scores).all()
        auroc = roc_auc_score(label, scores) if computable else float("nan")
        self.log("val_image_auroc", float(auroc), prog_bar=True)

    def _evaluate(self, batch: Batch) -> None:
        self.evaluation.update(batch, self.predict(batch["image"]))


def _mean_by_rows(image: Tensor) -> Tensor:
    """The mean of each image (B, C, H, W), as (B, 1, 1, 1)."""
    return image.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)
