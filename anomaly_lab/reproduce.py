"""`anomaly-lab reproduce NAME`: run what a table or figure of a paper lacks, and print it beside the paper's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_lab.arguments import option_of, own_options, runs_hydra
from anomaly_lab.config import compose, hash_of
from anomaly_lab.errors import ConfigError, RunError, nearest
from anomaly_lab.experiment import Experiment, load, load_settings, names
from anomaly_lab.needed import Needed, imported_beside, plan, seconds_taken
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_DRY_RUN = "--dry-run"

# Options that change no number of a table; those of the second line may be of other images
_NO_NUMBER = (
    *("runs_dir", "force", "predictions", "tags", "allow", "objective", "logger", "dataset.num_workers"),
    *("dataset.root", "dataset.manifest"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.estimate"),
)


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line.

    Attributes:
        experiment: narrowed to the datasets and methods asked for.
        overrides: of every run.
        settings: overrides by model.
        about: what was asked for, in words.
        changes: those of the overrides that change its numbers.
        place: of the table below `runs_dir/tables`: its name, with what was chosen of it.
        runs_dir: where the runs lie.
        launcher: Hydra's options.
        output: where the table goes; None: below `runs_dir`.
        is_forced: run again what is finished.
        is_dry: only say what would be done.
    """

    experiment: Experiment
    overrides: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    about: str
    changes: tuple[str, ...]
    place: str
    runs_dir: Path
    launcher: tuple[str, ...]
    output: Path | None
    is_forced: bool
    is_dry: bool


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab reproduce ARGUMENTS`; the exit status is 0 if all runs that can be made are there."""
    from anomaly_lab.sweep import run_jobs

    asked = parse(arguments)
    needed = list(plan(asked.experiment, asked.settings, asked.overrides))
    if asked.is_dry:
        _show_plan(asked, needed)
        return 0
    missing = [one for one in needed if one.run is not None and (asked.is_forced or not one.is_finished)]
    folder = asked.output or asked.runs_dir / "tables" / asked.place
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder} cannot be a folder ({error.strerror}).") from None
    if asked.experiment.needs_runs:
        names = [f"{one.method} on {one.dataset}, seed {one.seed}" for one in missing]
        run_jobs([one.overrides for one in missing], asked.runs_dir, asked.launcher, names, asked.place)
    _show(asked, needed, folder)
    return int(asked.experiment.needs_runs and any(not one.is_finished for one in missing))


def parse(arguments: Sequence[str]) -> Request:
    """The command line: one name, `seeds=`, `settings=`, `output=`, Hydra's launcher, and overrides of `train`.

    `dataset=` and `model=` choose among the experiment's (`model=ae,unet`); another dataset stands in for all of them.

    Raises:
        ConfigError: if it is not understood.
    """
    flags = [text for text in arguments if text.startswith("-")]
    if unknown := [text for text in flags if text != _DRY_RUN]:
        raise ConfigError(f"There is no flag {unknown[0]}. {nearest(unknown[0], [_DRY_RUN])}")
    words = [text for text in arguments if "=" not in text and not text.startswith(("-", "~"))]
    if len(words) != 1:
        raise ConfigError(f"reproduce takes one experiment of {', '.join(names())}, or a YAML file of your own.")
    own = own_options(arguments, ("seeds", "settings", "output"))
    rest = [text for text in arguments if text not in (*flags, *words) and option_of(text) not in own]
    for text in rest:
        if option_of(text) in ("seed", "dataset.split_seed"):
            raise ConfigError(
                f"{text}: an experiment has seeds of its own, of training and split; seeds=3 says how many."
            )
    launcher = tuple(text for text in rest if runs_hydra(option_of(text)))
    experiment, overrides = _narrowed(load(words[0]), [text for text in rest if text not in launcher])
    if "seeds" in own:
        if not own["seeds"].isdecimal() or int(own["seeds"]) < 1:
            raise ConfigError(f"seeds={own['seeds']} has to be a whole number of at least 1.")
        experiment = experiment.model_copy(update={"seeds": int(own["seeds"])})
    settings = load_settings(own["settings"], experiment) if "settings" in own else {}
    choices = ("dataset", "dataset.category", "model", "settings")
    given = own_options(arguments, choices)
    chosen = [Path(given[name]).stem for name in choices if name in given]
    of_all = compose("train", [text for text in overrides if option_of(text).split(".")[0] not in ("model", "dataset")])
    last = {key: text for text in overrides if not (key := option_of(text)).startswith("logger.")}
    changes = tuple(sorted(text for key, text in last.items() if key not in _NO_NUMBER))
    images = [last[key] for key in ("dataset.root", "dataset.manifest") if key in last]
    if changes or images:  # tables of two splits or of two folders are two tables
        chosen.append(hash_of({"changes": [*images, *changes]})[:6])
    return Request(
        experiment,
        tuple(overrides),
        settings,
        " ".join(text for text in arguments if option_of(text) not in ("output", "runs_dir") and text not in flags),
        changes,
        "-".join([experiment.name, *chosen]),
        Path(of_all["runs_dir"]),
        launcher,
        Path(own["output"]) if "output" in own else None,
        of_all["force"],
        bool(flags),
    )


def _narrowed(experiment: Experiment, overrides: Sequence[str]) -> tuple[Experiment, list[str]]:
    """The experiment on what `dataset=`, `dataset.category=` and `model=` choose, and the other overrides."""
    given = {option_of(text): text for text in overrides}
    update: dict[str, Any] = {}
    if "," in given.get("dataset", ""):
        raise ConfigError(f"{given['dataset']}: a table is of one dataset, or of all of its own if none is given.")
    if where := [given[key] for key in ("dataset", "dataset.category") if key in given]:
        fitting = {name: own for name, own in experiment.datasets.items() if set(where) <= set(own)}
        update["datasets"] = fitting or {"-".join(text.partition("=")[2] for text in where): tuple(where)}
    if "model" in given:
        wanted = {f"model={name}" for name in given["model"].partition("=")[2].split(",")}
        known = dict.fromkeys(text for own in experiment.methods.values() for text in own if option_of(text) == "model")
        if unknown := sorted(wanted - known.keys()):
            raise ConfigError(f"{experiment.name} has no {unknown[0]}: {', '.join(known)}.")
        update["methods"] = {name: own for name, own in experiment.methods.items() if wanted & set(own)}
    rest = [text for text in overrides if option_of(text) not in ("dataset", "dataset.category", "model")]
    narrowed = experiment.narrowed(update)
    for entries in (narrowed.datasets, narrowed.methods):
        for text in rest:
            held = [next((own for own in of if option_of(own) == option_of(text)), None) for of in entries.values()]
            if len(set(held)) > 1:
                raise ConfigError(f"{text}: {experiment.name} varies it itself, so all its rows would be the same.")
    return narrowed, rest


def _show_plan(asked: Request, needed: Sequence[Needed]) -> None:
    """Print which runs are there, which are not, and how long those will take by what others took."""
    from rich.console import Console

    from anomaly_lab.reporting.paper_table import plan_table

    took = seconds_taken(asked.runs_dir)
    rows = []
    for dataset in asked.experiment.datasets:
        for method in asked.experiment.methods:
            jobs = [one for one in needed if (one.dataset, one.method) == (dataset, method)]
            gap = next((one.gap for one in jobs if one.gap), None)
            done = 0 if asked.is_forced else sum(one.is_finished for one in jobs)
            rows.append((dataset, method, len(jobs), done, took.get(jobs[0].kind), gap))
    Console().print(plan_table(asked.experiment, rows))


def _show(asked: Request, needed: Sequence[Needed], folder: Path) -> None:
    """Print the table, and write it as Markdown, CSV and LaTeX with its figure beside it."""
    from rich.console import Console

    from anomaly_lab.draw import draw
    from anomaly_lab.reporting import paper_files, paper_table
    from anomaly_lab.reporting.reproduction import IMPORTED, Reproduction
    from anomaly_lab.reporting.style import DPI

    values: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    runs: dict[tuple[str, str], list[Run]] = {}
    gaps: dict[tuple[str, str], str] = {}
    reasons: dict[str, str] = {}
    commits: set[str] = set()
    for one in needed:
        where = (one.dataset, one.method)
        if one.run is None:
            gaps[where] = str(one.gap)
            continue
        if one.is_finished:
            content = one.run.read()
            values.setdefault(where, {})[one.seed] = {**one.counts, **content["metrics"], **_derived(content, one.side)}
            runs.setdefault(where, []).append(one.run)
            reasons |= content["reasons"]
            sha, _, dirty = str(content.get("git_sha") or "unknown").partition("-")
            commits.add(sha[:7] + (f"-{dirty}" if dirty else ""))
        elif asked.experiment.needs_runs:
            gaps.setdefault(where, _why(one.run))
        else:
            values.setdefault(where, {})[one.seed] = one.counts
    experiment = asked.experiment
    if experiment.needs_runs:
        for one, run in imported_beside(needed):
            name = run.path.parts[-2] + IMPORTED
            content = run.read()
            dataset = run.config()["dataset"]
            side = dataset["full_size"] or dataset["image_size"]
            known = _derived(content, side if isinstance(side, int) else None)
            values.setdefault((one.dataset, name), {})[one.seed] = {**one.counts, **content["metrics"], **known}
            runs.setdefault((one.dataset, name), []).append(run)
            experiment = experiment.narrowed({"methods": {**experiment.methods, name: ()}})
    plans = {one.dataset: one.plan for one in needed if one.plan is not None}
    told = [f"Splits: {', '.join(f'{name} {of.split.options.split}' for name, of in plans.items())}."] if plans else []
    if experiment.needs_runs and (asked.settings or asked.changes):
        told.append("Not at the paper's settings: what was changed is in the command below, and verdicts are of that.")
    told += _unfilled(experiment, [metrics for of in values.values() for metrics in of.values()], reasons)
    found = Reproduction(experiment, values, gaps, asked.about, tuple(sorted(commits)), tuple(told))
    Console().print(paper_table.terminal(found))
    if not values:
        log.info("There is nothing to write.")
        return
    written = paper_files.write(found, folder)
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


def _unfilled(experiment: Experiment, found: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]) -> Iterator[str]:
    """Why a metric is in no cell."""
    from anomaly_lab.reporting.reproduction import value_of

    for name, metric in experiment.metrics.items():
        if found and all(value_of(metrics, metric) is None for metrics in found):
            known = [key for metrics in found for key, value in metrics.items() if isinstance(value, int | float)]
            why = reasons.get(metric.removesuffix("_256")) or f"no run has it. {nearest(metric, known, listed=False)}"
            yield f"{name} ({metric}): {why}".rstrip()


def _why(run: Run) -> str:
    """Why a run is not finished."""
    try:
        if run.status() == "finished":
            return f"{run.path} holds another configuration. Move it away, or run with force=true."
        return f"{run.path}: {run.read().get('cause') or run.status()}"
    except RunError as error:
        return str(error)


def _derived(content: Mapping[str, Any], side: int | None) -> dict[str, float]:
    """What a table shows in other units: milliseconds an image; wrong pixels of 256x256, P2's size, since methods may
    see images of different sizes."""
    found = {}
    if (seconds := content["seconds"].get("per_image")) is not None:
        found["milliseconds_per_image"] = 1000 * seconds
    for name in ("pixel_mae", "floor_empty_mae"):
        if (wrong := content["metrics"].get(name)) is not None and side is not None:
            found[f"{name}_256"] = wrong * (256 / side) ** 2
    return found
