"""`anomaly-lab train`: one run, or a sweep of them.

Nothing here imports torch: a finished run is recognised in a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from anomaly_lab.arguments import given_value, job_count, option_of, own_options, sweep_values, with_plain_paths
from anomaly_lab.config import check, compose
from anomaly_lab.console import log_to_console
from anomaly_lab.errors import ConfigError, RunError, nearest
from anomaly_lab.files import read_json
from anomaly_lab.jobs import Outcome, run_job
from anomaly_lab.runs import Run
from anomaly_lab.sweep import best, hand_to_hydra, multirun, show, with_sweep

log = logging.getLogger("anomaly_lab")

_PRINTING = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve"}  # flags that Hydra answers by itself


def train(*overrides: str) -> list[Path]:
    """`anomaly-lab train OVERRIDES` from Python: the directories of its runs, in the order of the jobs.

    What is finished is found, not trained again. `-m` among the overrides makes a sweep of them.

    Raises:
        LabError: if a job failed; of a sweep, once all others are done.
    """
    log_to_console()
    outcomes = _run(with_plain_paths(list(overrides)))[0]
    if failed := [outcome for outcome in outcomes if outcome.run is None or not outcome.done]:
        raise RunError(str(failed[0].cause))
    return [Path(str(outcome.run)) for outcome in outcomes]


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab train ARGUMENTS`; the exit status is 0 if every job is finished."""
    outcomes, count = _run(arguments)
    return int(sum(outcome.done for outcome in outcomes) < count)


def _run(arguments: Sequence[str]) -> tuple[list[Outcome], int]:
    """What became of the jobs of a command line, told to the user, and how many there were to be."""
    arguments = with_sweep(arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    if flags & _PRINTING:
        hand_to_hydra("train", list(arguments))
        return [], 0
    if unknown := sorted(flags - {"-m", "--multirun"}):
        key, _, value = unknown[0].lstrip("-").partition("=")
        known = compose("train", [])
        if key.partition(".")[0] in known:
            value = value or ("true" if isinstance(known.get(key), bool) else "...")
            raise ConfigError(f"Options are written without dashes: {key}={value} in place of {unknown[0]}.")
        raise ConfigError(
            f"There is no flag {unknown[0]}. {nearest(unknown[0], ['-m', '--multirun', *sorted(_PRINTING)])}"
        )
    config = check("train", arguments)
    texts = [text for values in sweep_values(arguments) for text in values]
    asked = [given_value(text) for text in texts if option_of(text) == "objective"] + [str(config["objective"])]
    if wrong := [name for name in asked if not name.startswith(("val_", "tune_"))]:
        raise ConfigError(
            f"objective={wrong[0]} has to be a metric of val or tune, such as val_image_auroc: what is chosen by the "
            "test says nothing about new images."
        )
    sweeper = own_options(arguments, ("hydra/sweeper", "hydra.sweeper.direction"))
    if sweeper.get("hydra/sweeper") == "optuna" and len(sweeper) == 1:  # by itself it looks for the lowest
        arguments = [*arguments, "hydra.sweeper.direction=maximize"]
    if not flags:
        outcome = run_job(config, list(arguments))
        _show_single(outcome)
        return [outcome], 1
    count = job_count(arguments)
    outcomes = multirun([text for text in arguments if text not in flags], count, Path(config["runs_dir"]))
    if outcomes:
        show(outcomes)
        if own_options(arguments, ("hydra/sweeper",)):
            log.info("%s", best(outcomes, config["objective"]))
    return outcomes, max(count or len(outcomes), 1)


def _show_single(outcome: Outcome) -> None:
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    if outcome.run is None or outcome.status in ("failed", "busy"):
        log.error("error: %s", outcome.cause)
        return
    run = Run(Path(outcome.run))
    content = run.read()
    Console().print(result_table(content["metrics"], content["reasons"], title="/".join(run.path.parts[-3:])))
    if outcome.status == "skipped":
        lacks = "logger=wandb" in outcome.overrides and run.config()["logger"]["name"] != "wandb"
        sent = " and nothing sent" if lacks else ""
        log.info("This run is finished; nothing was trained%s. force=true runs it again.", sent)
    for sentence in (*run.split().notes, read_json(run.leakage_file)["sentence"]):
        log.info("%s", sentence)
    log.info("Run directory: %s\nLook at:       %s", run.path, run.path / "figures")
