"""One job: from overrides to a finished run. What is finished is left alone, what was cut off goes on.

Nothing here imports torch before something is trained: a finished run is recognised in a second.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly_lab.arguments import given_value, option_of
from anomaly_lab.config import Config, check_values, compose, has_choice
from anomaly_lab.data.plan import DataPlan, load_options, make_plan
from anomaly_lab.errors import ConfigError, LabError, RunError
from anomaly_lab.hardware import process_count, resolve_precision
from anomaly_lab.locks import RunBusyError
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

# Overrides that do not concern the first of two stages, which has a recipe of its own; nor do labels, unless it learns
# from them
_SECOND_STAGE_ONLY = {"model", "force", "recipe", "dataset.learns_from"}
_OF_LABELS = {
    f"dataset.{name}" for name in ("labelled_per_type", "labels", "synthetic_kinds", "synthetic_share", "real_share")
}

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # full, or not to be written

_SAME_IN_BOTH_STAGES = ("name", "category", "image_size", "resize", "max_value", "roi")


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    overrides: list[str]
    status: Literal["finished", "skipped", "busy", "failed"]
    run: str | None = None  # its directory, once the configuration is good enough to have one
    cause: str | None = None

    @property
    def done(self) -> bool:
        """Whether its run is there, made just now or before."""
        return self.status in ("finished", "skipped")


@dataclass(frozen=True)
class Job:
    """What is going to be run, on what, and where it lies or will lie."""

    config: Config
    plan: DataPlan
    run: Run
    stage1: FirstStage | None
    processes: int  # that train it together


def prepare(config: Config, overrides: Sequence[str]) -> Job:
    """Check a configuration, scan and split its dataset, and find its run.

    Raises:
        LabError: if anything about it cannot work.
    """
    check_values(config)
    config["trainer"]["precision"] = resolve_precision(config["trainer"]["precision"])
    processes = process_count(config["trainer"]["accelerator"], config["trainer"]["devices"])
    if (size := config["dataset"]["batch_size"]) % processes or size < 2 * processes:
        raise ConfigError(
            f"dataset.batch_size={size} is shared out among {processes} processes, two images or more to each (batch "
            f"norm needs them): set it to a multiple of {processes}, such as {processes * max(2, size // processes)}."
        )
    plan = make_plan(config["dataset"], tuple(config["allow"]))
    if plan.lacks_labels:
        config["dataset"]["labels"] = "synthetic"  # as if it had been asked for
    for stream in plan.load.learns_from:
        plan.stream(stream)  # what cannot be learnt from is said before the first of two stages is trained
    stage1 = _first_stage(config, plan, overrides)
    return Job(config, plan, Run.of(config, plan), stage1, processes)


def run_job(config: Config, overrides: list[str]) -> Outcome:
    """Train one configuration and say what became of it; only a keyboard interrupt gets out."""
    run = None
    try:
        job = prepare(config, overrides)
        plan, run, stage1, processes = job.plan, job.run, job.stage1, job.processes
        with run.lock():
            if config["force"]:
                run.clear()
            before = run.read().get("status")
            run.check(config, plan)
            if before == "finished":
                return Outcome(overrides, "skipped", str(run.path))
            if before is not None:
                log.info("Going on with %s", run.path)
            if plan.lacks_labels and before is None:
                _recommend(config, overrides)
            run.start(config, plan)
            try:
                from anomaly_lab.build import build_model  # torch and lightning come with it
                from anomaly_lab.fit import fit
                from anomaly_lab.launch import on_ranks

                if stage1 is not None:
                    build_model(config)  # what cannot work is said before the first stage takes its time
                    stage1.train()
                results = on_ranks(processes, fit, config, plan, run, stage1.run if stage1 else None)
                run.finish(config, plan, results)
            except Exception as error:
                with contextlib.suppress(RunError):  # where the disk is full, the run stays interrupted
                    run.fail(config, plan, error, traceback.format_exc())
                raise
        return Outcome(overrides, "finished", str(run.path))
    except SystemExit:  # what Lightning makes of Ctrl-C and SIGTERM: not failed, the same command goes on
        raise KeyboardInterrupt from None
    except RunBusyError as error:
        return Outcome(overrides, "busy", str(run.path) if run else None, str(error))
    except LabError as error:
        return Outcome(overrides, "failed", str(run.path) if run else None, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_A_DISK:
            cause = str(RunError.of(run.path if run else Path(config["runs_dir"]), error))
        else:  # a fault of ours: its traceback is needed
            log.error("%s", traceback.format_exc())
            cause = f"{type(error).__name__}: {error}"
        return Outcome(overrides, "failed", str(run.path) if run else None, cause)


def _recommend(config: Config, overrides: Sequence[str]) -> None:
    name = config["model"]["name"]
    has_own = "recipe" in map(option_of, overrides) or has_choice("recipe", f"{config['dataset']['name']}_{name}")
    if not has_own and has_choice("recipe", f"normal_only_{name}"):
        log.info("Without labels, recipe=normal_only_%s has settings for that, and takes minutes without a GPU.", name)


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

    It is what the same command trains with the first stage's model, `model.stage1.x` standing for that model's `x` and
    `recipe=NAME_ae_unet` for `recipe=NAME_ae` if there is one, or the finished run that `model.autoencoder` names.

    Raises:
        ConfigError: if the two would see images of different sizes, or the first would learn from what the second is
            tested on.
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
        trained = _check_given(run, found, config, plan)
        stage = FirstStage(run, found, [])
        named = f"model.autoencoder={run.path}"
    else:
        texts = _stage1_overrides(node, overrides)
        first = compose("train", texts)
        for key, here, there in _differences(config, first):
            raise ConfigError(
                f"dataset.{key} is {here}, and {there} for the first stage, model={node['stage1']['name']}, whose "
                f"recipe is another: give dataset.{key} beside the recipe, or a recipe for both stages."
            )
        _check_recipe(node, first["model"], overrides)
        first["trainer"]["precision"] = resolve_precision(first["trainer"]["precision"])
        first["logger"] |= {key: config["logger"][key] for key in ("group",) if key in config["logger"]}
        for each, name in ((first, "stage 1"), (config, "stage 2")):
            if "job_type" in each["logger"]:
                each["logger"]["job_type"] = each["logger"]["job_type"] or name
        trained = make_plan(first["dataset"], tuple(first["allow"]))
        stage = FirstStage(Run.of(first, trained), first, texts)
        named = f"The first stage, model={first['model']['name']},"
    _check_split(named, trained, plan)
    node["stage1"] = stage.config["model"]
    # a given run may lie anywhere: its path says nothing
    node["stage1_hash"] = f"{stage.run.read()['config_hash'][:8]}-s{found['seed']}" if given else stage.run.path.name
    node["latent_dim"] = node["stage1"]["latent_dim"]
    return stage


def _stage1_overrides(model: Config, overrides: Sequence[str]) -> list[str]:
    first = model["stage1"]
    texts = [f"model={first['name']}"]
    dropped = _SECOND_STAGE_ONLY | (_OF_LABELS if first["learns_from"] == ["unlabelled"] else set())
    for text in overrides:
        key = option_of(text)
        if key == "model.stage1" or (key.startswith("model.stage1.") and text.startswith("~")):
            raise ConfigError(
                f"{text!r}: options of the first stage are set one by one, such as model.stage1.loss=ssim, and none is "
                "taken out; null stands for nothing."
            )
        if key.startswith("model.stage1."):
            texts.append(text.replace("model.stage1.", "model.", 1))
        elif key == "recipe" and (own := given_value(text)).endswith(f"_{model['name']}"):
            its = own.removesuffix(model["name"]) + first["name"]
            if has_choice("recipe", its):
                texts.append(f"recipe={its}")
        elif key == "model.latent_dim" or text == "~recipe" or not (key in dropped or key.startswith("model.")):
            texts.append(text)
    return texts


def _check_recipe(model: Config, first: Config, overrides: Sequence[str]) -> None:
    """Refuse a recipe that says something of the first stage, `model.latent_dim` included, which that does not get."""
    different = {key: value for key, value in model["stage1"].items() if first.get(key) != value}
    if not different:
        return
    try:
        without = compose("train", [*(text for text in overrides if option_of(text) != "recipe"), "~recipe"])
    except ConfigError:  # the command means something only with the recipe: what is the recipe's word is not known
        return
    for key, value in different.items():
        if without["model"]["stage1"].get(key) != value:
            raise ConfigError(
                f"The recipe sets model.stage1.{key}={value}, and the first stage gets {first.get(key)}: it takes "
                f"recipe=NAME_{first['name']} where the second takes recipe=NAME_{model['name']}. Set model.{key} in "
                f"NAME_{first['name']}.yaml, or model.stage1.{key} on the command line."
            )


def _differences(config: Config, first: Config) -> list[tuple[str, object, object]]:
    """In what the two stages' images are not the same: (option of the dataset, here, for the first stage)."""
    both = ((key, config["dataset"].get(key), first["dataset"].get(key)) for key in _SAME_IN_BOTH_STAGES)
    return [(key, here, there) for key, here, there in both if here != there]


def _check_given(run: Run, first: Config, config: Config, plan: DataPlan) -> DataPlan:
    """Refuse a given first stage that does not fit; returns what it was trained on."""
    if run.status() != "finished":
        raise RunError(f"model.autoencoder={run.path} is {run.status()}, not finished.")
    if first["model"]["name"] != config["model"]["stage1"]["name"]:
        raise ConfigError(f"model.autoencoder={run.path} is a run of {first['model']['name']}, not of an autoencoder.")
    trained = DataPlan(plan.dataset, run.split(), load_options(first["dataset"]))
    if trained.sha256 != run.read().get("data_sha256"):
        raise ConfigError(
            f"model.autoencoder={run.path} was trained on other images than those under {plan.dataset.root}."
        )
    for key, here, there in _differences(config, first):
        raise ConfigError(f"model.autoencoder={run.path} was trained with dataset.{key}={there}, here it is {here}.")
    return trained


def _check_split(named: str, trained: DataPlan, plan: DataPlan) -> None:
    """Refuse a first stage that sees images of another size, or has seen what is tested here."""
    if plan.full_size != trained.full_size:
        raise ConfigError(f"{named} has dataset.full_size={trained.full_size}, here it is {plan.full_size}.")
    keeps_parts = plan.split.options.keeps_parts
    learnt = [record for stream in trained.load.learns_from for record in trained.pool(stream)]
    judged_on = [record for name in ("val", "tune", "test") for record in plan.split.lists.get(name, ())]
    seen, judged = ({r.part_of if keeps_parts else r.path for r in records} for records in (learnt, judged_on))
    if shared := sorted(seen & judged):
        raise ConfigError(
            f"{named} learns from {len(shared)} parts that are tested here, such as {shared[0]}: its split is another "
            "one (dataset.split_seed, dataset.split, dataset.protocol)."
        )
