"""Pictures much larger than what a network sees: in tiles their small defects are found, squashed they are lost."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anomaly_lab import load
from anomaly_lab.cli import main

HEIGHT, WIDTH, SPOT = 3000, 4000, 12  # pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Grain of 30 pixels' size; the two defective pictures have one spot of 12 pixels in it, and its mask."""
    root = tmp_path_factory.mktemp("large")
    for folder in ("good", "spot", "masks/spot"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(10):
        coarse = ndimage.gaussian_filter(rng.normal(size=(HEIGHT // 8, WIDTH // 8)), 4)
        grain = np.kron(coarse / coarse.std(), np.ones((8, 8)))
        image = 120 + 12 * ndimage.uniform_filter(grain, 9)
        folder = "good" if index < 8 else "spot"
        if folder == "spot":
            top, left = rng.integers(100, HEIGHT - 100), rng.integers(100, WIDTH - 100)
            y, x = np.mgrid[:HEIGHT, :WIDTH]
            spot = np.hypot(y - top, x - left) < SPOT / 2
            image[spot] += 70
            Image.fromarray(spot.astype(np.uint8) * 255).save(root / f"masks/spot/{index}.png", compress_level=1)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / folder / f"{index}.bmp")
    return root


def run(root, tmp_path, *overrides):
    command = ["train", "model=pca", "dataset=folder", f"dataset.root={root}", "dataset.protocol=normal_only"]
    options = ["dataset.image_size=128", "dataset.test_normal_count=2", "dataset.val_fraction=0", "model.latent_dim=20"]
    more = ["model.score=max", "model.input_norm=per_image", "dataset.steps_per_epoch=6", f"runs_dir={tmp_path}"]
    assert main([*command, *options, *more, *overrides]) == 0
    (path,) = tmp_path.glob("folder/pca/*/metrics.json")
    return path.parent, json.loads(path.read_text())["metrics"]


@pytest.mark.slow
def test_a_spot_of_12_pixels_is_found_in_tiles_and_lost_when_the_picture_is_squashed(pictures, tmp_path):
    squashed_run, squashed = run(pictures, tmp_path / "squashed")
    tiled_run, tiled = run(pictures, tmp_path / "tiled", "dataset.full_size=native", "dataset.tile_overlap=16")
    assert tiled["image_auroc"] == 1
    assert tiled["pixel_auroc"] > 0.99

    assert squashed["image_auroc"] < 0.9
    with (tiled_run / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    gallery = np.load(tiled_run / "predictions/gallery.npz")
    assert gallery["image"].shape[1:] == (384, 512, 3), "as high and wide as the pictures"
    assert (gallery["mask"] == 1).any((1, 2)).sum() == 2, "a spot is not lost in the gallery"
    assert (tiled_run / "figures/cases.png").exists()
    detector = load(tiled_run, device="cpu")
    for row, found in zip(rows, detector.predict_all(pictures / row["path"] for row in rows), strict=True):
        assert found.score == pytest.approx(float(row["score"]), rel=1e-6)
        assert found.anomaly_map.shape == (HEIGHT, WIDTH)
    assert (squashed_run / "figures/cases.png").exists()
