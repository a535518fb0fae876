"""Runs that differ in nothing but their seeds, as one row of the leaderboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from anomaly_lab.errors import RunError
from anomaly_lab.metrics.statistics import Spread, spread
from anomaly_lab.reporting.run_list import Entry
from anomaly_lab.runs import flat_options

Options = dict[str, Any]

# what repeats a run, says where it lies or where it runs
_APART = {
    *("seed", "dataset.split_seed", "runs_dir", "force", "predictions", "tags", "allow", "objective", "dataset.root"),
    *("dataset.manifest", "model.image_size"),
    *("dataset.num_workers", "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.estimate"),
    *("model.stage1_hash", "model.autoencoder", "model._target_", "dataset._target_"),
}


_LABELS = tuple(f"dataset.{name}" for name in ("labelled_per_type", "unlabelled_per_type", "label_reserve"))
_OWN_DATA = ("folder", "manifest")  # any images under one name

# what decides which images are tested, beside the seed
_SPLIT = tuple(
    f"dataset.{name}"
    for name in (
        *("protocol", "split", "tuning", "labelled_per_type", "unlabelled_per_type", "label_reserve"),
        *("train_count", "val_count", "val_fraction", "test_normal_count", "test_fraction"),
    )
)


@dataclass(frozen=True, eq=False)
class Group:
    """The finished runs of one configuration.

    Attributes:
        options: what all of them share, by dotted name.
        runs: by seed.
        place: of one's own images, what their folder or list is called among the others.
    """

    options: Options
    runs: tuple[Entry, ...]
    place: str = ""

    @property
    def dataset(self) -> str:
        """With its category; of one's own images with the name of their folder or list."""
        return " ".join(filter(None, (self.runs[0].dataset, self.place)))

    @property
    def model(self) -> str:
        """The method."""
        return self.runs[0].model

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """Each metric that is a number in all of the runs, by seed."""
        metrics = [_in_use(entry) for entry in self.runs]
        return {
            name: [float(one[name]) for one in metrics]
            for name in metrics[0]
            if all(isinstance(one.get(name), int | float) for one in metrics)
        }

    def spread(self, metric: str) -> Spread | None:
        """A metric's mean and spread over the seeds; None where it is not known."""
        values = self.values.get(metric)
        return spread(values) if values else None


def group_runs(runs: Sequence[tuple[Entry, Mapping[str, Any]]]) -> list[Group]:
    """Finished runs, each with its configuration, by what they share; sorted by dataset, method and options."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    options: dict[tuple[Any, ...], tuple[Options, str]] = {}
    for entry, config in runs:
        data = config["dataset"]
        source = str(data.get("manifest") or data.get("root") or "") if entry.dataset in _OWN_DATA else ""
        own = {
            key: value
            for key, value in flat_options(config).items()
            if value is not None and key not in _APART and not key.startswith("logger.")
        }
        if own.get("dataset.protocol") == "normal_only":
            own = {name: value for name, value in own.items() if name not in _LABELS}
        key = (entry.dataset, source, entry.model, tuple(sorted((name, repr(value)) for name, value in own.items())))
        found.setdefault(key, []).append(entry)
        options[key] = own, source
    places = _places({source for _, source in options.values() if source})
    return [
        Group(
            options[key][0],
            tuple(sorted(entries, key=lambda entry: entry.content.get("seed", 0))),
            places.get(options[key][1], ""),
        )
        for key, entries in sorted(found.items())
    ]


def _in_use(entry: Entry) -> Mapping[str, Any]:
    """A run's metrics, F1 at the threshold chosen for use where there is one."""
    try:
        chosen = entry.run.chosen_threshold()
    except RunError:  # the page says so of the run it shows
        chosen = None
    metrics: Mapping[str, Any] = entry.content["metrics"]
    return metrics if chosen is None else {**metrics, "image_f1": chosen.get("test", {}).get("f1")}


def _places(sources: Collection[str]) -> dict[str, str]:
    """A short name for each folder or list: the end of its path that no other has."""
    found = {}
    for source in sources:
        parts = PurePath(source).parts
        for length in range(1, len(parts) + 1):
            end = parts[-length:]
            if sum(PurePath(other).parts[-length:] == end for other in sources) == 1:
                break
        found[source] = "/".join(end)
    return found


@dataclass(frozen=True)
class Name:
    """How a group is called among others: by what differs.

    Attributes:
        tested: the dataset and how it is split, such as `mt, split=random`.
        method: the method and its options, such as `dpae latent_dim=32`.
    """

    tested: str
    method: str


def name_all(groups: Sequence[Group]) -> dict[Group, Name]:
    """A name for each group, without the options that all others of its dataset, or dataset and method, share."""
    tested: dict[Group, str] = {}
    found: dict[Group, Name] = {}
    for alike in _parted(groups, lambda group: group.dataset):
        varying = _varying(alike, _SPLIT)
        tested |= {group: ", ".join([group.dataset, *_told(group, varying)]) for group in alike}
    for alike in _parted(groups, lambda group: (tested[group], group.model)):
        names = sorted({name for group in alike for name in group.options}.difference(_SPLIT))
        varying = _varying(alike, names)
        found |= {group: Name(tested[group], " ".join([group.model, *_told(group, varying)])) for group in alike}
    return found


def _parted(groups: Sequence[Group], key: Callable[[Group], Any]) -> list[list[Group]]:
    """The groups of each key together."""
    parts: dict[Any, list[Group]] = {}
    for group in groups:
        parts.setdefault(key(group), []).append(group)
    return list(parts.values())


def _varying(groups: Sequence[Group], names: Sequence[str]) -> dict[str, str]:
    """The options among `names` in which the groups are not all alike, with a short name that no other has."""
    varying = [name for name in names if len({repr(group.options.get(name)) for group in groups}) > 1]
    short = {name: name.rpartition(".")[2] for name in varying}
    unique = Counter(short.values())
    return {name: short[name] if unique[short[name]] == 1 else name for name in varying}


def _told(group: Group, varying: Mapping[str, str]) -> list[str]:
    """A group's values of some options, such as `latent_dim=32`."""
    return [f"{short}={_short(group.options[name])}" for name, short in varying.items() if name in group.options]


def over_size(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ in nothing but model.latent_dim, at least two sizes together, from the smallest on."""
    name = "model.latent_dim"
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        rest = tuple(sorted((key, repr(value)) for key, value in group.options.items() if key != name))
        if isinstance(group.options.get(name), int):
            found.setdefault((group.dataset, group.model, rest), []).append(group)
    lines = [sorted(line, key=lambda group: group.options[name]) for line in found.values()]
    return [line for line in lines if len({group.options[name] for group in line}) > 1]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
