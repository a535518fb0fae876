"""`anomaly-lab evaluate run=RUN_DIR`: score a trained run again, from its checkpoint and its own split."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_lab.arguments import with_run
from anomaly_lab.config import Config, check_values, compose
from anomaly_lab.data.plan import DataPlan, load_options, make_dataset
from anomaly_lab.errors import RunError
from anomaly_lab.files import write_json
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab evaluate ARGUMENTS`; the exit status is 0 when the scores are written."""
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    # `evaluate RUN_DIR` is what one types first
    asked = compose("evaluate", with_run(arguments))
    results, output = evaluate(Run(Path(asked["run"])), asked)
    Console().print(result_table(results["metrics"], results["reasons"], title="/".join(output.parts[-3:])))
    log.info("Scores: %s", output / "scores.csv")
    return 0


def evaluate(run: Run, asked: Config) -> tuple[dict[str, Any], Path]:
    """Score `run` under the options of conf/evaluate.yaml; returns the results and where they were written.

    Raises:
        RunError: if the run is not finished, or the images are no longer those it was tested on.
    """
    with run.named_in_errors():
        run.check_trained()
        config = _config(run, asked)
        plan = _plan(run, config)
    output = _output(run, config, asked)
    if not asked["output"] and plan.sha256 != run.read().get("data_sha256"):
        raise RunError(
            f"The images under {plan.dataset.root} are not those the run was tested on: some files hold "
            "something else. Give output=DIR to score them apart."
        )

    from anomaly_lab.build import trained_model
    from anomaly_lab.trainer import quieten

    quieten()
    with run.named_in_errors():
        model = trained_model(run, config)
    with Run(output).lock():
        from anomaly_lab.data.datamodule import DefectDataModule
        from anomaly_lab.score import score

        data = DefectDataModule(plan, config["seed"])
        data.prepare(progress=True)
        started = time.perf_counter()
        results = score(config, data, model, output, run.splits)
        before = run.read()  # commit and versions stay those of the training
        results["seconds"] = {**before["seconds"], "evaluate": time.perf_counter() - started}
        about = {"checkpoint": config["checkpoint"], "data_sha256": plan.sha256}
        write_json(output / "metrics.json", before | results | about)
    return results, output


def _config(run: Run, asked: Config) -> Config:
    """The run's configuration with what is asked for instead."""
    config = run.config()
    config["checkpoint"] = asked["checkpoint"] or config["checkpoint"]
    config["predictions"] = asked["predictions"] or config["predictions"]
    config["allow"] = asked["allow"]  # the user's word, never the run's
    config["model"]["score"] = asked["model"]["score"] or config["model"]["score"]
    config["trainer"] |= asked["trainer"]
    config["dataset"] |= {key: value for key, value in asked["dataset"].items() if value is not None}
    check_values(config)
    return config


def _plan(run: Run, config: Config) -> DataPlan:
    """The dataset under its present root, with the split that the run was trained on."""
    split, dataset = run.split(), make_dataset(config["dataset"], tuple(config["allow"]))
    missing = [r.path for records in split.lists.values() for r in records if not (dataset.root / r.path).exists()]
    if missing:
        raise RunError(
            f"{len(missing)} images of the run's split are not under {dataset.root}, such as {missing[0]}. "
            "Set dataset.root to where they are now."
        )
    return DataPlan(dataset, split, load_options(config["dataset"]))


def _output(run: Run, config: Config, asked: Config) -> Path:
    if asked["output"]:
        return Path(asked["output"])
    before = run.config()
    here, there = ((c["checkpoint"], c["model"]["score"]) for c in (config, before))
    other = [str(new) for new, old in zip(here, there, strict=True) if new != old]
    return run.path / "-".join(["evaluate", *other]) if other else run.path
