"""`anomaly-lab reproduce NAME`: run what a table or figure of a paper lacks, and print it beside the paper's."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from anomaly_lab.config import Config, compose, given_value, hash_basis, hash_of
from anomaly_lab.data.few_labelled import NothingToLabelError
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.errors import ConfigError, DataError, LabError, RunError, nearest
from anomaly_lab.experiment import Experiment, load, load_settings, names
from anomaly_lab.jobs import prepare
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_DRY_RUN = "--dry-run"


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line.

    Attributes:
        experiment: narrowed to the datasets and methods asked for.
        overrides: of every run.
        settings: overrides by model.
        about: what was asked for, in words.
        place: of the table below `runs_dir/tables`: its name, with what was chosen of it.
        launcher: Hydra's options.
        output: where the table goes; None: below `runs_dir`.
        is_dry: only say what would be done.
    """

    experiment: Experiment
    overrides: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    about: str
    place: str
    launcher: tuple[str, ...]
    output: Path | None
    is_dry: bool


@dataclass(frozen=True)
class Needed:
    """A run that a table needs: its names in the table, and where it lies or will lie.

    Attributes:
        run: None if it cannot be made.
        gap: why it cannot be made.
        counts: metrics of its split.
        data: hash of its split.
        kind: hash of its options, but for seed and split: runs of one kind take equally long.
        plan: its split; kept for the first seed only.
    """

    dataset: str
    method: str
    seed: int
    overrides: tuple[str, ...]
    run: Run | None = None
    gap: str | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    data: str = ""
    kind: str = ""
    plan: DataPlan | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its numbers are there."""
        with suppress(RunError):  # a damaged one is run again
            return self.run is not None and self.run.status() == "finished"
        return False


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab reproduce ARGUMENTS`; the exit status is 0 if all runs that can be made are there."""
    from anomaly_lab.sweep import run_jobs

    asked = parse(arguments)
    runs_dir = Path(compose("train", [text for text in asked.overrides if _key(text) == "runs_dir"])["runs_dir"])
    needed = list(plan(asked))
    if asked.is_dry:
        _show_plan(asked.experiment, needed, runs_dir)
        return 0
    forced = "force=true" in asked.overrides
    missing = [one for one in needed if one.run is not None and (forced or not one.is_finished)]
    folder = asked.output or runs_dir / "tables" / asked.place
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder} cannot be a folder ({error.strerror}).") from None
    if asked.experiment.needs_runs:
        names = [f"{one.method} on {one.dataset}, seed {one.seed}" for one in missing]
        run_jobs([one.overrides for one in missing], runs_dir, asked.launcher, names)
    _show(asked, needed, folder)
    return int(asked.experiment.needs_runs and any(not one.is_finished for one in missing))


def parse(arguments: Sequence[str]) -> Request:
    """The command line: one name, `seeds=`, `settings=`, `output=`, Hydra's launcher, and overrides of `train`.

    `dataset=` and `model=` choose among the experiment's; another dataset stands in for all of them.

    Raises:
        ConfigError: if it is not understood.
    """
    flags = [text for text in arguments if text.startswith("-")]
    if unknown := [text for text in flags if text != _DRY_RUN]:
        raise ConfigError(f"There is no flag {unknown[0]}. {nearest(unknown[0], [_DRY_RUN])}")
    words = [text for text in arguments if "=" not in text and not text.startswith(("-", "~"))]
    if len(words) != 1:
        raise ConfigError(f"reproduce takes one experiment of {', '.join(names())}, or a YAML file of your own.")
    own = {_key(text): text.partition("=")[2] for text in arguments if _key(text) in ("seeds", "settings", "output")}
    rest = [text for text in arguments if text not in (*flags, *words) and _key(text) not in own]
    for text in rest:
        if _key(text) in ("seed", "dataset.split_seed"):
            raise ConfigError(
                f"{text}: an experiment has seeds of its own, of training and split; seeds=3 says how many."
            )
    launcher = tuple(text for text in rest if text.startswith("hydra"))
    experiment, overrides = _narrowed(load(words[0]), [text for text in rest if text not in launcher])
    if "seeds" in own:
        if not own["seeds"].isdecimal() or int(own["seeds"]) < 1:
            raise ConfigError(f"seeds={own['seeds']} has to be a whole number of at least 1.")
        experiment = experiment.model_copy(update={"seeds": int(own["seeds"])})
    settings = load_settings(own["settings"]) if "settings" in own else {}
    values = {_key(text): Path(given_value(text)).stem for text in arguments if "=" in text and text[0] not in "~+-"}
    chosen = [values[key] for key in ("dataset", "dataset.category", "model", "settings") if key in values]
    compose("train", [text for text in overrides if _key(text).split(".")[0] not in ("model", "dataset")])
    return Request(
        experiment,
        tuple(overrides),
        settings,
        " ".join(text for text in arguments if _key(text) not in ("output", "runs_dir") and text not in flags),
        "-".join([experiment.name, *chosen]),
        launcher,
        Path(given_value(f"output={own['output']}")) if "output" in own else None,
        bool(flags),
    )


def _narrowed(experiment: Experiment, overrides: Sequence[str]) -> tuple[Experiment, list[str]]:
    """The experiment on what `dataset=`, `dataset.category=` and `model=` choose, and the other overrides."""
    given = {_key(text): text for text in overrides}
    chosen = {
        "datasets": [given[key] for key in ("dataset", "dataset.category") if key in given],
        "methods": [given[key] for key in ("model",) if key in given],
    }
    update: dict[str, Any] = {}
    for axis, texts in chosen.items():
        if texts:
            entries: dict[str, tuple[str, ...]] = getattr(experiment, axis)
            fitting = {name: own for name, own in entries.items() if set(texts) <= set(own)}
            if axis == "methods" and not fitting:
                known = dict.fromkeys(text for own in entries.values() for text in own if _key(text) == "model")
                raise ConfigError(f"{experiment.name} has no {texts[0]}: {', '.join(known)}.")
            update[axis] = fitting or {"-".join(text.partition("=")[2] for text in texts): tuple(texts)}
    rest = [text for text in overrides if not any(text in texts for texts in chosen.values())]
    narrowed = experiment.narrowed(update)
    for entries in (narrowed.datasets, narrowed.methods):
        for text in rest:
            held = [next((own for own in of if _key(own) == _key(text)), None) for of in entries.values()]
            if len(set(held)) > 1:
                raise ConfigError(f"{text}: {experiment.name} varies it itself, so all its rows would be the same.")
    return narrowed, rest


def plan(asked: Request) -> Iterator[Needed]:
    """The runs of a table, in its order; each with its seed for training and split."""
    for dataset, of_dataset in asked.experiment.datasets.items():
        for method, of_method in asked.experiment.methods.items():
            model = next(text.partition("=")[2] for text in of_method if _key(text) == "model")
            small = (*asked.settings.get("all", ()), *asked.settings.get(model, ()), *asked.experiment.options)
            given = (*small, *of_dataset, *of_method, *asked.overrides)
            composed: Config | None = None
            for seed in range(asked.experiment.seeds):
                overrides = _last_of_each(*given, f"seed={seed}", f"dataset.split_seed={seed}")
                try:
                    if composed is None:  # once for all seeds: it takes longer than all else here
                        composed = compose("train", overrides)
                    config = copy.deepcopy(composed)
                    config["seed"] = config["dataset"]["split_seed"] = seed
                    job = prepare(config, overrides)
                except (DataError, NothingToLabelError) as error:
                    yield Needed(dataset, method, seed, overrides, gap=str(error))
                    continue
                except LabError as error:  # a mistake of the command or of the definition, no gap
                    raise ConfigError(f"{method} on {dataset}: {error}") from None
                kept = job.plan if seed == 0 else None
                of_split = counts(job.plan)
                kind, data = _kind(job.config), job.plan.sha256
                yield Needed(dataset, method, seed, overrides, job.run, None, of_split, data, kind, kept)


def counts(plan: DataPlan) -> dict[str, float]:
    """How many images a split has, under the names of an experiment's metrics; quarters count, as in P2's Table 1."""
    lists = {name: len(records) for name, records in plan.split.lists.items()}
    test = plan.split.lists["test"]
    defective = [record for record in test if record.label]
    parts = 4 if plan.is_quartered else 1
    return {
        "count_train": lists.get("train_normal", 0) or lists.get("unlabelled", 0) + lists.get("labelled", 0),
        "count_unlabelled": lists.get("unlabelled", 0),
        "count_labelled": lists.get("labelled", 0),
        "count_test": len(test) * parts,
        "count_test_normal": (len(test) - len(defective)) * parts,
        "count_test_defective": len(defective) * parts,
        "count_defects": len({record.defect for record in defective}),
        "defect_ratio": len(defective) / len(test),
    }


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]


def _last_of_each(*overrides: str) -> tuple[str, ...]:
    """Overrides of which a later one stands in for an earlier one of the same option."""
    return tuple({_key(text): text for text in overrides}.values())


def _show_plan(experiment: Experiment, needed: Sequence[Needed], runs_dir: Path) -> None:
    """Print which runs are there, which are not, and how long those will take by what others took."""
    from rich.console import Console

    from anomaly_lab.reporting.reproduction import plan_table

    took = _seconds(runs_dir)
    rows = []
    for dataset in experiment.datasets:
        for method in experiment.methods:
            jobs = [one for one in needed if (one.dataset, one.method) == (dataset, method)]
            gap = next((one.gap for one in jobs if one.gap), None)
            done = sum(one.is_finished for one in jobs)
            rows.append((dataset, method, len(jobs), done, took.get(jobs[0].kind), gap))
    Console().print(plan_table(experiment, rows))


def _kind(config: Config) -> str:
    return hash_of(hash_basis(config, ""))


def _seconds(runs_dir: Path) -> dict[str, float]:
    """Mean seconds of finished runs by their kind."""
    took: dict[str, list[float]] = {}
    for path in runs_dir.glob("*/*/*/metrics.json"):
        with suppress(RunError):
            content = Run(path.parent).read()
            if content["status"] != "finished" or content.get("imported"):
                continue
            seconds = sum(value for name, value in content["seconds"].items() if name != "per_image")
            took.setdefault(_kind(Run(path.parent).config()), []).append(seconds)
    return {key: mean(values) for key, values in took.items()}


def _show(asked: Request, needed: Sequence[Needed], folder: Path) -> None:
    """Print the table, and write it as Markdown, CSV and LaTeX with its figure beside it."""
    from rich.console import Console

    from anomaly_lab.draw import draw
    from anomaly_lab.reporting import reproduction
    from anomaly_lab.reporting.style import DPI

    values: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    runs: dict[tuple[str, str], list[Run]] = {}
    gaps: dict[tuple[str, str], str] = {}
    commits: set[str] = set()
    for one in needed:
        where = (one.dataset, one.method)
        if one.run is None:
            gaps[where] = str(one.gap)
            continue
        if one.is_finished:
            content = one.run.read()
            values.setdefault(where, {})[one.seed] = {**one.counts, **content["metrics"], **_time(content)}
            runs.setdefault(where, []).append(one.run)
            sha, _, dirty = str(content.get("git_sha") or "unknown").partition("-")
            commits.add(sha[:7] + (f"-{dirty}" if dirty else ""))
        elif asked.experiment.needs_runs:
            gaps[where] = f"{one.run.path}: {one.run.read().get('cause') or one.run.status()}"
        else:
            values.setdefault(where, {})[one.seed] = one.counts
    experiment = asked.experiment
    if experiment.needs_runs:
        for one, run in _imported(needed):
            name = run.path.parts[-2] + reproduction.IMPORTED
            values.setdefault((one.dataset, name), {})[one.seed] = {**one.counts, **run.read()["metrics"]}
            runs.setdefault((one.dataset, name), []).append(run)
            experiment = experiment.narrowed({"methods": {**experiment.methods, name: ()}})
    plans = {one.dataset: one.plan for one in needed if one.plan is not None}
    told = [f"Splits: {', '.join(f'{name} {of.split.options.split}' for name, of in plans.items())}."] if plans else []
    if experiment.needs_runs and (asked.settings or asked.overrides):
        told.append("Not at the paper's settings: what was changed is in the command below, and verdicts are of that.")
    found = reproduction.Reproduction(experiment, values, gaps, asked.about, tuple(sorted(commits)), tuple(told))
    Console().print(reproduction.terminal(found))
    if not values:
        log.info("There is nothing to write.")
        return
    written = reproduction.write(found, folder)
    figure = draw(found, runs, plans)
    for path in (folder / f"figure.{ending}" for ending in ("png", "svg", "pdf")):
        if figure is None:
            path.unlink(missing_ok=True)  # of a table that had more
            continue
        try:
            figure.savefig(path, dpi=DPI)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}.") from None
        written.append(path)
    for path in written:
        log.info("%s", path)


def _imported(needed: Sequence[Needed]) -> Iterator[tuple[Needed, Run]]:
    """The runs of other tools that were tested on the same splits, each beside a run that has it."""
    splits = {(one.dataset, one.seed): one for one in needed if one.run is not None}
    for one in splits.values():
        assert one.run is not None
        for path in sorted(one.run.path.parent.parent.glob("*/*/metrics.json")):
            run = Run(path.parent)
            with suppress(RunError):
                content = run.read()
                is_same = content.get("data_sha256") == one.data and content.get("seed") == one.seed
                if content.get("imported") and content["status"] == "finished" and is_same:
                    yield one, run


def _time(content: Mapping[str, Any]) -> dict[str, float]:
    seconds = content["seconds"].get("per_image")
    return {} if seconds is None else {"milliseconds_per_image": 1000 * seconds}
