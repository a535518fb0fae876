"""Where the numbers come from."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from anomaly_lab.provenance import git_sha, versions


def machine() -> dict[str, str]:
    """Processor, threads, versions and commit, and how busy the machine was with something else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": f"{_cpu_name()}, {cores} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "load before": ", ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": git_sha() or "unknown: not a git checkout",
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())
