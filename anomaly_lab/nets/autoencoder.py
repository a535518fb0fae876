"""Convolutional encoder and decoder between an image and a latent vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from anomaly_lab.errors import ConfigError

LatentNorm = Literal["affine", "plain", "none"]
OutputActivation = Literal["leaky_relu", "sigmoid", "tanh", "none"]

_OUTPUTS: dict[OutputActivation, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def feature_size(image_size: int, halvings: int = 5) -> int:
    """The side of the feature map after `halvings` strides of 2, 7 for an image of 224.

    Raises:
        ConfigError: if the image cannot be halved that often.
    """
    step: int = 2**halvings
    if image_size < step or image_size % step:
        nearest = max(step, round(image_size / step) * step)
        raise ConfigError(f"dataset.image_size={image_size} is no multiple of {step}; {nearest} is the nearest.")
    return image_size // step


class Encoder(nn.Module):
    """(B, 3, H, W) to a latent vector (B, d): strided convolutions, then linear + BN (P1 Fig. 3)."""

    def __init__(
        self, image_size: int, latent_dim: int, channels: Sequence[int], latent_norm: LatentNorm = "affine"
    ) -> None:
        super().__init__()
        side = feature_size(image_size, len(channels))
        blocks: list[nn.Module] = []
        for before, after in zip([3, *channels], channels, strict=False):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after)]
            blocks += [nn.LeakyReLU(inplace=True)]
        self.features = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels[-1] * side * side, latent_dim)
        self.norm = (
            nn.Identity() if latent_norm == "none" else nn.BatchNorm1d(latent_dim, affine=latent_norm == "affine")
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) as latent vectors (B, d)."""
        latent: Tensor = self.norm(self.linear(self.features(image).flatten(1)))
        return latent


class Decoder(nn.Module):
    """A latent vector (B, d) to (B, 3, H, W): linear + BN, then 3x3 deconvolutions of stride 2 (P1 Table 1).

    P1's Table 1 prints the channels d, d, 256, 128, 3, with BN and leaky ReLU after each deconvolution,
    the last one included.
    """

    def __init__(
        self,
        image_size: int,
        latent_dim: int,
        channels: Sequence[int],
        output_norm: bool = True,
        output: OutputActivation = "leaky_relu",
    ) -> None:
        super().__init__()
        side = feature_size(image_size, len(channels) + 1)
        first = channels[0]
        self.linear = nn.Sequential(
            nn.Linear(latent_dim, first * side * side, bias=False), nn.BatchNorm1d(first * side * side)
        )
        self.shape = (first, side, side)
        blocks: list[nn.Module] = []
        for before, after in zip([first, *channels], channels, strict=False):
            blocks += [_deconv(before, after, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(inplace=True)]
        blocks.append(_deconv(channels[-1], 3, bias=not output_norm))
        if output_norm:
            blocks.append(nn.BatchNorm2d(3))
        blocks.append(_OUTPUTS[output]())
        self.features = nn.Sequential(*blocks)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode latent vectors (B, d) as images (B, 3, H, W)."""
        image: Tensor = self.features(self.linear(latent).unflatten(1, self.shape))
        return image


def _deconv(before: int, after: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1, bias=bias)
