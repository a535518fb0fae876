"""What was found for a table of a paper: values over seeds, verdicts on the printed ones, differences of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from anomaly_lab.experiment import Cell, Experiment, is_of_split
from anomaly_lab.metrics.statistics import Difference, Spread, Verdict, paired, spread, verdict

# What needs no training, beside the metrics that it is a floor of: (start of the metric's name, name, floor's metric)
FLOORS = (
    ("image_auroc", "floor: nearest thumbnail", "floor_knn_auroc"),
    ("image_auroc", "floor: PCA residual", "floor_pca_auroc"),
    ("image_f1", "floor: all defective", "floor_all_f1"),
    ("pixel_miou", "floor: nothing marked", "floor_empty_miou"),
    ("pixel_mae_256", "floor: nothing marked", "floor_empty_mae_256"),
)

RELATIVE = 0.1  # of a printed value that is no share of one: up to which reach of an interval it counts as reproduced

IMPORTED = " (imported)"  # the end of the name of another tool's method


@dataclass(frozen=True)
class Reproduction:
    """An experiment and what was found.

    Attributes:
        values: (dataset, method) -> seed -> metrics.
        gaps: (dataset, method) -> why there are none, or not of all seeds.
        about: the command that was asked for.
        commits: of the code that the runs were made with.
        told: further notes, of splits and settings.
    """

    experiment: Experiment
    values: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]
    gaps: Mapping[tuple[str, str], str]
    about: str
    commits: tuple[str, ...]
    told: tuple[str, ...] = ()

    def by_seed(self, cell: Cell) -> dict[int, float]:
        """The values of a cell; that of a mean's row needs all its datasets."""
        experiment = self.experiment
        if experiment.mean and cell.dataset == experiment.mean:
            parts = [self.by_seed(cell._replace(dataset=name)) for name in experiment.datasets]
            seeds = set.intersection(*(set(part) for part in parts))
            return {seed: mean(part[seed] for part in parts) for seed in sorted(seeds)}
        metric = experiment.metrics[cell.metric]
        floor = next((own for start, name, own in FLOORS if name == cell.method and metric.startswith(start)), None)
        if floor is not None:  # the same for every method: any run of the seed has it that was made here
            metric = floor
            runs = {
                seed: run
                for (name, method), of in self.values.items()
                if name == cell.dataset and not method.endswith(IMPORTED)
                for seed, run in of.items()
            }
        else:
            runs = dict(self.values.get((cell.dataset, cell.method), {}))
        found = {seed: value_of(runs[seed], metric) for seed in sorted(runs)}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, cell: Cell) -> Spread | None:
        """The values of a cell over its seeds."""
        values = list(self.by_seed(cell).values())
        return spread(values) if values else None

    def verdicts(self, cell: Cell) -> dict[str, Verdict]:
        """What is to be said of each printed value of a cell."""
        found, experiment = self.spread(cell), self.experiment
        verdicts: dict[str, Verdict] = {}
        for source, printed in experiment.printed_at(cell).items():
            if found is not None and is_of_split(experiment.metrics[cell.metric]):
                verdicts[source] = "reproduced" if abs(found.mean - printed) <= half_a_unit(printed) else "different"
            else:
                close = RELATIVE * abs(printed) if experiment.close is None else experiment.close
                verdicts[source] = verdict(found, printed, close=close) or "not run"
        return verdicts

    def differences(self) -> Iterator[tuple[Cell, str, Difference]]:
        """The table's last method less each other one, on the seeds that both have: (cell of the other, last, it)."""
        own = [name for name in self.experiment.methods if not name.endswith(IMPORTED)]
        last = own[-1]
        others = [name for name in self.experiment.methods if name != last]
        for dataset in self.experiment.datasets:
            for metric, name in self.experiment.metrics.items():
                if is_of_split(name):
                    continue
                ours = self.by_seed(Cell(dataset, last, metric))
                for other in others:
                    theirs = self.by_seed(cell := Cell(dataset, other, metric))
                    if seeds := [seed for seed in ours if seed in theirs]:
                        yield cell, last, paired([ours[s] for s in seeds], [theirs[s] for s in seeds])


def value_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric, or by a name with dots one within another: `per_defect.crack.image_auroc`."""
    value: Any = metrics.get(name)
    if value is None:
        value = metrics
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def half_a_unit(printed: float) -> float:
    """Half a unit of the last decimal of a printed value."""
    return 0.5 * 10.0 ** -len(f"{printed:g}".partition(".")[2]) + 1e-9
