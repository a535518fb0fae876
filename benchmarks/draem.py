"""anomalib's DRAEM on the split of a run: trained on the same normal images, its scores for `anomaly-lab import`.

It needs anomalib, which is no part of this project, in an environment of its own:

    python -m venv draem && draem/bin/pip install anomalib
    draem/bin/python benchmarks/draem.py RUN_DIR IMAGES OUTPUT --epochs 30
    anomaly-lab import OUTPUT/scores.csv name=draem maps=OUTPUT/maps dataset=...

IMAGES is the dataset's folder, that of `dataset.root`. Size, batch, seed and precision are the run's. In place of the
textures that DRAEM downloads it takes the normal images themselves, as the package's own synthesis does.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def main() -> None:
    """Train, score every image of `val`, `tune` and `test`, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run on the split in question")
    parser.add_argument("images", type=Path, help="the dataset's folder")
    parser.add_argument("output", type=Path, help="folder for scores.csv, maps/ and seconds.json")
    parser.add_argument("--epochs", type=int, default=None, help="as many rounds through the normal images")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    given = parser.parse_args()
    if bool(given.epochs) == bool(given.minutes):
        parser.error("give --epochs or --minutes")
    config = yaml.safe_load((given.run / "config.yaml").read_text())
    lists = json.loads((given.run / "split.json").read_text())["lists"]
    root = given.images.resolve()
    trained = lists.get("train_normal") or lists["unlabelled"]
    normal = [record["path"] for record in trained if record.get("defect", "good") == "good"]
    judged = [record for name in ("val", "tune", "test") for record in lists.get(name, [])]
    scored = [record["path"] for record in judged if not record.get("painted")]
    given.output.mkdir(parents=True, exist_ok=True)
    _link(root, normal, given.output / "normal")
    places = _link(root, scored, given.output / "scored")
    found, seconds = _train_and_score(given, config)
    with (given.output / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "score"])
        for place, path in places.items():
            score, anomaly_map = found[place]
            writer.writerow([path, f"{score:.7g}"])
            target = (given.output / "maps" / path).with_suffix(".npy")
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target, anomaly_map)
    (given.output / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
    print(json.dumps(seconds))


def _link(root: Path, paths: list[str], folder: Path) -> dict[str, str]:
    """A folder with links named 000000.png and so on; returns name -> path."""
    shutil.rmtree(folder, ignore_errors=True)  # of another split
    folder.mkdir()
    names = {}
    for number, path in enumerate(dict.fromkeys(paths)):
        link = folder / f"{number:06}{Path(path).suffix}"
        link.symlink_to(root / path)
        names[link.name] = path
    return names


def _train_and_score(
    given: argparse.Namespace, config: dict[str, Any]
) -> tuple[dict[str, tuple[float, np.ndarray[Any, Any]]], dict[str, float]]:
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Draem
    from lightning import seed_everything

    seed_everything(config["seed"])
    side = config["dataset"]["image_size"]
    images = Folder(
        name="normal",
        normal_dir=given.output / "normal",
        train_batch_size=config["dataset"]["batch_size"],
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
    )
    images.setup()
    model = Draem(
        dtd_dir=given.output / "normal",
        pre_processor=Draem.configure_pre_processor((side, side)),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    limit = {"max_epochs": given.epochs} if given.epochs else {"max_time": timedelta(minutes=given.minutes)}
    engine = Engine(
        accelerator="auto",
        devices=1,
        precision=config["trainer"]["precision"],
        logger=False,
        default_root_dir=given.output / "engine",
        **limit,
    )
    started = time.perf_counter()
    engine.fit(model, train_dataloaders=images.train_dataloader())
    trained = time.perf_counter() - started
    started = time.perf_counter()
    batches = engine.predict(model, data_path=given.output / "scored", return_predictions=True) or []
    scored = time.perf_counter() - started
    found = {
        Path(path).name: (float(score), anomaly_map.squeeze().float().numpy())
        for batch in batches
        for path, score, anomaly_map in zip(batch.image_path, batch.pred_score, batch.anomaly_map, strict=True)
    }
    epochs = engine.trainer.fit_loop.epoch_progress.current.completed
    steps = engine.trainer.fit_loop.total_batch_idx + 1
    return found, {
        "train": trained,
        "epochs": float(epochs),
        "steps": float(steps),
        "per_scored_image": scored / max(1, len(found)),
    }


if __name__ == "__main__":
    main()
