"""The autoencoder and PCA, beside independent computations."""

import numpy as np
import pytest
import torch
from sklearn import decomposition

from anomaly_lab.build import build_model
from anomaly_lab.config import compose
from anomaly_lab.errors import ConfigError
from anomaly_lab.models.residual import residual_map, ssim
from anomaly_lab.nets.bergmann import BergmannAutoencoder


def build(name, *overrides):
    torch.manual_seed(0)
    return build_model(compose("train", [f"model={name}", "dataset.image_size=32", "model.latent_dim=5", *overrides]))


def test_the_autoencoder_is_bergmann_s_table_1():
    net = BergmannAutoencoder(128, 100)
    convolutions = [m for m in net.encoder if isinstance(m, torch.nn.Conv2d)]
    sizes, image = [], torch.rand(1, 3, 128, 128)
    for layer in net.encoder:
        image = layer(image)
        if isinstance(layer, torch.nn.Conv2d):
            sizes.append(tuple(image.shape[1:]))
    assert sizes == [
        *((32, 64, 64), (32, 32, 32), (32, 32, 32), (64, 16, 16), (64, 16, 16), (128, 8, 8), (64, 8, 8), (32, 8, 8)),
        (100, 1, 1),
    ]
    assert [c.kernel_size[0] for c in convolutions] == [4, 4, 3, 4, 3, 4, 3, 3, 8]
    reconstruction, z = net(torch.rand(2, 3, 128, 128))
    assert reconstruction.shape == (2, 3, 128, 128)
    assert z.shape == (2, 100)


def test_losses_are_eq_2_and_one_minus_ssim():
    batch = {"image": torch.rand(3, 3, 32, 32)}
    model = build("ae")
    x_hat, _ = model(batch["image"])
    by_hand = ((batch["image"] - x_hat) ** 2).sum() / (3 * 32 * 32 * 3)
    torch.testing.assert_close(model.training_step(batch, 0), by_hand)
    model = build("ae", "model.loss=ssim")
    loss = model.training_step(batch, 0)
    assert 0 < loss < 2
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", ["none", "per_image"])
def test_ssim_is_that_of_the_images_whatever_the_network_sees(norm):
    """Its constants are for images in [0, 1]: on standardised ones the grain of a flat image would count in full."""
    image = 0.5 + 0.01 * torch.rand(2, 3, 32, 32)
    model = build("ae", "model.loss=ssim", "model.residual=ssim", f"model.input_norm={norm}").eval()
    expected = 1 - ssim(image, model.reconstruct(image))
    torch.testing.assert_close(model.training_step({"image": image}, 0), expected.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.predict(image).anomaly_map, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["l1", "l2", "ssim"])
def test_residuals(kind):
    image = torch.rand(2, 3, 32, 32)
    assert residual_map(image, image, kind).abs().max() < 1e-5
    other = image.clone()
    other[:, :, 10:14, 10:14] += 0.5
    residual = residual_map(image, other, kind)
    assert residual.shape == (2, 1, 32, 32)
    assert residual[:, :, 10:14, 10:14].mean() > 10 * residual[:, :, 25:, 25:].abs().mean()
    if kind != "ssim":
        torch.testing.assert_close(residual[:, :, 11, 11], torch.full((2, 1), {"l1": 0.5, "l2": 0.25}[kind]))


def test_pca_is_scikit_learn_s():
    model = build("pca")
    images = torch.rand(20, 5) @ torch.rand(5, 3 * 32 * 32) / 5 + 0.001 * torch.rand(20, 3 * 32 * 32)
    model.fit(images)
    reference = decomposition.PCA(5, svd_solver="full").fit(images.numpy())
    new = torch.rand(4, 3, 32, 32)
    flat = new.flatten(1).numpy()
    expected = reference.inverse_transform(reference.transform(flat)).reshape(4, 3, 32, 32)
    found = model.eval().predict(new)
    np.testing.assert_allclose(found.reconstruction, expected, atol=1e-3)  # a randomised solver
    inside = model.predict(torch.from_numpy(reference.mean_).view(1, 3, 32, 32))
    assert inside.anomaly_map.abs().max() < 1e-5


def test_more_components_than_images_is_an_error():
    with pytest.raises(ConfigError, match=r"latent_dim=5 components.*4 training images: set model\.latent_dim=2"):
        build("pca").fit(torch.rand(4, 3 * 32 * 32))


def test_ssim_is_scikit_image_s():
    from skimage.metrics import structural_similarity

    a, b = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)).chunk(2)
    b = (a + b / 4).clamp(0, 1)
    pair = [image[0].permute(1, 2, 0).double().numpy() for image in (a, b)]
    _, expected = structural_similarity(
        *pair, win_size=11, use_sample_covariance=False, data_range=1.0, channel_axis=-1, full=True
    )
    inside = (slice(5, -5), slice(5, -5))  # at the border the two extend the image differently
    np.testing.assert_allclose(ssim(a, b)[0, 0].numpy()[inside], expected.mean(-1)[inside], atol=1e-4)


def test_ssim_of_constant_images_has_finite_gradients():
    image = torch.full((1, 3, 32, 32), 0.5)
    made = image.clone().requires_grad_()
    (1 - ssim(image, made)).mean().backward()
    assert made.grad.isfinite().all()


def test_ssim_keeps_its_precision_under_autocast_and_for_bf16():
    """Variances are differences of nearly equal numbers: in bf16 nothing of them is left."""
    grain = 0.5 + 0.02 * torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    made = grain.roll(1, -1)
    expected = ssim(grain, made)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ssim(grain, made), expected)
    rounded = grain.bfloat16()
    torch.testing.assert_close(ssim(rounded, rounded), torch.ones_like(expected))
