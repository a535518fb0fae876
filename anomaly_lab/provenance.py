"""What code numbers come from: the commit, and the versions of the packages."""

from __future__ import annotations

import contextlib
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "anomaly_lab",
    "torch",
    "lightning",
    "torchvision",
    "hydra-core",
    "albumentations",
    "numpy",
    "scikit-learn",
)


def git_sha() -> str | None:
    """The commit of the checkout that the package runs from, with `-dirty` if it was changed; None elsewhere."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        # the package's own repository, not one that a virtual environment happens to lie in
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        sha = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{sha}-dirty" if dirty else sha


def versions() -> dict[str, str]:
    """The installed versions of what the numbers may depend on."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
