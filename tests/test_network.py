"""Nothing reaches for the network: not an import, not a training, not a report."""

import subprocess
import sys

import pytest

GUARD = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError(f"reached for the network: {arguments}")

connect = socket.socket.connect
socket.socket.connect = lambda s, address: connect(s, address) if s.family == socket.AF_UNIX else refuse(address)
socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
"""
IMPORTS = """
import importlib, pkgutil, anomaly_lab
for module in pkgutil.walk_packages(anomaly_lab.__path__, "anomaly_lab."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
COMMAND = "from anomaly_lab.cli import main; raise SystemExit(main(sys.argv[1:]))"


def run(code, *arguments):
    command = [sys.executable, "-c", GUARD + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_guard_notices():
    done = run("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')")
    assert "reached for the network" in done.stderr


def test_no_import_does():
    done = run(IMPORTS)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_command_does(tiny, tmp_path):
    for command in (["train", *tiny], ["report", f"runs_dir={tmp_path / 'runs'}"], ["doctor"], ["--help"]):
        done = run(COMMAND, *command)
        assert done.returncode == 0, done.stderr
