"""The shape of the project: what the wheel carries, which way the imports run, and what stays light."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import anomaly_lab

PACKAGE = Path(anomaly_lab.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "lightning", "torchmetrics", "torchvision", "albumentations", "wandb"}


def imports(path):
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(
    ("folder", "may_not_know"),
    [
        (
            "data",
            {"models", "nets", "reporting", "metrics", "runs", "build", "fit", "score", "train", "trainer", "evaluate"},
        ),
        ("nets", {"models", "data", "reporting", "metrics", "runs", "config", "arguments"}),
        ("models", {"data", "reporting", "runs", "config", "build", "fit", "score", "arguments"}),
        ("metrics", {"models", "nets", "reporting", "runs", "config", "arguments"}),
        ("reporting", {"models", "nets", "build", "fit", "score", "train", "config", "arguments"}),
    ],
)
def test_imports_run_one_way(folder, may_not_know):
    for path in (PACKAGE / folder).rglob("*.py"):
        known = {name.split(".")[1] for name in imports(path) if name.startswith("anomaly_lab.")}
        assert not known & may_not_know, path.name


def test_reporting_imports_neither_torch_nor_pyplot():
    for path in (PACKAGE / "reporting").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY, path.name
        assert "matplotlib.pyplot" not in imports(path), path.name


def test_scanning_and_splitting_import_nothing_heavy():
    modules = ", ".join(
        f"anomaly_lab.data.{name}" for name in ("mt", "mvtec", "apsd", "rsd", "folder", "synthetic", "crackforest")
    )
    code = f"import sys, anomaly_lab.train, {modules}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_carries_conf_and_works_from_any_folder(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shipped = {path.relative_to(PACKAGE.parent / "conf") for path in (PACKAGE.parent / "conf").rglob("*.yaml")}
    inside = tmp_path / "installed/anomaly_lab/conf"
    assert {path.relative_to(inside) for path in inside.rglob("*.yaml")} == shipped
    assert any("apache" in path.read_text().lower() for path in tmp_path.rglob("LICENSE"))
    (tmp_path / "elsewhere").mkdir()
    asked = subprocess.run(
        [sys.executable, "-m", "anomaly_lab", "train", "model.latnt_dim=3"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 2
    assert "Did you mean 'model.latent_dim'?" in asked.stderr


def pins(name):
    lock = (PACKAGE.parent / name).read_text()
    assert "://" not in lock
    pinned = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert all("==" in line for line in pinned)
    assert lock.count("--hash=sha256:") >= len(pinned)
    return pinned


def test_the_locks_name_exact_versions_with_hashes_and_no_address():
    assert len(pins("requirements.lock")) > 100
    assert {"cyclonedx-bom", "pip-audit"} <= {line.partition("==")[0] for line in pins("requirements-audit.lock")}
    assert {"torch==2.14.1 \\", "torchvision==0.29.1 \\", "albumentations==2.0.8 \\"} <= set(pins("requirements.lock"))
