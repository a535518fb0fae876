"""Shared fixtures: a private image cache, and a folder of small pictures to train on."""

import os
import shutil

import hypothesis
import numpy as np
import pytest
from PIL import Image

from anomaly_lab.cli import main

os.environ.setdefault("WANDB_MODE", "offline")
# tiny networks gain nothing from threads, and threads that wait for each other crawl on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a busy machine is no fault of the code
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# the smallest DPAE: what a test needs to run through the whole line in a second
TINY = [
    "dataset=folder",
    "dataset.image_size=32",
    "dataset.batch_size=4",
    "dataset.test_fraction=0.25",
    "dataset.val_fraction=0.2",
    "model.latent_dim=4",
    "model.encoder_channels=[4,4,4,8,8]",
    "model.decoder_channels=[4,4,8,8]",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.estimate=false",
]


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """40 normal pictures of soft stripes, and 8 with a bright square, with its mask."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for folder in ("good", "spot", "masks/spot"):
        (root / folder).mkdir(parents=True)
    for index in range(48):
        stripes = 110 + 30 * np.sin(np.arange(36) / 3 + rng.uniform(0, 6))
        image = np.tile(stripes, (36, 1)) + rng.normal(0, 4, (36, 36))
        if index >= 40:
            mask = np.zeros((36, 36), np.uint8)
            top, left = rng.integers(4, 24, 2)
            mask[top : top + 8, left : left + 8] = 255
            image[mask > 0] = 240
            Image.fromarray(mask).save(root / f"masks/spot/{index:03}.png")
        folder = "good" if index < 40 else "spot"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{folder}/{index:03}.png")
    return root


@pytest.fixture
def tiny(pictures, tmp_path):
    """Overrides of a run that trains in a second, below a folder of its own."""
    return [*TINY, f"dataset.root={pictures}", f"runs_dir={tmp_path / 'runs'}"]


@pytest.fixture(scope="session")
def trained_once(pictures, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, f"dataset.root={pictures}", f"runs_dir={root}"]) == 0
    return root


@pytest.fixture
def finished(trained_once, tiny, tmp_path):
    """The directory of the finished run that `tiny` asks for, to do with as one likes."""
    shutil.copytree(trained_once, tmp_path / "runs")
    (run,) = (tmp_path / "runs").glob("*/*/*-s0")
    return run


@pytest.fixture(autouse=True)
def as_a_user_sees_it(monkeypatch):
    """Tables at a fixed width, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "100")


_TALLIES = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[_TALLIES] = {}


@pytest.fixture(scope="session")
def tally(request):
    """Count something that a table in docs/ tells of; the sum is printed at the end."""
    tallies = request.config.stash[_TALLIES]

    def add(what, count):
        tallies[what] = tallies.get(what, 0) + count

    return add


def pytest_terminal_summary(terminalreporter, config):
    for what, count in config.stash[_TALLIES].items():
        terminalreporter.write_line(f"{count} {what}")
