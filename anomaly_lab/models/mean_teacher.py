"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) as P2 compares with."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anomaly_lab.metrics.maps import map_scores
from anomaly_lab.models.base import checked
from anomaly_lab.models.pi_model import PiModel
from anomaly_lab.types import Prediction


class MeanTeacher(PiModel):
    """A UNet that has to agree with the moving average of itself, its teacher, which also is what predicts.

    Args:
        ema_decay: of the teacher's weights, for each training step.
    """

    @checked
    def __init__(self, *, ema_decay: NonNegativeFloat, **pi_model: Any) -> None:
        super().__init__(**pi_model)
        # batch norm's running statistics are averaged as the weights are: those of the student fit the student only
        average = get_ema_multi_avg_fn(ema_decay)  # type: ignore[no-untyped-call]  # torch's
        self.teacher = AveragedModel(self.unet, multi_avg_fn=average, use_buffers=True)
        self.teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MeanTeacher:
        """The teacher never trains: it neither takes gradients nor moves batch norm's statistics."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def second_opinion(self, image: Tensor, logits: Tensor) -> Tensor:
        """The teacher's map (B, 1, H, W)."""
        return torch.sigmoid(self._teach(image))

    def after_step(self) -> None:
        """Move the teacher towards the student."""
        self.teacher.update_parameters(self.unet)

    def predict(self, image: Tensor) -> Prediction:
        """The teacher's maps of probabilities, and image scores from them."""
        probability = torch.sigmoid(self._teach(image))
        return Prediction(scores=map_scores(probability), anomaly_map=probability)

    def _teach(self, image: Tensor) -> Tensor:
        x, _ = self.normalise(image)
        teacher: nn.Module = self.teacher
        logits: Tensor = teacher(x)
        return logits.float()
