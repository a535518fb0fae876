"""A table of a paper beside what was found, in the terminal, and what has to be said below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anomaly_lab.experiment import Axis, Cell, Experiment
from anomaly_lab.metrics.statistics import LEVEL, Difference
from anomaly_lab.reporting.reproduction import FLOORS, RELATIVE, Reproduction, half_a_unit
from anomaly_lab.reporting.tables import MISSING, duration


@dataclass(frozen=True)
class Grid:
    """The table's places: labels of rows and columns, and the cell at each."""

    rows: list[tuple[str, dict[Axis, str]]]
    columns: list[tuple[tuple[str, ...], dict[Axis, str]]]
    experiment: Experiment

    @classmethod
    def of(cls, experiment: Experiment) -> Grid:
        """The rows and columns of an experiment, the floors of its metrics among the methods."""
        floors = _floors(experiment)
        rows = [(", ".join(place.values()), place) for place in experiment.row_places()]
        columns = [(tuple(place.values()), place) for place in experiment.places(experiment.columns)]
        if "methods" in experiment.rows:
            others = [axis for axis in experiment.rows if axis != "methods"]
            for name in floors:
                places = [{**place, "methods": name} for place in experiment.places(others)]
                rows += [(", ".join([name, *(p[axis] for axis in others)]), p) for p in places]
        elif "methods" in experiment.columns:
            others = [axis for axis in experiment.columns if axis != "methods"]
            for place in experiment.places(others):
                of_metric = floors if "metrics" not in place else _floors(experiment, place["metrics"])
                last = max(i for i, (_, p) in enumerate(columns) if place.items() <= p.items())
                more = [{**place, "methods": name} for name in of_metric]
                columns[last + 1 : last + 1] = [(tuple(p[axis] for axis in experiment.columns), p) for p in more]
        return cls(rows, columns, experiment)

    def cell(self, row: dict[Axis, str], column: dict[Axis, str]) -> Cell:
        """The cell at a row and a column."""
        return self.experiment.cell(row, column)


def _floors(experiment: Experiment, metric: str | None = None) -> list[str]:
    """Names of the floors of a metric, or of all an experiment's metrics."""
    metrics = [experiment.metrics[metric]] if metric else experiment.metrics.values()
    return list(dict.fromkeys(name for start, name, _ in FLOORS if any(m.startswith(start) for m in metrics)))


def terminal(found: Reproduction, width: int = 80) -> RenderableType:
    """The table in blocks that fit the width: what was found, and below it what is printed and whether it holds."""
    grid = Grid.of(found.experiment)
    parts: list[RenderableType] = []
    first = max((len(label) for label, _ in grid.rows), default=0)
    for block in _blocks(grid.columns, max(1, (width - min(first, 26)) // 17)):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column("", overflow="fold", max_width=26)
        for names, _ in block:
            table.add_column("\n".join(names) or next(iter(found.experiment.metrics)), justify="right")
        for label, row in grid.rows:
            cells = [grid.cell(row, column) for _, column in block]
            table.add_row(Text(label), *(_terminal_cell(found, cell) for cell in cells))
        parts += [table, Text()]
    title = Text(f"{found.experiment.title} ({found.experiment.source})", style="bold")
    return Group(title, Text(), *parts, *_difference_table(found), Text("\n".join(notes(found))))


def _blocks(columns: list[Any], most: int) -> Iterator[list[Any]]:
    """Columns in groups of at most so many, those of one outer name together where they fit."""
    block: list[Any] = []
    for _, group in groupby(columns, key=lambda column: column[0][:-1]):
        members = list(group)
        if block and len(block) + len(members) > most:
            yield block
            block = []
        while len(members) > most:
            yield members[:most]
            members = members[most:]
        block += members
    if block:
        yield block


def _terminal_cell(found: Reproduction, cell: Cell) -> Text:
    text = Text(here(found, cell))
    verdicts = found.verdicts(cell)
    for source, printed in found.experiment.printed_at(cell).items():
        style = {"reproduced": "green", "different": "red"}.get(verdicts[source], "dim")
        text.append(f"\n{printed_text(found.experiment, cell, printed)} {verdicts[source]}", style)
    return text


def _difference_table(found: Reproduction) -> list[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, title_justify="left")
    for number, row in enumerate(rows := difference_rows(found)):
        for heading in row if number == 0 else ():
            table.add_column(heading, overflow="fold")
        if number:
            table.add_row(*row)
    return [table, Text()] if rows else []


def difference_rows(found: Reproduction) -> list[list[str]]:
    """Differences on the same seeds as a table, its headings first; nothing where there are no two seeds."""
    differences = list(found.differences())
    if all(difference.spread.count < 2 for _, _, difference in differences):
        return []
    heading = [f"{differences[0][1]} less", "on", "of", "difference", f"{LEVEL:.0%} interval", "p"]
    rows = [
        [cell.method, cell.dataset, cell.metric, *_difference(found.experiment, cell, difference)]
        for cell, _, difference in differences
    ]
    return [heading, *rows]


def _difference(experiment: Experiment, cell: Cell, difference: Difference) -> tuple[str, str, str]:
    def signed(value: float) -> str:
        return ("-" if value < 0 else "+") + number_text(experiment, cell, abs(value))

    of = difference.spread
    bounds = MISSING if of.interval is None else f"[{', '.join(map(signed, of.interval))}]"
    p_value = MISSING if difference.p_value is None else f"{difference.p_value:.3f}"
    deviation = "" if of.deviation is None else f" ± {number_text(experiment, cell, of.deviation)}"
    return signed(of.mean) + deviation, bounds, p_value


def notes(found: Reproduction) -> list[str]:
    """What has to be said below the table: what its numbers are, what is missing, and what the paper contradicts."""
    experiment = found.experiment
    lines = []
    if experiment.needs_runs:
        lines.append(
            f"Mean ± standard deviation over {experiment.seeds} seeds, each of which sets the split and the training."
            if experiment.seeds > 1
            else "One seed."
        )
    if experiment.needs_runs and any(found.experiment.printed_at(cell) for cell in _cells(found)):
        close = f"{RELATIVE:.0%} of it" if experiment.close is None else f"{experiment.close:g}"
        lines.append(
            f"reproduced: the {LEVEL:.0%} t interval over the seeds holds the printed value and reaches at most "
            f"{close} to each side; different: it does not hold it; undecided: it is wider."
        )
    if experiment.needs_runs and "methods" not in (*experiment.rows, *experiment.columns):
        lines += [
            f"{floor}, {dataset}: {here(found, Cell(dataset, floor, metric))}"
            for floor in _floors(experiment)
            for dataset in experiment.datasets
            for metric in list(experiment.metrics)[:1]
        ]
    if experiment.needs_runs and "metrics" not in (*experiment.rows, *experiment.columns):
        lines += [f"Cells: {name} ({metric})." for name, metric in experiment.metrics.items()]
    lines += _by_reason("Not run", found.gaps)
    lines += _contradictions(experiment)
    lines += [*experiment.notes, *found.told]
    commits = f"; commit {', '.join(found.commits)}" if found.commits else ""
    return [*lines, f"anomaly-lab reproduce {found.about}{commits}"]


def _cells(found: Reproduction) -> list[Cell]:
    grid = Grid.of(found.experiment)
    return [grid.cell(row, column) for _, row in grid.rows for _, column in grid.columns]


def _by_reason(what: str, gaps: Mapping[tuple[str, str], str]) -> list[str]:
    """One line for each reason, with the (dataset, method) that it is of."""
    reasons: dict[str, list[str]] = {}
    for (dataset, method), reason in gaps.items():
        reasons.setdefault(" ".join(reason.split()), []).append(f"{dataset} / {method}")
    return [f"{what}: {_listed(where)}: {reason}" for reason, where in reasons.items()]


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _contradictions(experiment: Experiment) -> list[str]:
    """Printed means that are not those of the printed cells above them."""
    if not experiment.mean:
        return []
    lines = []
    for column in experiment.places(experiment.columns):
        cells = [experiment.cell({"datasets": name}, column) for name in experiment.datasets]
        for source, printed in experiment.printed_at(experiment.cell({"datasets": experiment.mean}, column)).items():
            parts = [experiment.printed_at(cell).get(source) for cell in cells]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts) and abs(mean(known) - printed) > 2 * half_a_unit(printed):
                name = ", ".join(column.values())
                own = f"{mean(known):,.0f}" if experiment.close is None else f"{mean(known):.3f}"
                lines.append(f"{source} prints {printed:g} as the mean of {name}; its cells average {own}.")
    return lines


def here(found: Reproduction, cell: Cell) -> str:
    """What was found, such as `0.577 ± 0.024`, and of how many seeds where some are missing."""
    of = found.spread(cell)
    if of is None:
        return MISSING
    text = number_text(found.experiment, cell, of.mean)
    if of.deviation is not None and found.experiment.needs_runs:
        text += f" ± {number_text(found.experiment, cell, of.deviation)}"
    whole = of.count == found.experiment.seeds or not found.experiment.needs_runs
    return text if whole else f"{text} ({of.count} of {found.experiment.seeds})"


def number_text(experiment: Experiment, cell: Cell, value: float) -> str:
    """A value of a cell with as many decimals as its metric wants."""
    if experiment.close is None:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{value:g}" if experiment.metrics[cell.metric].startswith("count_") else f"{value:.3f}"


def printed_text(experiment: Experiment, cell: Cell, value: float) -> str:
    """A printed value of a cell, with the paper's decimals."""
    if experiment.close is None or experiment.metrics[cell.metric].startswith("count_"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if round(value, 2) == value else f"{value:.3f}"


def plan_table(
    experiment: Experiment, rows: Sequence[tuple[str, str, int, int, float | None, str | None]]
) -> RenderableType:
    """What `--dry-run` shows: (dataset, method, runs, those that are there, seconds of each, why it cannot be run)."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in ("dataset", "method", "runs", "there", "missing", "about"):
        table.add_column(heading, justify="left" if heading in ("dataset", "method") else "right", overflow="fold")
    total, unknown = 0.0, 0
    for dataset, method, count, done, each, gap in rows:
        left = 0 if gap else count - done
        time = MISSING if not left or each is None else duration(left * each)
        table.add_row(dataset, method, str(count), str(done), "cannot" if gap else str(left), time)
        total += left * (each or 0)
        unknown += left if each is None else 0
    lines = _by_reason("Cannot be run", {(dataset, method): gap for dataset, method, *_, gap in rows if gap})
    if experiment.needs_runs:
        if total:
            lines.append(f"What is missing takes about {duration(total)} on one machine.")
        if unknown:
            which = f"{unknown} runs take" if unknown > 1 else "1 run takes"
            lines.append(f"How long {which} is not known: nothing of the same settings was run here yet.")
        if not total and not unknown and not any(gap for *_, gap in rows):
            lines.append("Nothing is missing.")
    return Group(table, Text(), Text("\n".join(lines)))
