"""`python -m benchmarks [step|precision|cache ...] [key=value ...]`, which is `make bench`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anomaly_lab.errors import LabError, nearest
from anomaly_lab.files import write_json
from anomaly_lab.trainer import quieten
from benchmarks import cache, ganomaly, pixels, precision, search, segmenter, step, synthesis
from benchmarks.machine import machine
from benchmarks.setting import cache_at, make_setting

PARTS: dict[str, Any] = {
    "step": step,
    "segmenter": segmenter,
    "precision": precision,
    "cache": cache,
    "pixels": pixels,
    "search": search,
    "ganomaly": ganomaly,
    "synthesis": synthesis,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the package with what is plain.")
    parser.add_argument("words", nargs="*", metavar="PART or key=value", help=f"{', '.join(PARTS)}; options of `train`")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one of them, about (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="before an AUROC is taken (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON too")
    given = parser.parse_intermixed_args(arguments)
    overrides = [word for word in given.words if "=" in word]
    parts = [word for word in given.words if "=" not in word] or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}. {nearest(part, PARTS)}")
    if given.repeats < 1:
        parser.error("--repeats has to be at least 1")

    quieten()
    console, started = Console(), time.perf_counter()
    results: dict[str, Any] = {"machine": machine()}
    console.print(_machine_table(results["machine"]), "")
    try:
        with tempfile.TemporaryDirectory(prefix="anomaly-lab-bench-") as name, cache_at(Path(name) / "cache"):
            setting = make_setting(overrides, Path(name), given.repeats, given.seconds, given.epochs)
            for part in parts:
                results[part] = PARTS[part].measure(setting)
                console.print(PARTS[part].table(results[part]), "")
        results["seconds"] = time.perf_counter() - started
        if given.output is not None:
            write_json(given.output, results)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(f"Measured in {results['seconds']:.0f} s.")
    return 0


def _machine_table(facts: dict[str, str]) -> Table:
    shown = Table(title="Machine", title_justify="left", show_header=False, box=None, padding=(0, 2))
    for row in facts.items():
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    sys.exit(main())
