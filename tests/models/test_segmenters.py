"""UNet, AE+UNet, Pi-model and Mean Teacher, on hand-made numbers."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from anomaly_lab.build import build_model
from anomaly_lab.config import compose
from anomaly_lab.errors import ConfigError
from anomaly_lab.models.unet import cross_entropy, disagreement
from anomaly_lab.nets.motion import RigidMotion


def build(name, *overrides):
    torch.manual_seed(0)
    return build_model(compose("train", [f"model={name}", "dataset.image_size=32", "model.width=4", *overrides]))


def batch(count=3, size=32):
    mask = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    mask[:, :, 4:12, 6:20] = 1
    mask[:, :, :2] = 255
    return {"image": torch.rand(count, 3, size, size), "mask": mask}


def test_cross_entropy_is_eq_5_over_the_pixels_that_are_known():
    logits = torch.tensor([0.0, 2.0, -1.0, 50.0]).view(1, 1, 2, 2)
    mask = torch.tensor([1, 0, 1, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    p = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0, -1.0)]
    by_hand = -(math.log(p[0]) + math.log(1 - p[1]) + math.log(p[2])) / 3
    assert cross_entropy(logits, mask).item() == pytest.approx(by_hand, rel=1e-6)
    assert cross_entropy(logits, torch.full_like(mask, 255)).item() == 0


def test_a_certain_wrong_pixel_has_a_finite_gradient():
    logits = torch.full((1, 1, 2, 2), -200.0, requires_grad=True)
    cross_entropy(logits, torch.ones(1, 1, 2, 2, dtype=torch.uint8)).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad < 0).all()


@pytest.mark.parametrize(("inputs", "channels"), [("image", 3), ("difference", 3), ("image+difference", 6)])
def test_the_unet_sees_what_inputs_say(inputs, channels):
    model = build("ae_unet", "model.latent_dim=4", f"model.inputs={inputs}").eval()
    assert model.unet.down[0][0].in_channels == channels
    seen = []
    model.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(2, 3, 32, 32)
    prediction = model.predict(image)
    difference = (image - prediction.reconstruction).abs()
    expected = {"image": image, "difference": difference, "image+difference": torch.cat([image, difference], 1)}
    torch.testing.assert_close(seen[0], expected[inputs])
    torch.testing.assert_close(model.autoencoder.predict(image).reconstruction, prediction.reconstruction)


def test_the_first_stage_is_frozen():
    model = build("ae_unet", "model.latent_dim=4")
    model.train()
    assert not model.autoencoder.training
    before = copy.deepcopy(model.autoencoder.state_dict())
    optimizer = model.configure_optimizers()[0][0]
    model.training_step(batch(), 0).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.autoencoder.state_dict().items())
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learning == {id(p) for p in model.unet.parameters()}


def test_the_pi_model_s_loss_is_what_two_views_say():
    model = build("pi_model", "model.norm=batch", "model.consistency_weight=2.0").train()
    both = {"labelled": batch(2), "unlabelled": batch(3)}
    torch.manual_seed(5)
    loss = model.training_step(both, 0)
    reference = build("pi_model", "model.norm=batch", "model.consistency_weight=2.0").train()
    torch.manual_seed(5)
    image = torch.cat([both["labelled"]["image"], both["unlabelled"]["image"]])
    motion = RigidMotion.draw(5, rotate=15, translate=0.1, flip="none", device=image.device)
    first = reference(image)
    second = torch.sigmoid(reference(motion(image)))
    grid = F.affine_grid(motion.matrix, [5, 1, 32, 32], align_corners=False)
    moved = F.grid_sample(torch.sigmoid(first), grid, padding_mode="reflection", align_corners=False)
    supervised = cross_entropy(first[:2], both["labelled"]["mask"])
    apart = (second - moved).square()[motion.inside(first)].mean()
    torch.testing.assert_close(loss, supervised + 2 * apart, atol=1e-6, rtol=1e-5)


def test_a_network_that_does_not_care_how_the_image_lies_is_consistent():
    model = build("pi_model", "model.levels=1", "model.norm=none").eval()
    with torch.no_grad():
        for layer in model.unet.down[0]:
            if hasattr(layer, "weight"):  # 1x1 in effect
                centre = layer.weight[:, :, 1:2, 1:2].clone()
                layer.weight.zero_()[:, :, 1:2, 1:2] = centre
    smooth = {"image": F.interpolate(torch.rand(4, 3, 3, 3), size=32, mode="bicubic"), "mask": batch(4)["mask"]}
    apart = model.training_step({"labelled": smooth, "unlabelled": smooth}, 0) - cross_entropy(
        model(smooth["image"]), smooth["mask"]
    )
    assert apart.item() < 1e-5


def test_the_ramp_up_is_laine_and_aila_s():
    class Trainer:
        max_epochs = 100
        current_epoch = 0

    model = build("pi_model", "model.rampup=0.5", "model.consistency_weight=3.0")
    model._trainer = trainer = Trainer()
    weights = []
    for trainer.current_epoch in (0, 25, 50, 99):
        model._trainer = trainer
        weights.append(model._weight())
    assert weights == pytest.approx([3 * math.exp(-5), 3 * math.exp(-1.25), 3, 3])


def test_the_teacher_is_the_moving_average_with_its_batch_norm_statistics():
    model = build("mean_teacher", "model.norm=batch", "model.ema_decay=0.9").train()
    optimizer = torch.optim.SGD(model.unet.parameters(), lr=0.1)
    expected = None
    for _ in range(4):
        optimizer.zero_grad()
        model.training_step({"labelled": batch(2), "unlabelled": batch(2)}, 0).backward()
        optimizer.step()
        model.after_step()
        student = {k: v.detach().clone() for k, v in model.unet.state_dict().items() if v.is_floating_point()}
        if expected is None:
            expected = student  # the first update copies
        else:
            expected = {name: 0.9 * value + 0.1 * student[name] for name, value in expected.items()}
    teacher = model.teacher.module.state_dict()
    assert any("running_mean" in name for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(teacher[name], value, atol=1e-6, rtol=1e-5)


def test_the_teacher_predicts_in_eval_mode_and_takes_no_gradient():
    model = build("mean_teacher", "model.norm=batch").train()
    assert model.unet.training
    assert not any(module.training for module in model.teacher.modules())
    before = copy.deepcopy(model.teacher.state_dict())
    model.training_step({"labelled": batch(2), "unlabelled": batch(2)}, 0).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(p.grad is None for p in model.teacher.parameters())
    model.eval()
    with torch.no_grad():
        model.unet.head.bias += 5  # the student's opinion does not count
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.predict(image).anomaly_map, torch.sigmoid(model.teacher(image)))


def test_image_scores_are_the_map_s():
    model = build("unet").eval()
    with torch.inference_mode():
        found = model.predict(torch.rand(3, 3, 32, 32))
    pixels = found.anomaly_map.flatten(1)
    assert torch.equal(found.scores["max"], pixels.max(1).values)
    assert torch.equal(found.scores["mean"], pixels.mean(1))
    torch.testing.assert_close(found.scores["top"], pixels.sort(1).values[:, -10:].mean(1))


def test_ae_unet_s_consistency_is_added_by_its_weight():
    model = build("ae_unet", "model.latent_dim=4", "model.consistency_weight=3.0")
    labelled = batch(2)
    torch.manual_seed(1)
    loss = model.training_step(labelled, 0)
    torch.manual_seed(1)
    motion = RigidMotion.draw(2, rotate=15, translate=0.1, flip="none", device=labelled["image"].device)
    logits = model(labelled["image"])
    expected = cross_entropy(logits, labelled["mask"]) + 3 * disagreement(
        model, labelled["image"], torch.sigmoid(logits), motion
    )
    torch.testing.assert_close(loss, expected)
    literal = build("ae_unet", "model.latent_dim=4")
    torch.testing.assert_close(literal.training_step(labelled, 0), cross_entropy(logits, labelled["mask"]))


@pytest.mark.parametrize(
    ("model", "streams"),
    [
        ("unet", "[unlabelled]"),
        ("unet", "[all]"),
        ("unet", "[labelled,unlabelled]"),
        ("pi_model", "[labelled]"),
        ("dpae", "[labelled]"),
    ],
)
def test_a_stream_that_a_method_cannot_learn_from_is_named(model, streams):
    with pytest.raises(ConfigError, match=r"dataset\.learns_from=.* is unknown. .*Known: "):
        build_model(compose("train", [f"model={model}", f"dataset.learns_from={streams}", "dataset.image_size=32"]))
