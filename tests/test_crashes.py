"""Kills, preemption, full disks: what was computed stays whole, and the same command goes on."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from killing import PHASES, finish, kill

from anomaly_lab.callbacks import SeedEachBatch
from anomaly_lab.checkpoints import load_checkpoint
from anomaly_lab.cli import main
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.runs import Run


def only_run(root):
    (path,) = root.glob("*/*/*-s0")
    return path


def same_run(found, expected):
    """Weights, scores and losses of two runs, bit for bit."""
    weights = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (found, expected)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert (found / "scores.csv").read_bytes() == (expected / "scores.csv").read_bytes()
    tables = [list(csv.reader((run / "curves.csv").read_text().splitlines())) for run in (found, expected)]
    for one, other in zip(*tables, strict=True):
        same = [a == b for name, a, b in zip(tables[0][0], one, other, strict=True) if name != "seconds"]
        assert all(same)
    return True


@pytest.mark.parametrize(
    "model",
    ["mean_teacher", "unet", *(pytest.param(model, marks=pytest.mark.slow) for model in ("dpae", "ganomaly", "pca"))],
)
def test_sigterm_saves_in_the_middle_of_an_epoch_and_no_step_is_done_twice(model, tiny, tmp_path, monkeypatch, capsys):
    options = [text for text in tiny if not text.startswith("model.")]
    options += [f"model={model}", "~recipe", "dataset.label_reserve=3"]
    narrow = ["model.width=4", "model.levels=2"]
    small = {"ganomaly": narrow[:1], "mean_teacher": narrow, "unet": [*narrow, "model.weight_average=0.9"]}
    options += small.get(model, [])
    if model not in ("mean_teacher", "unet"):
        options.append("model.latent_dim=4")
    stops = (0, 2) if model == "pca" else (1, 2)  # which is fitted in one epoch
    steps = []
    begin = SeedEachBatch.on_train_batch_start

    def count(self, trainer, pl_module, batch, batch_idx):
        steps.append((trainer.current_epoch, batch_idx))
        if ask and steps[-1] == stops:
            signal.raise_signal(signal.SIGTERM)
        begin(self, trainer, pl_module, batch, batch_idx)

    monkeypatch.setattr(SeedEachBatch, "on_train_batch_start", count)
    ask = False
    assert main(["train", *options, f"runs_dir={tmp_path / 'undisturbed'}"]) == 0
    undisturbed, steps[:] = list(steps), []
    assert len(undisturbed) > (3 if model == "pca" else 8)
    before = signal.getsignal(signal.SIGTERM)

    ask = True
    assert main(["train", *options]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert steps[-1] == stops, "it was to stop after that step"
    assert signal.getsignal(signal.SIGTERM) is before
    path = only_run(tmp_path / "runs")
    assert Run(path).status() == "interrupted"

    ask = False
    if model == "pca":
        steps.clear()  # it begins anew
    assert main(["train", *options]) == 0
    assert steps == undisturbed
    assert same_run(path, only_run(tmp_path / "undisturbed"))


def test_sigterm_in_the_last_step_of_an_epoch_stops_after_its_checkpoint(tiny, tmp_path, monkeypatch):
    """Epochs of one batch, of which each step is the last."""
    one_batch = [*tiny, "dataset.batch_size=64"]
    assert main(["train", *one_batch, f"runs_dir={tmp_path / 'undisturbed'}"]) == 0
    begin, asked = SeedEachBatch.on_train_batch_start, []

    def ask(self, trainer, *arguments):
        if trainer.current_epoch not in asked:
            asked.append(trainer.current_epoch)
            signal.raise_signal(signal.SIGTERM)
        begin(self, trainer, *arguments)

    monkeypatch.setattr(SeedEachBatch, "on_train_batch_start", ask)
    for epoch in (0, 1):  # the second one is the last
        assert main(["train", *one_batch]) == 130
        path = only_run(tmp_path / "runs")
        assert load_checkpoint(path / "checkpoints/last.ckpt")["epoch"] == epoch
    assert main(["train", *one_batch]) == 0
    assert same_run(path, only_run(tmp_path / "undisturbed"))


def whole(root, *, may_fail=False):
    """What a kill has left is readable, and what says that it is finished is."""
    for path in root.glob("*/*/*-s*"):
        found = Run(path)
        content = found.read()
        for file in (found.config_file, found.split_file):
            if file.exists():
                found.config(), found.split()
        for checkpoint in path.glob("checkpoints/*.ckpt"):
            load_checkpoint(checkpoint)
        for table in path.glob("scores*.csv"):
            ScoreTable.from_csv(table)
        if content.get("status") == "finished":
            assert content["metrics"]
            assert found.scores_file.exists()
        else:
            assert found.status() in ("new", "interrupted", *(["failed"] if may_fail else []))
    for file in root.rglob("*.json"):
        json.loads(file.read_text())


def same_results(root, expected):
    """All runs, with the same numbers, and nothing else left behind."""
    names = [sorted(path.relative_to(r).as_posix() for path in r.glob("*/*/*-s*")) for r in (root, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        assert same_run(root / name, expected / name)
        contents = [Run(r / name).read() for r in (root, expected)]
        for part in ("status", "metrics", "reasons", "config_hash", "split_sha256"):
            assert contents[0][part] == contents[1][part], (name, part)
        files = [
            sorted(path.relative_to(r / name).as_posix() for path in (r / name).rglob("*")) for r in (root, expected)
        ]
        assert files[0] == files[1], "something is left over, or lacks"


TWO_STAGES = ["model=ae_unet", "~recipe", "dataset.label_reserve=3", "model.width=4", "model.levels=2"]


@pytest.mark.parametrize(("kills", "sweeps"), [(1, False), pytest.param(10, True, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_same_command_ends_as_if_nothing_had_been(kills, sweeps, tiny, tmp_path, tally):
    """SIGKILL within each phase, up to three times in one run or sweep; then it is left to end."""
    rng = random.Random(kills)
    train = ["train", *(text for text in tiny if not text.startswith("runs_dir="))]
    phases = [phase for phase in PHASES if phase != "stages"]
    if sweeps:
        train = [text for text in train if not text.startswith("model.")]
        train += ["-m", *TWO_STAGES, "model.latent_dim=4", "seed=0,1"]
        phases = PHASES
    undisturbed = tmp_path / "undisturbed"
    assert finish([*train, f"runs_dir={undisturbed}"]) == 0
    struck = dict.fromkeys(phases, 0)
    for number in range(100):
        lacking = [phase for phase in phases if struck[phase] < kills]
        if not lacking:
            break
        root = tmp_path / f"killed-{number}"
        command = [*train, f"runs_dir={root}"]
        for _ in range(rng.randint(1, 3)):
            phase = kill(command, rng.choice(lacking), rng, times=rng.randint(1, 2))
            if phase is None:
                break
            struck[phase] = struck.get(phase, 0) + 1
            whole(root)
        assert finish(command) == 0
        same_results(root, undisturbed)
        shutil.rmtree(root)
    assert not lacking, struck
    tally("kills survived of as many", sum(struck.values()))
    for phase, count in struck.items():
        tally(f"of them in the phase {phase!r}", count)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and what makes it larger or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode == 0

    if os.geteuid() != 0 or not mount("size=64k"):
        pytest.skip("may not mount a disk here")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("room", [64, 120, 200, 400])  # KiB: for the split, a checkpoint, the scores
def test_a_full_disk_is_said_and_leaves_earlier_results_whole(room, small_disk, tiny, finished, tmp_path, caplog):
    folder, remount = small_disk
    remount(f"size={room}k")
    before = {path.relative_to(finished): path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    command = ["train", *tiny[:-1], f"runs_dir={folder}", "trainer.max_epochs=2"]
    assert main(command) == 1
    assert "No space left" in caplog.text
    assert "goes on" in caplog.text
    assert "Traceback" not in caplog.text
    whole(folder, may_fail=True)
    remount("size=50m")
    assert main(command) == 0
    path = only_run(folder)
    assert same_run(path, finished)
    assert sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file()) == sorted(before)
    assert all((finished / name).read_bytes() == content for name, content in before.items())


def test_a_read_only_folder_is_said(small_disk, tiny, caplog):
    folder, remount = small_disk
    remount("ro")
    assert main(["train", *tiny[:-1], f"runs_dir={folder}"]) == 1
    assert "Read-only file system" in caplog.text
    assert "Choose another folder" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_sigterm_ends_all_processes_in_time_and_leaves_a_whole_run(tiny, finished, tmp_path):
    command = [sys.executable, "-m", "anomaly_lab", "train", *tiny, "trainer.devices=2"]
    long = [*command, "trainer.max_epochs=400"]
    with subprocess.Popen(long, stderr=subprocess.PIPE, start_new_session=True) as training:
        wait_for(lambda: list((tmp_path / "runs").glob("*/*/*/curves.csv")) != [finished / "curves.csv"])
        started = time.monotonic()
        training.send_signal(signal.SIGTERM)
        assert training.wait(30) == 130
    assert time.monotonic() - started < 15
    (path,) = (path for path in (tmp_path / "runs").glob("*/*/*-s0") if path != finished)
    assert Run(path).status() == "interrupted"
    load_checkpoint(path / "checkpoints/last.ckpt")
    # Python's own tracker of resources goes a moment later
    wait_for(lambda: subprocess.run(["pgrep", "--session", str(training.pid)], check=False).returncode == 1, 10)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
