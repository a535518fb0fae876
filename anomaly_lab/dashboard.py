"""A run at Weights & Biases, beside its directory: curves while it trains, then metrics, pictures and scores.

The run directory stays the record; what is shown there is made of it. So a resumed run loses no step and doubles none:
offline, the copy is made anew from the directory, online, wandb says from which step on it lacks anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from anomaly_lab.callbacks import History
from anomaly_lab.config import Config
from anomaly_lab.errors import ConfigError, require
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.ranks import rank
from anomaly_lab.reporting.cases import gallery_rows
from anomaly_lab.reporting.figures import read_gallery
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_LOGGED = ("model", "dataset", "trainer", "seed", "val_quantile", "checkpoint")  # of the configuration
_OF_THE_MACHINE = {"dataset": ("root", "manifest", "num_workers"), "model": ("autoencoder",)}
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")  # in the names of environment variables
_CLASSES = {0: "normal", 1: "defective", 255: "unknown"}  # of a mask
_DATA = "WANDB_DATA_DIR"


@contextlib.contextmanager
def open_dashboard(config: Config, run: Run) -> Iterator[Dashboard | None]:
    """The run at Weights & Biases if `logger=wandb` asks for one, ended with the run, failed if it failed.

    Its id is the run's path. Without a key it is offline, in `RUN_DIR/wandb`, to be sent by `wandb sync`.

    Raises:
        ConfigError: if wandb refuses to start.
    """
    options = config["logger"]
    require("logger", options["name"], ("csv", "wandb"))
    if options["name"] == "csv" or rank() > 0:
        yield None
        return
    import wandb

    offline = options["offline"] if options["offline"] is not None else "WANDB_API_KEY" not in os.environ
    name = "-".join(run.path.parts[-3:])
    if offline:  # it is made anew; what was sent already is the same, and wandb takes no step twice
        for folder in (run.path / "wandb").glob("offline-run-*"):
            shutil.rmtree(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(_DATA)
    os.environ[_DATA] = before or str(run.path / "wandb")  # where tables wait to be sent
    code = 1
    try:
        try:
            started = wandb.init(
                project=options["project"],
                entity=options["entity"],
                id=name,
                name="/".join(run.path.parts[-3:]),
                group=options.get("group"),
                job_type=options.get("job_type") or "train",
                tags=_cleaned(list(config["tags"])),
                config=shown_config(config),
                dir=run.path,
                mode="offline" if offline else "online",
                resume=None if offline else "allow",
                # its own look at the machine tells the command line, folders and the user's name
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    x_disable_stats=True,
                    save_code=False,
                    disable_git=True,
                    program="anomaly-lab",
                    host="",
                    root_dir=str(run.path),
                ),
            )
        except (wandb.errors.Error, OSError) as error:
            raise ConfigError(f"logger=wandb: {error}. logger.offline=true needs no server.") from None
        yield Dashboard(started, images=options["images"])
        code = 0
    finally:
        with contextlib.suppress(wandb.errors.Error):  # what is in the run directory is not lost by it
            wandb.finish(exit_code=code)
        if before is None:
            os.environ.pop(_DATA, None)


class Dashboard:
    """What is sent of a run.

    Args:
        started: wandb's run.
        images: how many pictures of the gallery.
    """

    def __init__(self, started: Any, images: int) -> None:
        self._run, self._images = started, images
        self._next = started.step if started.resumed else 0

    def log_epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Send the epochs that are not there yet; their number is the step."""
        for row in rows:
            step = int(row["epoch"])
            if step >= self._next:
                self._run.log(dict(row), step=step)
                self._next = step + 1

    def finish(self, run: Run, results: Mapping[str, Any]) -> None:
        """Send the metrics as the run's summary, and below them pictures and the score of every test image."""
        import wandb

        try:
            self._run.summary.update(_plain(results["metrics"]))
            self._run.summary.update({f"seconds/{name}": value for name, value in results["seconds"].items()})
            table = ScoreTable.from_csv(run.scores_file)
            columns = {"path": table.path, "label": table.label.tolist(), "defect": table.defect}
            columns |= {name: values.tolist() for name, values in table.scores.items()}
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            shown: dict[str, Any] = {"scores": wandb.Table(columns=list(columns), data=rows)}
            shown |= _pictures(run, table, self._images, results["metrics"].get("pixel_threshold"))
            if samples := sorted((run.path / "samples").glob("*.png")):
                shown["samples"] = [wandb.Image(str(path), caption=path.stem) for path in samples]
            self._run.log(shown, step=max(self._next, 1))
        except (wandb.errors.Error, OSError) as error:
            log.warning("Weights & Biases did not take the results: %s. They are in %s.", error, run.path)


class SendEpochs(Callback):
    """Sends each epoch when it is through; to be placed after the history."""

    def __init__(self, dashboard: Dashboard, history: History) -> None:
        self.dashboard, self.history = dashboard, history

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send what the history has."""
        if trainer.is_global_zero:
            self.dashboard.log_epochs(self.history.rows)


def shown_config(config: Config) -> Config:
    """What of a configuration is sent: nothing of the machine, and no secret that an environment variable holds."""
    shown: Config = {key: config[key] for key in _LOGGED if key in config}
    for part, names in _OF_THE_MACHINE.items():
        shown[part] = {key: value for key, value in shown[part].items() if key not in names}
    cleaned: Config = _cleaned(shown)
    return cleaned


def _cleaned(whole: Any) -> Any:
    """A tree of plain values without the secrets of the environment."""
    secrets = [
        value for name, value in os.environ.items() if len(value) > 3 and any(word in name.upper() for word in _SECRET)
    ]

    def cleaned(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {key: cleaned(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [cleaned(value) for value in tree]
        return "***" if isinstance(tree, str) and any(secret in tree for secret in secrets) else tree

    return cleaned(whole)


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that a summary can hold: numbers, words and their nested tables, without what is missing."""
    return {name: value for name, value in metrics.items() if value is not None and not isinstance(value, list)}


def _pictures(run: Run, table: ScoreTable, count: int, pixel_threshold: float | None) -> dict[str, Any]:
    """Pictures of the gallery, spread over the scores: the image with its masks, and what the method made of it."""
    import wandb

    from anomaly_lab.reporting.page.pictures import Gallery

    arrays = read_gallery(run.path / "predictions" / "gallery.npz")
    if not arrays or count < 1:
        return {}
    rows = gallery_rows(arrays["index"], table)
    by_score = np.argsort(table.primary_scores[rows], kind="stable")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    gallery, shown = Gallery(arrays, None), dict[str, Any]()
    for place in by_score[chosen][::-1]:
        row = rows[place]
        caption = f"{table.defect[row]} {table.primary_scores[row]:.4g} {Path(table.path[row]).name}"
        for kind, picture in gallery.pictures(int(place)).items():
            masks = {}
            if kind == "truth":
                continue  # it lies over the image
            if kind == "image" and "mask" in arrays:
                masks["truth"] = {"mask_data": arrays["mask"][place], "class_labels": _CLASSES}
            if kind == "image" and "anomaly_map" in arrays and pixel_threshold is not None:
                found = (arrays["anomaly_map"][place] >= pixel_threshold).astype(np.uint8)
                masks["found"] = {"mask_data": found, "class_labels": _CLASSES}
            shown.setdefault(f"gallery/{kind}", []).append(wandb.Image(picture, masks=masks or None, caption=caption))
    return shown
