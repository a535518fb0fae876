import json
from functools import partial

import numpy as np
import pytest
import torch

from anomaly_lab.build import build_model
from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.errors import ConfigError
from anomaly_lab.models.dpae import DPAE


def dpae(**options):
    defaults = {
        "image_size": 32,
        "latent_dim": 4,
        "encoder_channels": [4, 4, 4, 8, 8],
        "decoder_channels": [None, None, 8, 4],
        "rec_weight": 1.0,
        "prototype_weight": 1.0,
        "prototype_hat_weight": 1.0,
        "latent_weight": 0.0,
        "reduction": "sum",
        "prototype_rate": 0.5,
        "latent_norm": "affine",
        "output_norm": True,
        "output": "leaky_relu",
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }
    torch.manual_seed(0)
    return DPAE(**{**defaults, **options})


def batch(count=6):
    return {"image": torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def by_hand(model, x, m=1.0):
    """Eq. 9 written out as sums over the batch, for a model in train mode; m divides each sum."""
    x_hat, z, z_hat = model(x)
    v, v_hat = model.prototype.clone(), model.prototype_hat.clone()
    rec = sum(((x[i] - x_hat[i]) ** 2).sum() for i in range(len(x)))
    first = sum(((z[i] - v) ** 2).sum() for i in range(len(x)))
    second = sum(((z_hat[i] - v_hat) ** 2).sum() for i in range(len(x)))
    return rec, first, second, ((z - z_hat) ** 2).sum(), z, z_hat, v, v_hat


def test_the_literal_loss_is_equation_9():
    model = dpae(prototype_weight=2.0, prototype_hat_weight=3.0).train()
    x = batch()["image"]
    rec, first, second, *_ = by_hand(model, x)
    loss = model.training_step(batch(), 0)
    torch.testing.assert_close(loss, rec + 2.0 / 2 * first + 3.0 / 2 * second)


def test_the_mean_reduction_divides_each_sum_by_its_elements():
    model = dpae(reduction="mean", latent_weight=0.7, rec_weight=0.5).train()
    x = batch()["image"]
    rec, first, second, between, *_ = by_hand(model, x)
    expected = 0.5 * rec / x.numel() + (first / 2 + second / 2 + 0.7 * between) / (len(x) * 4)
    torch.testing.assert_close(model.training_step(batch(), 0), expected)


def test_the_prototypes_move_by_equation_7_and_by_no_gradient():
    model = dpae(prototype_rate=0.25).train()
    *_, z, z_hat, v, v_hat = by_hand(model, batch()["image"])
    model.training_step(batch(), 0).backward()
    torch.testing.assert_close(model.prototype, v - 0.25 * (v - z).mean(0))
    torch.testing.assert_close(model.prototype_hat, v_hat - 0.25 * (v_hat - z_hat).mean(0))
    assert not any("prototype" in name for name, _ in model.named_parameters())


def test_the_prototype_goes_to_the_center_of_fixed_latents():
    model = dpae(prototype_rate=0.5).eval()
    with torch.no_grad():
        for _ in range(40):
            model.training_step(batch(), 0)
        z = model.encoder(batch()["image"])
    torch.testing.assert_close(model.prototype, z.mean(0), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_prototype_loss_is_equation_6():
    model = dpae(rec_weight=0.0, prototype_hat_weight=0.0).train()
    v = model.prototype.clone()
    kept = []
    model.encoder.register_forward_hook(lambda module, inputs, z: (z.retain_grad(), kept.append(z))[0])
    model.training_step(batch(), 0).backward()
    torch.testing.assert_close(kept[0].grad, kept[0].detach() - v)


def test_all_scores_come_from_one_pass():
    model = dpae().eval()
    x = batch()["image"]
    with torch.no_grad():
        found = model.predict(x)
        x_hat, z, z_hat = model(x)
    assert set(found.scores) == {"RLX", "RLZ", "PL1", "PL2", "RLX_peak"}
    torch.testing.assert_close(found.scores["RLZ"][2], ((z[2] - z_hat[2]) ** 2).sum() / 4)
    torch.testing.assert_close(found.scores["RLX"][2], ((x[2] - x_hat[2]) ** 2).mean())
    torch.testing.assert_close(found.scores["PL1"][2], ((z[2] - model.prototype) ** 2).mean())
    torch.testing.assert_close(found.scores["PL2"][2], ((z_hat[2] - model.prototype_hat) ** 2).mean())
    peak = max((x[2] - x_hat[2]).abs().mean(0).flatten()) / ((x[2] - x_hat[2]) ** 2).mean() ** 0.5
    torch.testing.assert_close(found.scores["RLX_peak"][2], peak)


def test_per_image_normalisation_takes_exposure_and_contrast_out():
    model = dpae(input_norm="per_image").eval()
    x = batch()["image"] * 0.5
    with torch.no_grad():
        dark, bright = model.predict(x), model.predict(1.5 * x + 0.1)
        blank = model.predict(torch.full((1, 3, 32, 32), 0.5))
    torch.testing.assert_close(dark.scores, bright.scores)
    torch.testing.assert_close(bright.reconstruction, 1.5 * dark.reconstruction + 0.1)
    assert all(score.isfinite().all() for score in blank.scores.values())


@pytest.mark.parametrize("recipe", ["dpae", "dpae_literal"])
def test_the_shipped_settings_train(recipe):
    overrides = ["dataset.image_size=32", *([f"recipe={recipe}"] if recipe != "dpae" else [])]
    model = build_model(compose("train", overrides)).train()
    loss = model.training_step(batch(), 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_literal_recipe_is_the_paper_to_the_letter():
    model = compose("train", ["recipe=dpae_literal"])["model"]
    assert (model["reduction"], model["latent_weight"], model["output"]) == ("sum", 0.0, "leaky_relu")
    assert (model["max_epochs"], model["batch_size"]) == (50, 8)
    assert model["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "lr": 0.001,
        "momentum": 0.9,
        "weight_decay": 0.0005,
    }  # P1 section 4.2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.latent_dim=-3", "model.latent_dim=-3: Input should be greater than 0."),
        ("model.rec_weight=null", "model.rec_weight=None: Input should be a valid number."),
        ("model.prototype_rate=fast", "model.prototype_rate='fast': Input should be a valid number."),
        ("model.encoder_channels=[4,0,4,8,8]", "model.encoder_channels.1=0: Input should be greater than 0."),
        ("model.output=relu", "model.output='relu': Input should be 'leaky_relu', 'sigmoid', 'tanh' or 'none'."),
        ("model.input_norm=per_imag", "model.input_norm='per_imag': Input should be 'none' or 'per_image'."),
        ("model.score=RLY", "model.score='RLY' is unknown. Did you mean 'RLZ'? Known: RLX"),
        ("+model.depth=3", "model.depth=3: Unexpected keyword argument."),
        ("model.optimizer=adam", "model.optimizer='adam' has to name a class"),
        ("model.optimizer=null", "model.optimizer=None has to name a class"),
        ("model.scheduler=cosine", "model.scheduler='cosine' has to name a class"),
        ("model.optimizer.lr=-1", "model.optimizer or model.scheduler: Invalid learning rate: -1."),
        ("model.scheduler={_target_: torch.optim.lr_scheduler.StepLR}", "missing 1 required positional argument"),
    ],
)
def test_an_option_that_cannot_work_is_named_with_its_value(override, message):
    config = compose("train", ["dataset.image_size=32", override])
    with pytest.raises(ConfigError) as caught:
        build_model(config)
    assert message in str(caught.value)


def test_the_score_that_counts_is_an_option():
    literal = ["dataset.image_size=32", "recipe=dpae_literal"]
    assert build_model(compose("train", literal)).primary_score == dpae().primary_score == "RLZ"
    assert build_model(compose("train", [*literal, "model.score=PL1"])).primary_score == "PL1"


@pytest.mark.slow
def test_training_beats_no_training_on_synthetic(tmp_path):
    """By more than twice the spread over seeds; half the shipped widths, to take three minutes."""
    widths = ["model.encoder_channels=[16,32,64,128,128]", "model.decoder_channels=[null,null,64,32]"]
    found = {}
    for epochs in (0, 20):
        runs = tmp_path / str(epochs)
        sweep = ["-m", "seed=0,1,2", f"trainer.max_epochs={epochs}", f"runs_dir={runs}"]
        assert main(["train", "model=dpae", "dataset=synthetic", *widths, *sweep]) == 0
        metrics = [json.loads(path.read_text())["metrics"] for path in sorted(runs.glob("*/*/*/metrics.json"))]
        found[epochs] = np.array([one["image_auroc"] for one in metrics])
        for name in ("image_auroc", "image_auroc_RLZ", "val_image_auroc", "floor_knn_auroc", "floor_pca_auroc"):
            print(f"{epochs} epochs: {name} {[round(one[name], 3) for one in metrics]}")
    assert len(found[0]) == len(found[20]) == 3
    spread = max(values.std(ddof=1) for values in found.values())
    assert found[20].mean() - found[0].mean() > 2 * spread
