"""`anomaly-lab evaluate run=RUN_DIR`: score a trained run again, from its checkpoint and its own split."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_lab.config import Config, compose
from anomaly_lab.data.plan import DataPlan, make_plan
from anomaly_lab.errors import RunError
from anomaly_lab.runs import Run, write_json

log = logging.getLogger("anomaly_lab")


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab evaluate ARGUMENTS`; the exit status is 0 when the scores are written."""
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    asked = compose("evaluate", list(arguments))
    results, output = evaluate(Run(Path(asked["run"])), asked)
    Console().print(result_table(results["metrics"], results["reasons"], title="/".join(output.parts[-3:])))
    log.info("Scores: %s", output / "scores.csv")
    return 0


def evaluate(run: Run, asked: Config) -> tuple[dict[str, Any], Path]:
    """Score `run` under the options of conf/evaluate.yaml; returns the results and where they were written.

    Raises:
        RunError: if the run is not finished, or the images are no longer those it was tested on.
    """
    if run.status() != "finished":
        raise RunError(f"{run.path} is {run.status()}, not finished: run its `train` command again first.")
    config = run.config()
    config["checkpoint"] = asked["checkpoint"] or config["checkpoint"]
    config["predictions"] = asked["predictions"] or config["predictions"]
    config["allow"] = asked["allow"]  # the user's word, never the run's
    config["trainer"] |= asked["trainer"]
    config["dataset"] |= {key: value for key, value in asked["dataset"].items() if value is not None}
    plan = _plan(run, config)

    from anomaly_lab.fit import build_model, load_checkpoint, quieten, restore

    quieten()
    model = build_model(config)
    restore(model, load_checkpoint(run.checkpoints / f"{config['checkpoint']}.ckpt"))
    output = _output(run, config, asked)
    with Run(output).lock():
        from anomaly_lab.data.datamodule import DefectDataModule
        from anomaly_lab.score import score

        data = DefectDataModule(plan, config["seed"])
        data.prepare(progress=True)
        started = time.perf_counter()
        results = score(config, data, model, output, run.splits)
        results["seconds"] = {"evaluate": time.perf_counter() - started}
        if output == run.path:
            results["seconds"] = {**run.read()["seconds"], **results["seconds"]}
            run.finish(run.config(), plan.split, results)
        else:
            write_json(output / "metrics.json", {"status": "finished", **results, "checkpoint": config["checkpoint"]})
    return results, output


def _plan(run: Run, config: Config) -> DataPlan:
    """The dataset under its present root, with the split that the run was trained on."""
    split = run.split()
    plan = dataclasses.replace(make_plan(config["dataset"], tuple(config["allow"])), split=split)
    missing = [r.path for records in split.lists.values() for r in records if not (plan.dataset.root / r.path).exists()]
    if missing:
        raise RunError(
            f"{len(missing)} images of the run's split are not under {plan.dataset.root}, such as {missing[0]}. "
            "Set dataset.root to where they are now."
        )
    return plan


def _output(run: Run, config: Config, asked: Config) -> Path:
    if asked["output"]:
        return Path(asked["output"])
    return (
        run.path
        if config["checkpoint"] == run.config()["checkpoint"]
        else run.path / f"evaluate-{config['checkpoint']}"
    )
