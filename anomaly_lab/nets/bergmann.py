"""The convolutional autoencoder of Bergmann et al. (Improving unsupervised defect segmentation by applying structural
similarity to autoencoders, VISAPP 2019, Table 1), reference [13] of P2."""

from __future__ import annotations

from torch import Tensor, nn

from anomaly_lab.nets.autoencoder import feature_size

# kernel, stride, channels; the last one, to the latent vector, covers what is left of the image
_LAYERS = ((4, 2, 32), (4, 2, 32), (3, 1, 32), (4, 2, 64), (3, 1, 64), (4, 2, 128), (3, 1, 64), (3, 1, 32))
_SLOPE = 0.2  # of the leaky ReLUs


class BergmannAutoencoder(nn.Module):
    """(B, 3, H, W) to (B, 3, H, W) through a latent vector (B, d).

    The paper's input is 128x128, which leaves 8x8 before the last convolution; P2's is 256x256, which leaves 16x16.

    Args:
        image_size: H = W, a multiple of 16.
        latent_dim: d; 100 in the paper, 500 in P2.
    """

    def __init__(self, image_size: int, latent_dim: int) -> None:
        super().__init__()
        side = feature_size(image_size, halvings=4)
        channels = [3, *(wide for _, _, wide in _LAYERS)]
        encoder: list[nn.Module] = []
        for before, (kernel, stride, after) in zip(channels, _LAYERS, strict=False):
            encoder += [nn.Conv2d(before, after, kernel, stride, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(channels[-1], latent_dim, side))
        decoder: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, channels[-1], side)]
        for after, (kernel, stride, before) in zip(channels[-2::-1], _LAYERS[::-1], strict=True):
            decoder += [
                nn.LeakyReLU(_SLOPE, inplace=True),
                nn.ConvTranspose2d(before, after, kernel, stride, padding=1),
            ]
        self.decoder = nn.Sequential(*decoder)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction (B, 3, H, W), unbounded, and z (B, d)."""
        z = self.encoder(image)
        return self.decoder(z), z.flatten(1)
