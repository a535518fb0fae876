"""What this machine can do, told without importing torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

_BARS = "ANOMALY_LAB_BARS"


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded and not hidden by CUDA_VISIBLE_DEVICES."""
    return Path("/proc/driver/nvidia/version").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def has_fast_bf16() -> bool:
    """Whether bf16 is faster than fp32 here: a GPU, or a CPU with AMX or AVX-512 BF16."""
    return has_gpu() or bool({"amx_bf16", "avx512_bf16"} & cpu_flags())


def share_cores() -> None:
    """Let torch's idle threads sleep in place of spinning; to be called before torch is imported.

    Beside another busy process, spinning threads make a training several times slower; alone, sleeping costs a few
    percent. A value of your own for OMP_WAIT_POLICY stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def gpu_count() -> int:
    """How many NVIDIA GPUs the driver knows and CUDA_VISIBLE_DEVICES shows."""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([each for each in shown.split(",") if each.strip() not in ("", "-1")])
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else 0


def one_of_many(number: int) -> None:
    """Make this process a worker beside others: without progress bars, and on a GPU of its own where there are enough.

    To be called before torch is imported. A value of your own for CUDA_VISIBLE_DEVICES stays.
    """
    os.environ[_BARS] = "off"
    if (count := gpu_count()) > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(number % count))


def under_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def process_count(accelerator: str, devices: int | Literal["auto"]) -> int:
    """How many processes train together: one for each device, or as many as torchrun has started."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    if devices == "auto":
        return max(1, gpu_count()) if accelerator != "cpu" and has_gpu() else 1
    return devices


def shows_bars() -> bool:
    """Whether progress bars are drawn: those of several workers would write over each other."""
    return os.environ.get(_BARS) != "off"


def resolve_precision(precision: str) -> str:
    """`auto` as what this machine takes it for, so that the run's hash says what was computed."""
    return ("bf16-mixed" if has_fast_bf16() else "32-true") if precision == "auto" else precision
