"""AnoGAN and GANomaly: losses on hand-made numbers, the latent search, and a training that goes on bit for bit."""

import csv
import json
import math
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from torch import nn

from anomaly_lab.build import build_model
from anomaly_lab.callbacks import SeedEachBatch
from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.errors import ConfigError
from anomaly_lab.models.gan import GAN, told_apart
from anomaly_lab.nets.dcgan import DownNet, UpNet, last_side

SMALL = ["dataset.image_size=32", "model.latent_dim=4", "model.width=4", "~recipe"]


def build(name, *overrides):
    torch.manual_seed(0)
    return build_model(compose("train", [f"model={name}", *SMALL, *overrides]))


class Fixed(nn.Module):
    """Stands in for a network: gives what it is told, whatever it sees."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def forward(self, _):
        return self.answers.pop(0)


@pytest.mark.parametrize(("size", "side", "halvings"), [(32, 4, 3), (64, 4, 4), (128, 4, 5), (224, 7, 5), (96, 3, 5)])
def test_networks_fit_the_image(size, side, halvings):
    assert last_side(size) == (side, halvings)
    features, out = DownNet(size, 6, 2)(torch.rand(2, 3, size, size))
    assert features.shape == (2, 2 * 2 ** (halvings - 1), side, side)
    assert out.shape == (2, 6)
    image = UpNet(size, 6, 2)(torch.randn(2, 6))
    assert image.shape == (2, 3, size, size)
    assert image.abs().max() <= 1


@pytest.mark.parametrize("size", [50, 4, 100, 130])
def test_an_image_that_cannot_be_halved_is_named(size):
    with pytest.raises(ConfigError, match=rf"dataset\.image_size={size} cannot be halved"):
        last_side(size)


def test_the_discriminators_loss_is_the_mean_cross_entropy():
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[-1.0], [3.0]])

    def p(logit):
        return 1 / (1 + math.exp(-logit))

    by_hand = -(math.log(p(0)) + math.log(p(2))) / 4 - (math.log(1 - p(-1)) + math.log(1 - p(3))) / 4
    assert told_apart(real, fake).item() == pytest.approx(by_hand, rel=1e-6)


def test_ganomalys_loss_is_eq_4():
    model = build("ganomaly")
    x = torch.zeros(2, 3, 32, 32)
    x_hat, z, z_hat = torch.full_like(x, 0.25), torch.zeros(2, 4), torch.full((2, 4), 3.0)
    real, fake = torch.ones(2, 8, 4, 4), torch.full((2, 8, 4, 4), 0.5)
    model.encoder, model.decoder, model.encoder_hat = Fixed((None, z)), Fixed(x_hat), Fixed((None, z_hat))
    model.discriminator = Fixed((fake, None))
    _, terms = model.generator_terms(x, real)
    assert {name: value.item() for name, value in terms.items()} == {
        "adversarial": 1 * 0.25,
        "contextual": 50 * 0.25,
        "encoder": 1 * 9.0,
    }


def test_ganomalys_score_is_eq_5():
    model = build("ganomaly")
    z, z_hat = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 0, 3, 0]])
    model.encoder, model.decoder = Fixed((None, z)), Fixed(torch.zeros(1, 3, 32, 32))
    model.encoder_hat = Fixed((None, z_hat))
    assert model.predict(torch.rand(1, 3, 32, 32)).scores["latent"].tolist() == [1.0]


def test_anogans_losses_are_eq_2_and_4():
    model = build("anogan", "model.discrimination_weight=0.1")
    x = torch.zeros(2, 3, 32, 32)
    made = torch.zeros_like(x)
    made[1, :, :2, :5] = 0.5
    real, fake = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 4, 4)
    fake[0, 0, 0, :3] = -2.0
    model.generator, model.discriminator = Fixed(made), Fixed((fake, None))
    _, residual, discrimination = model.search_terms(x, real, torch.zeros(2, 4))
    assert residual.tolist() == [0, 15]
    assert discrimination.tolist() == [6, 0]
    torch.testing.assert_close(model._anomaly(residual, discrimination), torch.tensor([0.6, 13.5]))


def test_the_search_goes_down_and_leaves_the_networks_alone():
    model = build("anogan", "model.search_steps=30").eval()
    with torch.no_grad():
        x = model.generator(torch.randn(3, 4))  # images that the generator can make
        features = model.discriminator(x)[0]
        start = model._anomaly(*model.search_terms(x, features, model.start.expand(3, -1))[1:])
    with torch.inference_mode():
        z = model.search(x)
        end = model._anomaly(*model.search_terms(x, features, z)[1:])
    assert (end < 0.9 * start).all()
    assert all(p.grad is None for p in model.parameters())


def test_standardised_images_lie_where_tanh_ends():
    x, restore = build("ganomaly", "model.input_norm=per_image").normalise(image := torch.rand(2, 3, 32, 32))
    assert x.abs().max() <= 1
    torch.testing.assert_close(restore(x), image)
    x, restore = build("ganomaly").normalise(image)
    assert (x.min(), x.max()) == (2 * image.min() - 1, 2 * image.max() - 1)
    torch.testing.assert_close(restore(x), image)


@pytest.fixture
def train(pictures, tmp_path):
    def run(name, runs, *overrides):
        command = ["train", f"model={name}", "dataset=folder", f"dataset.root={pictures}", *SMALL]
        options = [
            "dataset.batch_size=7",
            "trainer.accelerator=cpu",
            "trainer.estimate=false",
            f"runs_dir={tmp_path / runs}",
        ]
        search = ["model.search_steps=3"] if name == "anogan" else []
        status = main([*command, *options, *search, *overrides])
        (found,) = (tmp_path / runs).glob(f"*/{name}/*")
        return status, found

    return run


@pytest.mark.parametrize("name", ["anogan", "ganomaly"])
def test_a_gan_that_is_cut_off_goes_on_bit_for_bit(name, train, monkeypatch):
    status, whole = train(name, "whole", "trainer.max_epochs=4")
    assert status == 0

    seeded = SeedEachBatch.on_train_batch_start

    def power_cut(self, trainer, *about):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
        seeded(self, trainer, *about)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEachBatch, "on_train_batch_start", power_cut)
        assert train(name, "cut", "trainer.max_epochs=4")[0] == 130
    status, resumed = train(name, "cut", "trainer.max_epochs=4")
    assert status == 0
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (whole, resumed)
    )
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert (whole / "scores.csv").read_bytes() == (resumed / "scores.csv").read_bytes()


@pytest.mark.parametrize("name", ["anogan", "ganomaly"])
def test_both_losses_are_seen_and_samples_are_saved(name, train, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, run = train(name, "runs", "trainer.max_epochs=3", "model.optimizer.lr=0.01")
    assert status == 0
    shown = capsys.readouterr()
    assert "loss_discriminator:" in shown.out + shown.err
    with (run / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["loss_discriminator"] for row in rows}) == 3, "it learns"
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"epoch_000{i}.png" for i in (1, 2, 3)]
    with Image.open(run / "samples/epoch_0003.png") as picture:
        assert picture.size == (8 * 34 + 2, 36)
    assert json.loads((run / "metrics.json").read_text())["metrics"]["pixel_auroc"] is not None


def test_a_schedule_moves_both_learning_rates(train):
    schedule = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.0}"
    _, still = train("ganomaly", "still", "trainer.max_epochs=1")
    _, scheduled = train("ganomaly", "scheduled", "trainer.max_epochs=3", f"model.scheduler={schedule}")
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (still, scheduled)
    )
    weights = [key for key in one if key.endswith("weight")]
    assert weights
    assert all(torch.equal(one[key], other[key]) for key in weights), "without a learning rate nothing moves"


@pytest.mark.parametrize("name", ["anogan", "ganomaly"])
def test_each_network_learns_in_its_own_turn_only(name, train, monkeypatch):
    plain, turns = GAN.turn, []

    @contextmanager
    def watched(self, of):
        def learnt():
            after = {key: value.detach().clone() for key, value in self.named_parameters()}
            return {key.startswith("discriminator.") for key in before if not torch.equal(before[key], after[key])}

        before = {key: value.detach().clone() for key, value in self.named_parameters()}
        with plain(self, of) as descend:
            yield descend
        turns.append((of, learnt()))

    monkeypatch.setattr(GAN, "turn", watched)
    assert train(name, "runs", "trainer.max_epochs=1")[0] == 0
    assert len(turns) > 4
    assert all(moved == {of == "discriminator"} for of, moved in turns)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "model.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}",
            "ReduceLROnPlateau watches",
        ),
        ("model.optimizer={_target_: torch.optim.LBFGS}", "LBFGS asks for the loss again"),
        ("model.latent_dim=null", "model.latent_dim needs a value"),
    ],
)
def test_what_cannot_train_in_turns_is_refused_before_it_starts(override, told):
    key = override.partition("=")[0]
    replaced = [f"~{key}", f"+{override}"] if "{" in override and "optimizer" in key else [override]
    with pytest.raises(ConfigError, match=told):
        build("ganomaly", *replaced)


def test_a_weight_beyond_1_would_turn_the_score_round():
    with pytest.raises(ConfigError, match=r"model.discrimination_weight=2.0: Input should be less than or equal to 1"):
        build("anogan", "model.discrimination_weight=2.0")
