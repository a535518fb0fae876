"""AnoGAN (Schlegl, Seeboeck, Waldstein, Schmidt-Erfurth and Langs, Unsupervised anomaly detection with generative
adversarial networks to guide marker discovery, IPMI 2017), a baseline of P1 and of P2. Equations are that paper's."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from anomaly_lab.metrics.maps import map_scores
from anomaly_lab.models.base import checked
from anomaly_lab.models.gan import GAN, told_apart
from anomaly_lab.models.residual import residual_map
from anomaly_lab.nets.dcgan import DownNet, UpNet
from anomaly_lab.types import Batch, Prediction

Share = Annotated[float, Field(ge=0, le=1)]


class AnoGAN(GAN):
    """A DCGAN of normal images; an image's latent vector is searched for, and what the generator cannot make of it is
    taken for a defect.

    All images start their search at the same latent vector, drawn with the weights, so that an image's score does
    not depend on its neighbours; they are searched for together, a batch at a time.

    Args:
        image_size: side of the square input in pixels, 4 or 7 times a power of 2; 64 in the paper.
        latent_dim: size of z.
        width: channels of the first convolution.
        search_steps: of the search; 500 in the paper.
        search_lr: learning rate of the search, by Adam.
        discrimination_weight: lambda of Eq. 5, in [0, 1]; 0.1 in the paper.
    """

    primary_score = "anomaly"  # Eq. 6
    exportable = False
    score_names = ("anomaly", "residual", "discrimination", "max", "top", "peak")
    latent_names = ("z",)

    start: Tensor
    shown: Tensor

    @checked
    def __init__(
        self,
        *,
        image_size: int,
        latent_dim: PositiveInt,
        width: PositiveInt,
        search_steps: NonNegativeInt,
        search_lr: PositiveFloat,
        discrimination_weight: Share,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.generator = UpNet(image_size, latent_dim, width)
        self.discriminator = DownNet(image_size, 1, width)
        self.search_steps, self.search_lr = search_steps, search_lr
        self.discrimination_weight = discrimination_weight
        self.register_buffer("start", torch.randn(1, latent_dim))
        self.register_buffer("shown", torch.randn(8, latent_dim))  # whose images are logged

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Eq. 1: a step of the generator up the discriminator's mistake, then one of the discriminator."""
        x, _ = self.normalise(batch["image"])
        z = torch.randn(len(x), self.start.shape[1], device=x.device)
        with self.turn("generator") as descend:
            made = self.generator(z)
            logits = self.discriminator(made)[1]
            generator = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
            descend(generator)
        with self.turn("discriminator") as descend:
            discriminator = told_apart(self.discriminator(x)[1], self.discriminator(made.detach())[1])
            descend(discriminator)
        self.log_losses(generator, {"discriminator": discriminator}, batch_size=len(x))

    def search_terms(self, x: Tensor, features: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """G(z) (B, 3, H, W), the residual loss (Eq. 2) and the discrimination loss (Eq. 4), both (B,).

        `features` are the discriminator's of x. Sums of absolute differences over pixels and over features.
        """
        made = self.generator(z)
        residual = (x - made).abs().flatten(1).sum(1, dtype=torch.float32)
        discrimination = (features - self.discriminator(made)[0]).abs().flatten(1).sum(1, dtype=torch.float32)
        return made, residual, discrimination

    def search(self, x: Tensor) -> Tensor:
        """Latent vectors (B, d) after `search_steps` down Eq. 5, for images (B, 3, H, W) in [-1, 1]."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()  # a tensor made in inference mode knows no gradients
            with torch.no_grad():
                features = self.discriminator(x)[0]
            z = self.start.detach().clone().repeat(len(x), 1).requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.search_lr)
            for _ in range(self.search_steps):
                _, residual, discrimination = self.search_terms(x, features, z)
                (z.grad,) = torch.autograd.grad(self._anomaly(residual, discrimination).sum(), [z])
                optimizer.step()
            return z.detach()

    def predict(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W) in [0, 1] by A (Eq. 6) and its parts, each divided by the number of pixel values.

        The map is the residual |x - G(z)|.
        """
        x, restore = self.normalise(image)
        z = self.search(x)
        made, residual, discrimination = self.search_terms(x, self.discriminator(x)[0], z)
        made, values = made.float(), x[0].numel()
        difference = residual_map(x, made, "l1")
        of_map = map_scores(difference)
        scores = {
            "anomaly": self._anomaly(residual, discrimination) / values,
            "residual": residual / values,
            "discrimination": discrimination / values,
            **{name: of_map[name] for name in ("max", "top", "peak")},
        }
        return Prediction(scores, difference, restore(made), {"z": z})

    def samples(self, image: Tensor) -> Tensor:
        """Images of latent vectors that stay the same."""
        made: Tensor = self.generator(self.shown)
        return ((made.float() + 1) / 2).clamp(0, 1)

    def _anomaly(self, residual: Tensor, discrimination: Tensor) -> Tensor:
        """Eq. 5, and Eq. 6 after the search."""
        weight = self.discrimination_weight
        return (1 - weight) * residual + weight * discrimination
