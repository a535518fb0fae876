"""The runs that a table of a paper needs: which they are, where they lie, and what cannot be run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from anomaly_lab.arguments import option_of
from anomaly_lab.config import Config, compose, hash_basis, hash_of
from anomaly_lab.data.few_labelled import NothingToLabelError
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.errors import ConfigError, DataError, LabError, RunError
from anomaly_lab.experiment import Experiment
from anomaly_lab.jobs import prepare
from anomaly_lab.runs import Run


@dataclass(frozen=True)
class Needed:
    """A run that a table needs: its names in the table, and where it lies or will lie.

    Attributes:
        run: None if it cannot be made.
        gap: why it cannot be made.
        counts: metrics of its split.
        data: hash of its split.
        basis: hash of its options and its split.
        kind: hash of its options, but for seed and split: runs of one kind take equally long.
        side: of the images whose pixels its metrics count, quarters where P2 cuts them; None where sizes are their own.
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
    basis: str = ""
    kind: str = ""
    side: int | None = None
    plan: DataPlan | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its numbers are there, and are of these options."""
        with suppress(RunError):  # a damaged one is a job that fails, and says why
            if self.run is not None and self.run.status() == "finished":
                return bool(self.run.read().get("config_hash") == self.basis)
        return False


def plan(experiment: Experiment, settings: Mapping[str, tuple[str, ...]], overrides: Sequence[str]) -> Iterator[Needed]:
    """The runs of a table, in its order; each with its seed for training and split.

    Args:
        experiment: what the table holds.
        settings: overrides by model, under those of the table itself.
        overrides: of every run, over those of the table.

    Raises:
        ConfigError: if one of the runs is asked for what cannot be; a dataset that is not there is a gap.
    """
    for dataset, of_dataset in experiment.datasets.items():
        for method, of_method in experiment.methods.items():
            model = next(text.partition("=")[2] for text in of_method if option_of(text) == "model")
            small = (*settings.get("all", ()), *settings.get(model, ()), *experiment.options)
            given = (*small, *of_dataset, *of_method, *overrides)
            composed: Config | None = None
            for seed in range(experiment.seeds):
                texts = _last_of_each(*given, f"seed={seed}", f"dataset.split_seed={seed}")
                try:
                    if composed is None:  # once for all seeds: it takes longer than all else here
                        composed = compose("train", texts)
                    config = copy.deepcopy(composed)
                    config["seed"] = config["dataset"]["split_seed"] = seed
                    job = prepare(config, texts)
                    if job.plan.lacks_labels:  # a paper's table is of labels
                        raise NothingToLabelError(
                            f"{method} learns from labels, and {dataset} has none to spare. Add defective images with "
                            "masks; or give dataset.labels=synthetic, and it learns from synthesised defects."
                        )
                except (DataError, NothingToLabelError) as error:
                    yield Needed(dataset, method, seed, texts, gap=str(error))
                    continue
                except LabError as error:  # a mistake of the command or of the definition, no gap
                    raise ConfigError(f"{method} on {dataset}: {error}") from None
                kept = job.plan if seed == 0 else None
                of_split = counts(job.plan)
                basis = hash_of(hash_basis(job.config, job.plan.sha256))
                yield Needed(
                    *(dataset, method, seed, texts, job.run, None, of_split),
                    data=job.plan.sha256,
                    basis=basis,
                    kind=_kind(job.config),
                    side=job.plan.load.image_size if job.plan.is_quartered else job.plan.full_size,
                    plan=kept,
                )


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


def _last_of_each(*overrides: str) -> tuple[str, ...]:
    """Overrides of which a later one stands in for an earlier one of the same option."""
    return tuple({option_of(text): text for text in overrides}.values())


def _kind(config: Config) -> str:
    basis = hash_basis(config, "")
    basis["model"].pop("stage1_hash", None)  # of a seed and a split
    return hash_of({**basis, "stage1": config["model"].get("stage1")})


def seconds_taken(runs_dir: Path) -> dict[str, float]:
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


def imported_beside(needed: Sequence[Needed]) -> Iterator[tuple[Needed, Run]]:
    """The runs of other tools that were tested on the same splits, each beside a run that has it; of scores that were
    imported again under the same name, the last ones."""
    splits: dict[tuple[str, int], dict[str, Needed]] = {}  # (data, seed) -> one of each dataset of the table
    folders: set[Path] = set()
    for one in needed:
        if one.run is not None:
            splits.setdefault((one.data, one.seed), {})[one.dataset] = one
            folders.add(one.run.path.parent.parent)
    last: dict[tuple[str, str, int], Run] = {}
    files = {path for folder in folders for path in folder.glob("*/*/metrics.json")}
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        run = Run(path.parent)
        with suppress(RunError):
            content = run.read()
            if content.get("imported") and content["status"] == "finished":
                name = path.parts[-3]
                last[name, content.get("data_sha256", ""), content.get("seed", -1)] = run
    for (_, data, seed), run in sorted(last.items(), key=lambda item: item[0]):
        for beside in splits.get((data, seed), {}).values():
            yield beside, run
