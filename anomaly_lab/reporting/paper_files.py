"""A table of a paper beside what was found, as Markdown, CSV and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomaly_lab.experiment import Axis, Cell
from anomaly_lab.files import csv_text, write_text
from anomaly_lab.reporting.paper_table import Grid, difference_rows, here, notes, number_text, printed_text
from anomaly_lab.reporting.reproduction import Reproduction
from anomaly_lab.reporting.tables import MISSING


def write(found: Reproduction, folder: Path) -> list[Path]:
    """Write table.md, table.csv, table.tex and differences.csv; returns what was written."""
    contents = {
        "table.md": _markdown(found),
        "table.csv": csv_text(_long(found)),
        "table.tex": _latex(found),
        "differences.csv": csv_text(_long_differences(found)),
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
    grid = Grid.of(found.experiment)
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
            cells.append(here(found, cell) + _interval(found, cell))
            cells += [
                f"{printed_text(found.experiment, cell, printed[source])} {verdicts[source]}"
                if source in printed
                else ""
                for source in own
            ]
        lines.append(cells)
    if differences := difference_rows(found):
        head, *rows = differences
        lines += ["", head, ["---"] * len(head), *rows]
    lines += ["", *(f"- {note}" for note in notes(found)), ""]
    return "\n".join(line if isinstance(line, str) else f"| {' | '.join(line)} |" for line in lines)


def _sources(found: Reproduction, grid: Grid, column: dict[Axis, str]) -> list[str]:
    """Which sources print anything in a column."""
    printed = [found.experiment.printed_at(grid.cell(row, column)) for _, row in grid.rows]
    return list(dict.fromkeys(source for values in printed for source in values))


def _interval(found: Reproduction, cell: Cell) -> str:
    of = found.spread(cell)
    if of is None or of.interval is None or not found.experiment.needs_runs:
        return ""
    return " [" + ", ".join(number_text(found.experiment, cell, bound) for bound in of.interval) + "]"


def _latex(found: Reproduction) -> str:
    grid = Grid.of(found.experiment)
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
            printed = [
                printed_text(found.experiment, cell, value) for value in found.experiment.printed_at(cell).values()
            ]
            cells.append(_escaped(here(found, cell) + (f" ({'; '.join(printed)})" if printed else "")))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes(found)), r"\end{table}", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = "".join(named.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)
    return text.replace("±", r"$\pm$").replace(MISSING, "--")


def _long(found: Reproduction) -> list[dict[str, Any]]:
    """One row per cell and source, floors included."""
    grid, rows = Grid.of(found.experiment), []
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
