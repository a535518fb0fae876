"""`anomaly-lab train`: one run, or a sweep of them; what is finished is left alone, what was cut off goes on.

Nothing here imports torch: a finished run is recognised in a second.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from anomaly_lab.config import Config, check, check_values, compose, conf_dir, hash_of, resolve, sweep_values
from anomaly_lab.data.plan import DataPlan, load_options, make_plan
from anomaly_lab.errors import ConfigError, LabError, RunError, nearest
from anomaly_lab.hardware import resolve_precision
from anomaly_lab.runs import Run, RunBusyError, write_json

log = logging.getLogger("anomaly_lab")

# Overrides that do not concern the first of two stages; nor does the number of labels, unless it learns from them
_SECOND_STAGE_ONLY = {"model", "force", "recipe", "dataset.learns_from"}

_SAME_IN_BOTH_STAGES = ("name", "category", "image_size", "resize", "max_value")

_PRINTING = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve"}  # flags that Hydra answers by itself


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    overrides: list[str]
    status: Literal["finished", "skipped", "busy", "failed"]
    run: str | None = None  # its directory, once the configuration is good enough to have one
    cause: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab train ARGUMENTS`; the exit status is 0 if every job is finished."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    if flags & _PRINTING:
        _hand_to_hydra(list(arguments))
        return 0
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
    if not flags:
        return _finish_single(run_job(config, list(arguments)))
    sweep = Path(config["runs_dir"]) / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    # Hydra's parser wants its flag before the overrides
    _hand_to_hydra(["--multirun", *(a for a in arguments if a not in flags), f"hydra.sweep.dir={sweep}"])
    expected = prod(len(values) for values in sweep_values(arguments))
    outcomes = [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(sweep.glob("*/job.json"))]
    if outcomes:
        _show_sweep(outcomes)
    done = sum(outcome.status in ("finished", "skipped") for outcome in outcomes)
    return int(done < max(expected, 1))


def run_job(config: Config, overrides: list[str]) -> Outcome:
    """Train one configuration and say what became of it; only a keyboard interrupt gets out."""
    run = None
    try:
        check_values(config)
        config["trainer"]["precision"] = resolve_precision(config["trainer"]["precision"])
        plan = make_plan(config["dataset"], tuple(config["allow"]))
        stage1 = _first_stage(config, plan, overrides)
        run = Run.of(config, plan)
        with run.lock():
            if config["force"]:
                run.clear()
            before = run.read().get("status")
            run.check(config, plan)
            if before == "finished":
                return Outcome(overrides, "skipped", str(run.path))
            if before is not None:
                log.info("Going on with %s", run.path)
            run.start(config, plan)
            try:
                from anomaly_lab.fit import build_model, fit  # torch and lightning come with it

                if stage1 is not None:
                    build_model(config)  # what cannot work is said before the first stage takes its time
                    stage1.train()
                run.finish(config, plan, fit(config, plan, run, stage1.run if stage1 else None))
            except Exception as error:
                run.fail(config, plan, error, traceback.format_exc())
                raise
        return Outcome(overrides, "finished", str(run.path))
    except SystemExit:  # what Lightning makes of Ctrl-C and SIGTERM: not failed, the same command goes on
        raise KeyboardInterrupt from None
    except RunBusyError as error:
        return Outcome(overrides, "busy", str(run.path) if run else None, str(error))
    except LabError as error:
        return Outcome(overrides, "failed", str(run.path) if run else None, str(error))
    except Exception as error:  # a fault of ours: its traceback is needed
        log.error("%s", traceback.format_exc())
        return Outcome(overrides, "failed", str(run.path) if run else None, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class FirstStage:
    """The run that a two-stage method starts from: an ordinary one, at its own path."""

    run: Run
    config: Config
    overrides: list[str]

    def train(self) -> None:
        """Train it if nobody has, and wait if somebody is about it.

        Raises:
            RunError: if it fails.
        """
        status, told = self.run.status(), False
        while status == "running":
            if not told:
                log.info("Stage 1: waiting for the process that trains %s", self.run.path)
                told = True
            time.sleep(2)
            status = self.run.status()
        if status == "finished":
            log.info("Stage 1: reusing %s", self.run.path)
            return
        log.info("Stage 1 of 2: %s", self.run.path)
        outcome = run_job(self.config, self.overrides)
        if outcome.status == "busy":  # another job of the sweep was faster
            return self.train()
        if outcome.status == "failed":
            raise RunError(f"Stage 1 failed ({self.run.path}): {outcome.cause}")
        log.info("Stage 2 of 2")
        return None


def _first_stage(config: Config, plan: DataPlan, overrides: Sequence[str]) -> FirstStage | None:
    """The first stage of a two-stage method; its hash goes into the configuration.

    It is what the same command trains with the first stage's model, `model.stage1.x` standing for that model's `x`,
    or the finished run that `model.autoencoder` names.
    """
    node = config["model"]
    if "stage1" not in node:
        return None
    given = node["autoencoder"] is not None
    if given:
        run = Run(Path(node["autoencoder"]))
        if not run.config_file.exists():
            raise ConfigError(f"model.autoencoder={run.path} is no run directory: it has no config.yaml.")
        found = run.config()
        _check_given(run, found, config, plan)
        stage = FirstStage(run, found, [])
    else:
        texts = _stage1_overrides(node["stage1"]["name"], node["stage1"]["learns_from"], overrides)
        first = compose("train", texts)
        first["trainer"]["precision"] = resolve_precision(first["trainer"]["precision"])
        stage = FirstStage(Run.of(first, make_plan(first["dataset"], tuple(first["allow"]))), first, texts)
    node["stage1"] = stage.config["model"]
    # a given run may lie anywhere: its path says nothing
    node["stage1_hash"] = f"{stage.run.read()['config_hash'][:8]}-s{found['seed']}" if given else stage.run.path.name
    node["latent_dim"] = node["stage1"]["latent_dim"]
    return stage


def _stage1_overrides(name: str, learns_from: list[str], overrides: Sequence[str]) -> list[str]:
    texts = [f"model={name}"]
    dropped = _SECOND_STAGE_ONLY | ({"dataset.labelled_per_type"} if learns_from == ["unlabelled"] else set())
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key == "model.stage1" or (key.startswith("model.stage1.") and text.startswith("~")):
            raise ConfigError(
                f"{text!r}: options of the first stage are set one by one, such as model.stage1.loss=ssim, and none is "
                "taken out; null stands for nothing."
            )
        if key.startswith("model.stage1."):
            texts.append(text.replace("model.stage1.", "model.", 1))
        elif key == "model.latent_dim" or text == "~recipe" or not (key in dropped or key.startswith("model.")):
            texts.append(text)
    return texts


def _check_given(run: Run, first: Config, config: Config, plan: DataPlan) -> None:
    """Refuse a given first stage that does not fit, or has seen what is tested here."""
    if run.status() != "finished":
        raise RunError(f"model.autoencoder={run.path} is {run.status()}, not finished.")
    if first["model"]["name"] != config["model"]["stage1"]["name"]:
        raise ConfigError(f"model.autoencoder={run.path} is a run of {first['model']['name']}, not of an autoencoder.")
    here_and_there = [(key, config["dataset"].get(key), first["dataset"].get(key)) for key in _SAME_IN_BOTH_STAGES]
    trained = DataPlan(plan.dataset, run.split(), load_options(first["dataset"]))
    here_and_there.append(("full_size", plan.full_size, trained.full_size))
    if trained.sha256 != run.read().get("data_sha256"):
        raise ConfigError(
            f"model.autoencoder={run.path} was trained on other images than those under {plan.dataset.root}."
        )
    for key, here, there in here_and_there:
        if here != there:
            raise ConfigError(
                f"model.autoencoder={run.path} was trained with dataset.{key}={there}, here it is {here}."
            )
    keeps_parts = plan.split.options.keeps_parts
    learnt = [record for stream in trained.load.learns_from for record in trained.pool(stream)]
    judged_on = [record for name in ("val", "tune", "test") for record in plan.split.lists.get(name, ())]
    seen, judged = ({r.part_of if keeps_parts else r.path for r in records} for records in (learnt, judged_on))
    if shared := sorted(seen & judged):
        raise ConfigError(
            f"model.autoencoder={run.path} was trained on {len(shared)} parts that are tested here, such as "
            f"{shared[0]}: its split is another one (dataset.split_seed, dataset.split)."
        )


def _sweep_job(composed: Any) -> None:
    """One job of a multirun. It never raises: some launchers stop at the first failure, or lose its cause."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = [text for text in hydra.overrides.task if not text.startswith("hydra.")]
    log.info("job %s: %s", hydra.job.num, " ".join(overrides))
    try:
        outcome = run_job(resolve(composed), overrides)
        while outcome.status == "busy":  # a job beside it needs the same first stage
            time.sleep(2)
            outcome = run_job(resolve(composed), overrides)
    except LabError as error:
        outcome = Outcome(overrides, "failed", None, str(error))
    if outcome.status == "failed":
        log.error("job %s failed: %s", hydra.job.num, outcome.cause)
    write_json(Path(hydra.sweep.dir) / f"{hydra.job.num:06d}" / "job.json", asdict(outcome))


def _hand_to_hydra(arguments: list[str]) -> None:
    import hydra

    before = sys.argv
    sys.argv = ["anomaly-lab train", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(_sweep_job)()
    finally:
        sys.argv = before


def _finish_single(outcome: Outcome) -> int:
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    if outcome.run is None or outcome.status in ("failed", "busy"):
        log.error("error: %s", outcome.cause)
        return 1
    run = Run(Path(outcome.run))
    content = run.read()
    Console().print(result_table(content["metrics"], content["reasons"], title="/".join(run.path.parts[-3:])))
    if outcome.status == "skipped":
        log.info("This run is finished; nothing was trained. force=true runs it again.")
    for sentence in (*run.split().notes, json.loads(run.leakage_file.read_text(encoding="utf-8"))["sentence"]):
        log.info("%s", sentence)
    log.info("Run directory: %s\nLook at:       %s", run.path, run.path / "figures")
    return 0


def _show_sweep(outcomes: list[Outcome]) -> None:
    from rich.console import Console

    from anomaly_lab.reporting.sweep import DONE, sweep_table

    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for outcome in outcomes:
        row = asdict(outcome)
        rows.append(row)
        if outcome.run is None or outcome.status not in DONE:
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
