"""Several jobs, handed to Hydra: its launchers run them one by one, side by side, or on a cluster."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from anomaly_lab.arguments import option_of, plain_path, sweep_values
from anomaly_lab.config import compose, conf_dir, hash_of, resolve
from anomaly_lab.console import log_to_console
from anomaly_lab.errors import LabError, RunError, nearest, require
from anomaly_lab.files import write_json
from anomaly_lab.hardware import one_of_many, share_cores
from anomaly_lab.jobs import Outcome, run_job
from anomaly_lab.locks import hold
from anomaly_lab.reporting.tables import duration
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_JOBS = "jobs.json"  # of a sweep's folder: how many jobs, and their overrides where no product makes them


def with_sweep(arguments: Sequence[str]) -> list[str]:
    """The command line with `sweep=NAME` written out: what `conf/sweep/NAME.yaml` holds and it does not give.

    Raises:
        ConfigError: if there is no such sweep.
    """
    names = [text.partition("=")[2] for text in arguments if text.startswith("sweep=")]
    if not names:
        return list(arguments)
    known = sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml"))
    require("sweep", names[-1], known)
    options = yaml.safe_load((conf_dir() / "sweep" / f"{names[-1]}.yaml").read_text(encoding="utf-8"))
    rest = [text for text in arguments if not text.startswith("sweep=") and text not in ("-m", "--multirun")]
    given = {option_of(text) for text in rest}
    texts = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
        if key not in given
    ]
    return ["-m", *texts, *rest]


def multirun(overrides: Sequence[str], count: int | None, runs_dir: Path) -> list[Outcome]:
    """The `count` jobs of a command line that sweeps, as far as they came; Hydra's sweeper makes them of it.

    A search may not say beforehand how many it will make: None.
    """
    folder = _new_folder(runs_dir, count, name=_name_of(overrides))
    return _handed("train", _composable(overrides), folder)


def _composable(overrides: Sequence[str]) -> list[str]:
    """The same overrides, those of a swept choice as choices among one.

    Hydra first composes what is not swept alone: `model.width=8` beside `model=unet,pi_model` with the default model.
    """
    swept = {option_of(values[0]) for values in sweep_values(overrides) if len(values) > 1}

    def told(text: str) -> str:
        key, _, value = text.partition("=")
        belongs = key.partition(".")[0] in swept and key not in swept
        # null and nothing are no choice; what looks like a sweep already is one, perhaps of one value
        return (
            f"{key}=choice({value})"
            if belongs and value not in ("", "null") and sweep_values([text]) == [[text]]
            else text
        )

    return list(map(told, overrides))


def run_jobs(
    jobs: Sequence[Sequence[str]], runs_dir: Path, launcher: Sequence[str], names: Sequence[str], name: str
) -> list[Outcome]:
    """Jobs of which each has its own overrides and a name, as far as they came; `launcher` are Hydra's options.

    `name` is that of all together.
    """
    if not jobs:
        return []
    listed = [list(overrides) for overrides in jobs]
    folder = _new_folder(runs_dir, len(jobs), name=name, jobs=listed, names=list(names))
    numbers = ",".join(map(str, range(len(jobs))))
    options = [f"list={plain_path(str((folder / _JOBS).absolute()))}", f"number={numbers}"]
    return _handed("jobs", [*options, *launcher], folder)


def _handed(name: str, arguments: Sequence[str], folder: Path) -> list[Outcome]:
    """What became of the jobs of a multirun, as far as they came."""
    with hold(folder):
        try:
            # Hydra's parser wants its flag before the overrides
            hand_to_hydra(name, ["--multirun", *arguments, f"hydra.sweep.dir={plain_path(str(folder))}"])
        except SystemExit:  # Hydra has said why: a worker was killed, say
            if not (outcomes := _outcomes(folder)):
                raise
            cause = "The launcher ended before all jobs were done. The same command goes on with those that are left."
            log.error(cause)
            return [*outcomes, Outcome([], "failed", None, cause)]
    return _outcomes(folder)


def hand_to_hydra(name: str, arguments: list[str]) -> None:
    """Let Hydra's own command line have it, on `conf/<name>.yaml`."""
    import hydra

    before = sys.argv
    sys.argv = ["anomaly-lab", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name=name, version_base="1.3")(_job)()
    finally:
        sys.argv = before


def _job(composed: Any) -> float | None:
    """One job of a multirun; returns its objective, by which a search goes on.

    It never raises: some launchers stop at the first failure, or lose its cause.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if "BasicLauncher" not in hydra.launcher["_target_"]:
        log_to_console()
        share_cores()
        one_of_many(hydra.job.num)
    folder = Path(hydra.sweep.dir)
    listed = json.loads((folder / _JOBS).read_text(encoding="utf-8"))
    if "list" in composed:
        overrides, name = listed["jobs"][composed.number], listed["names"][composed.number]
    else:
        # Hydra escapes the braces of `${seed}` when it writes a sweep's values out
        texts = [text.replace("$\\{", "${").replace("\\}", "}") for text in hydra.overrides.task]
        overrides = [text for text in texts if not text.startswith("hydra.")]
        overrides += [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
        name = " ".join(overrides)
    log.info("job %s: %s", hydra.job.num, name)
    try:
        while True:
            config = compose("train", overrides) if "list" in composed else resolve(composed)
            if "group" in config["logger"]:
                config["logger"]["group"] = config["logger"]["group"] or listed["name"]
            outcome = run_job(config, overrides)
            if outcome.status != "busy":
                break
            time.sleep(2)  # another process has it, or a job beside it needs the same first stage
    except LabError as error:
        outcome = Outcome(overrides, "failed", None, str(error))
    if outcome.status == "failed":
        log.error("job %s failed: %s", hydra.job.num, outcome.cause)
    write_json(folder / f"{hydra.job.num:06d}" / "job.json", asdict(outcome))
    log.info("%s", progress(folder))
    return None if "list" in composed else _objective(outcome, composed.objective)


def _objective(outcome: Outcome, name: str) -> float | None:
    """A metric of a job that is done; None of another, or where the run has no such metric, which is said."""
    if outcome.run is None or not outcome.done:
        return None
    metrics = Run(Path(outcome.run)).read()["metrics"]
    value = metrics.get(name)
    if isinstance(value, float):
        return value
    known = [key for key, found in metrics.items() if key.startswith(("val_", "tune_")) and isinstance(found, float)]
    log.warning("%s has no objective=%s. %s", outcome.run, name, nearest(name, known))
    return None


def best(outcomes: Sequence[Outcome], objective: str) -> str:
    """What a search has found, in a sentence."""
    values = [(value, job) for job in outcomes if (value := _objective(job, objective)) is not None]
    if not values:
        return f"No job has {objective}."
    value, job = max(values, key=lambda pair: pair[0])
    own = [text for text in job.overrides if any(text not in other.overrides for other in outcomes)]
    return f"Highest {objective}: {value:.3f}, with {' '.join(own or job.overrides)}\n{job.run}"


def progress(folder: Path) -> str:
    """How far a sweep is and how long it will take, by what its jobs have left in its folder."""
    outcomes = _outcomes(folder)
    count = json.loads((folder / _JOBS).read_text(encoding="utf-8"))["count"]
    kinds = {kind: sum(outcome.status == kind for outcome in outcomes) for kind in ("finished", "skipped", "failed")}
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    if count is None:
        return f"{len(outcomes)} jobs done ({counted})."
    told = f"{len(outcomes)} of {count} jobs done ({counted})"
    left = count - len(outcomes)
    if left and kinds["finished"]:
        seconds = (time.time() - (folder / _JOBS).stat().st_mtime) / kinds["finished"] * left
        told += f", about {duration(seconds)} left"
    return told + "."


def _name_of(overrides: Sequence[str]) -> str:
    """What a sweep is called, each time it is started: the options that it varies, and a hash of all."""
    texts = [text for text in overrides if not option_of(text).startswith(("hydra", "runs_dir"))]
    varied = [option_of(values[0]).rpartition(".")[2] for values in sweep_values(texts) if len(values) > 1]
    return "-".join([*varied, hash_of({"overrides": sorted(texts)})[:6]])


def _new_folder(runs_dir: Path, count: int | None, **content: Any) -> Path:
    folder = runs_dir / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    write_json(folder / _JOBS, {"count": count, **content})
    return folder


def _outcomes(folder: Path) -> list[Outcome]:
    files = sorted(folder.glob("*/job.json"))
    return [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in files]


def show(outcomes: list[Outcome]) -> None:
    """Print the table of a sweep, and what has to be said of its splits."""
    from rich.console import Console

    from anomaly_lab.reporting.sweep import sweep_table

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for outcome in outcomes:
        row = asdict(outcome)
        rows.append(row)
        if outcome.run is None or not outcome.done:
            continue
        run = Run(Path(outcome.run))
        try:
            row |= {key: value for key, value in run.read().items() if key not in row}
            split = run.split()
        except RunError as error:
            notes.append(str(error))
        else:
            row["tested"] = hash_of({"test": sorted(record.path for record in split.lists["test"])})
            notes += split.notes
    Console().print(sweep_table(rows))
    for note in dict.fromkeys(notes):
        log.info("%s", note)
