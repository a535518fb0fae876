"""Where a training's curves go beside curves.csv: nowhere, or to Weights & Biases."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from anomaly_lab.config import Config
from anomaly_lab.errors import ConfigError
from anomaly_lab.runs import Run


@contextlib.contextmanager
def make_logger(config: Config, run: Run) -> Iterator[Logger | Literal[False]]:
    """The configured logger, finished when the training is, so that the next job gets its own.

    The wandb id is the run's path, so a resumed run goes on in the same one.
    """
    options = config["logger"]
    if options["name"] == "csv":
        yield False
        return
    if options["name"] != "wandb":
        raise ConfigError(f"logger={options['name']!r} is unknown; there are csv and wandb.")
    import wandb

    offline = options["offline"] if options["offline"] is not None else "WANDB_API_KEY" not in os.environ
    run.path.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        name="/".join(run.path.parts[-3:]),
        id="-".join(run.path.parts[-3:]),
        save_dir=run.path,
        project=options["project"],
        entity=options["entity"],
        offline=offline,
        resume=None if offline else "allow",
        tags=list(config["tags"]),
        config={key: config[key] for key in ("model", "dataset", "trainer", "seed")},
    )
    code = 1
    try:
        yield logger
        code = 0
    finally:
        wandb.finish(exit_code=code)
