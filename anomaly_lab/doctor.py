"""`anomaly-lab doctor`: what this machine can do, and which datasets it finds."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from anomaly_lab.data.plan import known_datasets
from anomaly_lab.data.records import DATA_VARIABLE, DefectDataset
from anomaly_lab.data.store import cache_dir
from anomaly_lab.errors import ConfigError
from anomaly_lab.hardware import cpu_flags, has_fast_bf16, has_gpu
from anomaly_lab.provenance import git_sha, versions


def main(arguments: Sequence[str]) -> int:
    """Print the report."""
    from rich.console import Console
    from rich.table import Table

    if arguments:
        raise ConfigError(f"doctor takes no options, got {' '.join(arguments)}.")
    console = Console()
    parent = os.environ.get(DATA_VARIABLE)
    found_in = (
        f"Datasets, looked for in {DATA_VARIABLE}={parent}" if parent else f"Datasets ({DATA_VARIABLE} is not set)"
    )
    for title, rows in (("Machine", machine()), ("Packages", packages()), (found_in, datasets())):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        console.print(table, "")
    return 0


def machine() -> list[tuple[str, str]]:
    """Cores, memory, accelerator and disk, each with what follows from it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if has_gpu():
        import torch

        working = torch.cuda.is_available()
        gpu = torch.cuda.get_device_name() if working else "a driver is loaded, but torch finds no GPU"
    else:
        gpu = "none: training runs on the CPU"
    simd = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in cpu_flags()]
    bf16 = "trainer.precision=bf16-mixed is faster here" if has_fast_bf16() else "no faster than fp32 here"
    cache = cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = "" if os.access(existing, os.W_OK) else ", not writable: set ANOMALY_LAB_CACHE"
    return [
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("cores", f"{cores} ({', '.join(simd) or 'no vector extensions known'})"),
        ("memory", f"{memory:.0f} GiB"),
        ("GPU", gpu),
        ("bf16", bf16),
        ("cache", f"{cache} ({free:.0f} GiB free{writable})"),
    ]


def packages() -> list[tuple[str, str]]:
    """Installed versions, and the commit the package runs from."""
    sha = git_sha()
    return [*versions().items(), ("commit", sha or "unknown: not a git checkout")]


def datasets() -> list[tuple[str, str, str]]:
    """Every dataset: where it is, or how to get it."""
    return [(name, *_find(name, dataset)) for name, dataset in known_datasets().items()]


def _find(name: str, dataset: type[DefectDataset]) -> tuple[str, str]:
    if name == "synthetic":
        return "ready", "generated when first used"
    if not dataset.folder:
        option = "dataset.manifest=FILE.csv" if name == "manifest" else "dataset.root=DIR"
        return "ready", f"your own images: {option}"
    root = Path(os.environ.get(DATA_VARIABLE, "")) / dataset.folder
    if DATA_VARIABLE in os.environ and (root / dataset.inside).is_dir():
        return "found", str(root)
    return "missing", f"{dataset.folder}: {dataset.how_to_get}"
