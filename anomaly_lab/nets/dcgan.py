"""The convolutional networks of DCGAN (Radford, Metz and Chintala, ICLR 2016), which AnoGAN and GANomaly build on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly_lab.errors import ConfigError

_SLOPE = 0.2  # of the leaky ReLUs
_SMALLEST, _LARGEST = 3, 7  # side of the last feature map; 4 in the paper, 7 for an image of 224
_SPREAD = 0.02  # standard deviation of the initial weights


def last_side(image_size: int) -> tuple[int, int]:
    """The side of the last feature map, and how often the image is halved to get there: 4 and 4 for an image of 64.

    Raises:
        ConfigError: if halving the side does not lead to 3, 4, 5 or 7.
    """
    side, halvings = image_size, 0
    while side > 4 and side % 2 == 0:
        side, halvings = side // 2, halvings + 1
    if not (_SMALLEST <= side <= _LARGEST and halvings):
        raise ConfigError(
            f"dataset.image_size={image_size} cannot be halved down to 3, 4, 5 or 7 pixels; 32, 64, 128 and 224 can."
        )
    return side, halvings


class DownNet(nn.Module):
    """(B, 3, H, W) to (B, out): 4x4 convolutions of stride 2 with BN and leaky ReLUs, then one over what is left.

    Encoder and discriminator have this form. The first convolution has no BN.

    Args:
        image_size: H = W, see `last_side`.
        out: outputs of an image.
        width: channels after the first convolution, doubled by each further one; 64 in the paper.
    """

    def __init__(self, image_size: int, out: int, width: int) -> None:
        super().__init__()
        side, halvings = last_side(image_size)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(_SLOPE, inplace=True)]
        for _ in range(halvings - 1):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width)]
            layers += [nn.LeakyReLU(_SLOPE, inplace=True)]
            width *= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, out, side, bias=False)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature maps (B, C, side, side), and the outputs (B, out)."""
        features = self.features(image)
        return features, self.head(features).flatten(1)


class UpNet(nn.Module):
    """(B, d) to (B, 3, H, W) in [-1, 1]: the mirror of `DownNet`, with ReLUs and a tanh."""

    def __init__(self, image_size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        side, halvings = last_side(image_size)
        width *= 2 ** (halvings - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, width, side, bias=False)]
        for _ in range(halvings - 1):
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False))
            width //= 2
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latent vectors (B, d)."""
        image: Tensor = self.layers(z[:, :, None, None])
        return image


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, _SPREAD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, _SPREAD)
