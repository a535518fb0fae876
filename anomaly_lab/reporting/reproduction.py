"""A table of a paper beside what was found: in the terminal, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anomaly_lab.experiment import Axis, Cell, Experiment, is_of_split
from anomaly_lab.metrics.statistics import LEVEL, Difference, Spread, Verdict, paired, spread, verdict
from anomaly_lab.reporting.tables import MISSING, duration
from anomaly_lab.runs import write_text

# What needs no training, beside the metrics that it is a floor of: (start of the metric's name, name, floor's metric)
FLOORS = (
    ("image_auroc", "floor: nearest thumbnail", "floor_knn_auroc"),
    ("image_auroc", "floor: PCA residual", "floor_pca_auroc"),
    ("image_f1", "floor: all defective", "floor_all_f1"),
    ("pixel_miou", "floor: nothing marked", "floor_empty_miou"),
    ("pixel_mae", "floor: nothing marked", "floor_empty_mae"),
)

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
        metric = dict(experiment.metrics).get(cell.metric, cell.metric)
        floor = next((own for start, name, own in FLOORS if name == cell.method and metric.startswith(start)), None)
        if floor is not None:  # the same for every method: any run of the seed has it
            metric = floor
            runs = {
                seed: run for (name, _), of in self.values.items() if name == cell.dataset for seed, run in of.items()
            }
        else:
            runs = dict(self.values.get((cell.dataset, cell.method), {}))
        return {seed: runs[seed][metric] for seed in sorted(runs) if runs[seed].get(metric) is not None}

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
                verdicts[source] = "reproduced" if abs(found.mean - printed) <= _half_a_unit(printed) else "different"
            else:
                close = float("inf") if experiment.close is None else experiment.close
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


def _half_a_unit(printed: float) -> float:
    """Half a unit of the last decimal of a printed value."""
    return 0.5 * 10.0 ** -len(f"{printed:g}".partition(".")[2]) + 1e-9


@dataclass(frozen=True)
class _Grid:
    """The table's places: labels of rows and columns, and the cell at each."""

    rows: list[tuple[str, dict[Axis, str]]]
    columns: list[tuple[tuple[str, ...], dict[Axis, str]]]
    experiment: Experiment

    @classmethod
    def of(cls, experiment: Experiment) -> _Grid:
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
        return self.experiment.cell(row, column)


def _floors(experiment: Experiment, metric: str | None = None) -> list[str]:
    """Names of the floors of a metric, or of all an experiment's metrics."""
    metrics = [experiment.metrics[metric]] if metric else experiment.metrics.values()
    return list(dict.fromkeys(name for start, name, _ in FLOORS if any(m.startswith(start) for m in metrics)))


def terminal(found: Reproduction, width: int = 80) -> RenderableType:
    """The table in blocks that fit the width: what was found, and below it what is printed and whether it holds."""
    grid = _Grid.of(found.experiment)
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
    text = Text(_here(found, cell))
    verdicts = found.verdicts(cell)
    for source, printed in found.experiment.printed_at(cell).items():
        style = {"reproduced": "green", "different": "red"}.get(verdicts[source], "dim")
        text.append(f"\n{_printed(found.experiment, cell, printed)} {verdicts[source]}", style)
    return text


def _difference_table(found: Reproduction) -> list[RenderableType]:
    differences = list(found.differences())
    if not differences or all(difference.spread.count < 2 for _, _, difference in differences):
        return []
    last = differences[0][1]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, title_justify="left")
    for heading in (f"{last} less", "on", "of", "difference", f"{LEVEL:.0%} interval", "p"):
        table.add_column(heading, overflow="fold")
    for cell, _, difference in differences:
        table.add_row(cell.method, cell.dataset, cell.metric, *_difference(found.experiment, difference))
    return [table, Text()]


def _difference(experiment: Experiment, difference: Difference) -> tuple[str, str, str]:
    of = difference.spread
    bounds = MISSING if of.interval is None else "[{:+.3f}, {:+.3f}]".format(*of.interval)
    p_value = MISSING if difference.p_value is None else f"{difference.p_value:.3f}"
    return f"{of.mean:+.3f}" + ("" if of.deviation is None else f" ± {of.deviation:.3f}"), bounds, p_value


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
        close = "" if experiment.close is None else f" and reaches at most {experiment.close:g} to each side"
        lines.append(
            f"reproduced: the {LEVEL:.0%} t interval over the seeds holds the printed value{close}; different: it does "
            "not hold it; undecided: it is wider."
        )
    if experiment.needs_runs and "methods" not in (*experiment.rows, *experiment.columns):
        lines += [
            f"{floor}, {dataset}: {_here(found, Cell(dataset, floor, metric))}"
            for floor in _floors(experiment)
            for dataset in experiment.datasets
            for metric in list(experiment.metrics)[:1]
        ]
    reasons: dict[str, list[str]] = {}
    for (dataset, method), reason in found.gaps.items():
        reasons.setdefault(" ".join(reason.split()), []).append(f"{dataset} / {method}")
    lines += [f"Not run: {_listed(where)}: {reason}" for reason, where in reasons.items()]
    lines += _contradictions(experiment)
    lines += [*experiment.notes, *found.told]
    commits = f"; commit {', '.join(found.commits)}" if found.commits else ""
    return [*lines, f"anomaly-lab reproduce {found.about}{commits}"]


def _cells(found: Reproduction) -> list[Cell]:
    grid = _Grid.of(found.experiment)
    return [grid.cell(row, column) for _, row in grid.rows for _, column in grid.columns]


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
            if len(known) == len(parts) and abs(mean(known) - printed) > 2 * _half_a_unit(printed):
                name = ", ".join(column.values())
                own = f"{mean(known):,.0f}" if experiment.close is None else f"{mean(known):.3f}"
                lines.append(f"{source} prints {printed:g} as the mean of {name}; its cells average {own}.")
    return lines


def _here(found: Reproduction, cell: Cell) -> str:
    of = found.spread(cell)
    if of is None:
        return MISSING
    text = _number(found.experiment, cell, of.mean)
    if of.deviation is not None and found.experiment.needs_runs:
        text += f" ± {_number(found.experiment, cell, of.deviation)}"
    whole = of.count == found.experiment.seeds or not found.experiment.needs_runs
    return text if whole else f"{text} ({of.count} of {found.experiment.seeds})"


def _number(experiment: Experiment, cell: Cell, value: float) -> str:
    if experiment.close is None:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{value:g}" if experiment.metrics[cell.metric].startswith("count_") else f"{value:.3f}"


def _printed(experiment: Experiment, cell: Cell, value: float) -> str:
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
    reasons: dict[str, list[str]] = {}
    for dataset, method, count, done, each, gap in rows:
        left = 0 if gap else count - done
        time = MISSING if not left or each is None else duration(left * each)
        table.add_row(dataset, method, str(count), str(done), "cannot" if gap else str(left), time)
        total += left * (each or 0)
        unknown += left if each is None else 0
        if gap:
            reasons.setdefault(gap, []).append(f"{dataset} / {method}")
    lines = [f"Cannot be run: {_listed(where)}: {reason}" for reason, where in reasons.items()]
    if experiment.needs_runs:
        if total:
            lines.append(f"What is missing takes about {duration(total)} on one machine.")
        if unknown:
            lines.append(f"How long {unknown} runs take is not known: nothing like them was run here yet.")
        if not total and not unknown:
            lines.append("Nothing is missing.")
    return Group(table, Text(), Text("\n".join(lines)))


def write(found: Reproduction, folder: Path) -> list[Path]:
    """Write table.md, table.csv, table.tex and differences.csv; returns what was written."""
    contents = {
        "table.md": _markdown(found),
        "table.csv": _csv(_long(found)),
        "table.tex": _latex(found),
        "differences.csv": _csv(_long_differences(found)),
    }
    written = []
    for name, content in contents.items():
        if content:
            write_text(folder / name, content)
            written.append(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    return written


def _markdown(found: Reproduction) -> str:
    grid = _Grid.of(found.experiment)
    sources = [_sources(found, grid, column) for _, column in grid.columns]
    head = [""]
    for (names, _), own in zip(grid.columns, sources, strict=True):
        head += [", ".join(names) or next(iter(found.experiment.metrics)), *own]
    lines = [f"# {found.experiment.title}", "", found.experiment.source, "", head, ["---"] * len(head)]
    for label, row in grid.rows:
        cells = [label]
        for (_, column), own in zip(grid.columns, sources, strict=True):
            cell = grid.cell(row, column)
            printed, verdicts = found.experiment.printed_at(cell), found.verdicts(cell)
            cells.append(_here(found, cell) + _interval(found, cell))
            cells += [
                f"{_printed(found.experiment, cell, printed[source])} {verdicts[source]}" if source in printed else ""
                for source in own
            ]
        lines.append(cells)
    lines += ["", *(f"- {note}" for note in notes(found)), ""]
    return "\n".join(line if isinstance(line, str) else f"| {' | '.join(line)} |" for line in lines)


def _sources(found: Reproduction, grid: _Grid, column: dict[Axis, str]) -> list[str]:
    """Which sources print anything in a column."""
    printed = [found.experiment.printed_at(grid.cell(row, column)) for _, row in grid.rows]
    return list(dict.fromkeys(source for values in printed for source in values))


def _interval(found: Reproduction, cell: Cell) -> str:
    of = found.spread(cell)
    if of is None or of.interval is None or not found.experiment.needs_runs:
        return ""
    return " [" + ", ".join(_number(found.experiment, cell, bound) for bound in of.interval) + "]"


def _latex(found: Reproduction) -> str:
    grid = _Grid.of(found.experiment)
    head = [" ".join(names) or next(iter(found.experiment.metrics)) for names, _ in grid.columns]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{_escaped(f'{found.experiment.title}. In brackets: {found.experiment.source}.')}}}",
        rf"\begin{{tabular}}{{l{'r' * len(head)}}}",
        r"\toprule",
        " & ".join(["", *map(_escaped, head)]) + r" \\",
        r"\midrule",
    ]
    for label, row in grid.rows:
        cells = [_escaped(label)]
        for _, column in grid.columns:
            cell = grid.cell(row, column)
            printed = [_printed(found.experiment, cell, value) for value in found.experiment.printed_at(cell).values()]
            cells.append(_escaped(_here(found, cell) + (f" ({'; '.join(printed)})" if printed else "")))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes(found)), r"\end{table}", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = "".join(named.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)
    return text.replace("±", r"$\pm$").replace(MISSING, "--")


def _long(found: Reproduction) -> list[dict[str, Any]]:
    """One row per cell and source, floors included."""
    grid, rows = _Grid.of(found.experiment), []
    for _, row in grid.rows:
        for _, column in grid.columns:
            cell = grid.cell(row, column)
            of, values = found.spread(cell), found.by_seed(cell)
            low, high = of.interval if of is not None and of.interval else (None, None)
            line = {
                **cell._asdict(),
                "seeds": len(values),
                "mean": None if of is None else of.mean,
                "deviation": None if of is None else of.deviation,
                "low": low,
                "high": high,
                "values": " ".join(f"{seed}:{value:.9g}" for seed, value in values.items()),
            }
            printed, verdicts = found.experiment.printed_at(cell), found.verdicts(cell)
            rows += [
                line | {"source": source, "printed": printed.get(source), "verdict": verdicts.get(source, "")}
                for source in printed or [""]
            ]
    return rows


def _long_differences(found: Reproduction) -> list[dict[str, Any]]:
    rows = []
    for cell, last, difference in found.differences():
        of = difference.spread
        low, high = of.interval or (None, None)
        names = {"method": last, "less": cell.method, "dataset": cell.dataset, "metric": cell.metric}
        numbers = {"seeds": of.count, "mean": of.mean, "deviation": of.deviation, "low": low, "high": high}
        rows.append({**names, **numbers, "p_value": difference.p_value})
    return rows


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
