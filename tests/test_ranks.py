"""The same numbers on any number of processes: every method, trained and scored on one, two and three."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
import torch
from forked import on_ranks
from lightning.pytorch import Callback
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from anomaly_lab import ranks
from anomaly_lab.build import build_model
from anomaly_lab.callbacks import History
from anomaly_lab.cli import main
from anomaly_lab.config import compose, conf_dir
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.samples import TrainingSampler
from anomaly_lab.fit import training_callbacks
from anomaly_lab.models.gan import GAN
from anomaly_lab.score import _evaluate
from anomaly_lab.trainer import make_trainer, quieten

MODELS = sorted(path.stem for path in conf_dir().glob("model/[!_]*.yaml"))
SIZES = (1, 2, 5)  # of test sets: fewer images than ranks, and no multiple of them
SMALL = {"latent_dim": 4, "width": 4, "search_steps": 3, "view_rotate": 0, "view_translate": 0, "view_flip": "none"}
CHANNELS = {"encoder_channels": "[4,4,4,8,8]", "decoder_channels": "[4,4,8,8]"}


def setting(name, pictures, *more):
    """The configuration of a small network on the small pictures."""
    options = [f"model={name}", "dataset=folder", f"dataset.root={pictures}", "dataset.image_size=32", "~recipe"]
    options += ["trainer.accelerator=cpu", "trainer.estimate=false", "dataset.label_reserve=3", *more]
    known = compose("train", options)["model"]
    given = {key: value for key, value in (SMALL | CHANNELS).items() if known.get(key) is not None}
    return compose("train", [*options, *(f"model.{key}={value}" for key, value in given.items())])


def made(config):
    """A model whose weights depend on nothing but the configuration, and its data."""
    torch.manual_seed(0)
    model, plan = build_model(config), make_plan(config["dataset"])
    if model.fits_once:
        model.fit(torch.rand(6, 3 * 32 * 32))
    data = DefectDataModule(plan, 0)
    data.prepare()
    return model, data


def scored(config, model, data, size):
    """Scores and pixel counts of the first images of the test set."""
    images = data.plan.split.lists["test"]
    images = (*images[: size // 2], *images[len(images) - (size - size // 2) :])  # normal and defective ones
    split = dataclasses.replace(data.plan.split, lists={**data.plan.split.lists, "test": images})
    some = DefectDataModule(dataclasses.replace(data.plan, split=split), 0)
    trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return _evaluate(trainer, model, some, "test", 0.5)


def evaluations(pictures, batch_size):
    quieten()
    for name in MODELS:
        config = setting(name, pictures, f"dataset.batch_size={batch_size}")
        model, data = made(config)
        for size in SIZES:
            yield (name, size), scored(config, model, data, size)


WORLDS = [2, pytest.param(3, marks=pytest.mark.slow)]


@pytest.mark.parametrize("world", WORLDS)
def test_every_image_is_scored_once_and_alike(world, pictures, tmp_path, tally):
    """Image by image, so that the arithmetic of each is the same, and with it each pixel's side of a threshold."""
    alone = dict(evaluations(pictures, 1))

    def work(_, put):
        for key, found in evaluations(pictures, 1):
            put((key, found))

    for _, (key, found) in on_ranks(work, range(world), tmp_path):
        expected = alone[key]
        assert found.index.tolist() == list(range(key[1])), key
        np.testing.assert_array_equal(found.label, expected.label)
        for part in ("columns", "counts"):
            for name, column in getattr(expected, part).items():
                np.testing.assert_allclose(getattr(found, part)[name], column, rtol=1e-6, atol=1e-6, err_msg=str(key))
        for field, value in expected.pixels._asdict().items():
            np.testing.assert_array_equal(getattr(found.pixels, field), value, err_msg=f"{key} {field}")
        tally("evaluations compared with one process's", 1)


def test_one_process_of_each_machine_fills_its_cache(monkeypatch):
    assert ranks.is_first_here()
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    for number, expected in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert ranks.is_first_here() is expected


@pytest.mark.slow
def test_scores_of_batches_are_alike(pictures, tmp_path, tally):
    """In batches the images meet other neighbours on other ranks, which convolutions feel at about 1e-8."""
    alone = dict(evaluations(pictures, 4))

    def work(_, put):
        for key, found in evaluations(pictures, 4):
            put((key, found.columns))

    for _, (key, columns) in on_ranks(work, range(2), tmp_path):
        for name, column in alone[key].columns.items():
            np.testing.assert_allclose(columns[name], column, rtol=1e-5, atol=1e-6, err_msg=f"{key} {name}")
        tally("evaluations compared with one process's", 1)


class HoldBatchNorm(Callback):
    """Batch norms in evaluation mode: they know nothing of a batch."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class Watch(Callback):
    """The model's state after each step, all of it."""

    def __init__(self):
        self.states = []

    def _look(self, pl_module):
        self.states.append({key: value.clone() for key, value in pl_module.state_dict().items()})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx:
            self._look(pl_module)  # what follows a step has followed it

    def on_train_end(self, trainer, pl_module):
        self._look(pl_module)


def trained(config, folder, *callbacks):
    """A model after one epoch of a few steps."""
    model, data = made(config)
    history = History(folder / f"curves-{os.getpid()}.csv")
    trainer = make_trainer(
        config,
        takes_turns=isinstance(model, GAN),
        max_epochs=1,
        callbacks=[*callbacks, *training_callbacks(0, history, folder)[:3]],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    return model, history


LEARNERS = [name for name in MODELS if name != "pca"]
PLAIN = ["model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.1", "dataset.steps_per_epoch=1"]


def plain_steps(pictures, folder, monkeypatch):
    """Each method's weights after one plain step down its gradient, and its epoch's losses."""
    quieten()
    drawn = torch.randn
    # what is drawn at random in a step is drawn on each rank by itself
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.ones(size) if size[0] in (2, 3, 6) else drawn(*size))
    for name in LEARNERS:
        keys = compose("train", [f"model={name}"])["model"]["optimizer"].keys() - {"_target_", "_partial_", "lr"}
        config = setting(name, pictures, *PLAIN, "dataset.batch_size=6", *(f"~model.optimizer.{key}" for key in keys))
        model, history = trained(config, folder, HoldBatchNorm())
        yield name, ({key: value.numpy() for key, value in model.state_dict().items()}, history.rows[0])


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_is_that_of_the_whole_batch(world, pictures, tmp_path, monkeypatch, tally):
    alone = dict(plain_steps(pictures, tmp_path, monkeypatch))
    start = {name: made(setting(name, pictures))[0].state_dict() for name in LEARNERS}

    def work(_, put):
        for name, found in plain_steps(pictures, tmp_path, monkeypatch):
            put((name, found))

    for _, (name, (weights, losses)) in on_ranks(work, range(world), tmp_path):
        moved = 0.0
        for key, value in alone[name][0].items():
            np.testing.assert_allclose(weights[key], value, rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}")
            moved += float(np.abs(value - start[name][key].numpy()).sum())
        assert moved > 0, f"{name} learnt nothing"
        for key in losses.keys() - {"epoch", "seconds"}:
            assert losses[key] == pytest.approx(alone[name][1][key], rel=1e-4, abs=1e-6), (name, key)
        tally("gradients compared with one process's", 1)


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_have_the_same_state_after_every_step(world, pictures, tmp_path, tally):
    """Weights, prototypes, the teacher, and batch norm's statistics, bit for bit."""

    def work(_, put):
        quieten()
        for name in MODELS:
            watch = Watch()
            config = setting(name, pictures, "dataset.batch_size=6", "dataset.steps_per_epoch=3")
            trained(config, tmp_path, watch)
            put((name, [{key: value.numpy() for key, value in state.items()} for state in watch.states]))

    found = {(name, rank): states for rank, (name, states) in on_ranks(work, range(world), tmp_path)}
    for (name, rank), states in found.items():
        assert len(states) == 3
        assert any((states[0][key] != states[2][key]).any() for key in states[0]) or name == "pca"
        for step, (mine, first) in enumerate(zip(states, found[name, 0], strict=True)):
            for key in first:
                np.testing.assert_array_equal(mine[key], first[key], err_msg=f"{name} {key}, rank {rank}, step {step}")
        tally("states compared after steps with the first rank's", len(states) if rank else 0)


@pytest.mark.parametrize(("world", "length", "steps"), [(2, 20, None), (2, 21, None), (3, 22, None), (3, 4, 5)])
def test_the_batches_of_all_ranks_are_those_of_one(world, length, steps, monkeypatch):
    def batches(size):
        keys = list(TrainingSampler(length, 6, seed=1, steps=steps))
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    alone = batches(6)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches(6 // world))
    assert len({tuple(map(len, share)) for share in shares}) == 1, "some rank has another number of images"
    together = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
    whole = [sorted(batch) for batch in alone if len(batch) == 6]
    assert together[: len(whole)] == whole
    if len(together) > len(whole):
        assert set(together[-1]) <= set(alone[-1])
        assert len(alone[-1]) - len(together[-1]) < world


def only_run(folder):
    (path,) = (folder / "runs").glob("*/*/*-s0")
    return path


def check_run(path, alone, *more):
    """It is one finished run like that of a single process, up to what batch norm makes of half a batch."""
    content, expected = (json.loads((p / "metrics.json").read_text()) for p in (path, alone))
    assert content["status"] == "finished"
    assert content["config_hash"] == expected["config_hash"]
    assert content["metrics"].keys() == expected["metrics"].keys()
    assert {p.name for p in path.iterdir()} == {p.name for p in alone.iterdir()} | {*more}
    names = [[line.split(",")[:4] for line in (p / "scores.csv").read_text().splitlines()] for p in (path, alone)]
    assert names[0] == names[1]


def test_two_processes_make_one_run(finished, tiny, tmp_path, capfd, caplog, monkeypatch):
    for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "1" if name in ("JOB_ID", "NTASKS") else "0")  # a step of one task
    shutil.move(finished, tmp_path / "alone")
    assert main(["train", *tiny, "trainer.devices=2", "logger=wandb"]) == 0
    path = only_run(tmp_path)
    check_run(path, tmp_path / "alone", "wandb")
    assert "".join(capfd.readouterr()).count("Epoch 2/2") == 1
    assert len(list((path / "wandb").glob("offline-run-*"))) == 1
    assert main(["train", *tiny]) == 0, "the number of processes changes no number"
    assert "nothing was trained" in caplog.text


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_said_once(tiny, tmp_path, capfd, caplog):
    assert main(["train", *tiny, "trainer.devices=2", "model.optimizer.lr=1e30"]) == 1
    told = "".join(capfd.readouterr()) + caplog.text
    assert told.count("The loss became") == 1
    assert "Traceback" not in told
    assert "TrainingError" in (only_run(tmp_path) / "error.txt").read_text()


def test_a_batch_that_cannot_be_shared_out_is_refused(tiny, caplog):
    assert main(["train", *tiny, "trainer.devices=3"]) == 1
    assert "a multiple of 3, such as 6" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["dataset.full_size=native", "model.weight_average=0.9"]])
def test_whole_runs_of_one_and_two_processes_have_the_same_numbers(more, tiny, tmp_path):
    """Of a network without batch norm: the same batches, steps and scores but for the last digits."""
    found = []
    plain = [text for text in tiny if not text.startswith("model.")]
    for devices in (1, 2):
        options = ["model=ae_l2", "model.latent_dim=4", f"trainer.devices={devices}", "checkpoint=best", *more]
        assert main(["train", *plain, *options, f"runs_dir={tmp_path / str(devices)}"]) == 0
        (path,) = (tmp_path / str(devices)).glob("*/*/*-s0")
        scores = [[float(cell) for cell in row.split(",")[5:]] for row in (path / "scores.csv").read_text().split()[1:]]
        curves = [row.split(",")[2:] for row in (path / "curves.csv").read_text().split()[1:]]
        found.append((scores, [[float(cell) for cell in row] for row in curves]))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4)


@pytest.mark.slow
def test_an_error_of_one_process_ends_what_torchrun_started(tiny, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures/good/003.png").write_bytes(b"no picture")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "anomaly_lab", "train", *tiny, f"dataset.root={tmp_path / 'pictures'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.count("003.png") == 1
    evaluate = [*torchrun, "-m", "anomaly_lab", "evaluate", str(tmp_path)]
    told = subprocess.run(evaluate, capture_output=True, text=True, timeout=120, check=False).stderr
    assert "evaluate works without it" in told


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_starts_the_processes_of_several_machines(nodes, tiny, finished, tmp_path):
    """Two agents on this machine stand for two machines."""
    shutil.move(finished, tmp_path / "alone")

    def start(launcher):
        subprocess.run([*launcher, "-m", "anomaly_lab", "train", *tiny], check=True, timeout=300)

    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}"]
    if nodes == 1:
        start([*torchrun, "--standalone"])
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        agent = [*torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test"]
        with ThreadPoolExecutor() as pool:
            list(pool.map(start, [agent] * nodes))
    check_run(only_run(tmp_path), tmp_path / "alone")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_gpus_batch_norm_sees_the_whole_batch(tiny, tmp_path):
    """`SyncBatchNorm` over NCCL: so two GPUs train as one does, but for the last digits."""
    scores = []
    for devices in (1, 2):
        options = ["trainer.accelerator=gpu", f"trainer.devices={devices}", f"runs_dir={tmp_path / str(devices)}"]
        assert main(["train", *tiny, *options]) == 0
        (path,) = (tmp_path / str(devices)).glob("*/*/*-s0")
        rows = (path / "scores.csv").read_text().splitlines()[1:]
        scores.append([float(row.split(",")[4]) for row in rows])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3)
