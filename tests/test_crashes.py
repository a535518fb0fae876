"""Kills, preemption, full disks: what was computed stays whole, and the same command goes on."""

import csv
import signal

import pytest
import torch

from anomaly_lab.callbacks import SeedEachBatch
from anomaly_lab.cli import main
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


@pytest.mark.parametrize("model", ["dpae", "ganomaly", "pi_model"])
def test_sigterm_saves_in_the_middle_of_an_epoch_and_no_step_is_done_twice(model, tiny, tmp_path, monkeypatch, capsys):
    options = [text for text in tiny if not text.startswith("model.")]
    options += [f"model={model}", "~recipe", "dataset.label_reserve=3"]
    options += {"dpae": [], "ganomaly": ["model.width=4"], "pi_model": ["model.width=4"]}[model]
    if model != "pi_model":
        options.append("model.latent_dim=4")
    steps = []
    begin = SeedEachBatch.on_train_batch_start

    def count(self, trainer, pl_module, batch, batch_idx):
        steps.append((trainer.current_epoch, batch_idx))
        if ask and steps[-1] == (1, 2):
            signal.raise_signal(signal.SIGTERM)
        begin(self, trainer, pl_module, batch, batch_idx)

    monkeypatch.setattr(SeedEachBatch, "on_train_batch_start", count)
    ask = False
    assert main(["train", *options, f"runs_dir={tmp_path / 'undisturbed'}"]) == 0
    undisturbed, steps[:] = list(steps), []
    assert len(undisturbed) > 8
    before = signal.getsignal(signal.SIGTERM)

    ask = True
    assert main(["train", *options]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert steps[-1] == (1, 2), "it was to stop after that step"
    assert signal.getsignal(signal.SIGTERM) is before
    path = only_run(tmp_path / "runs")
    assert Run(path).status() == "interrupted"

    ask = False
    assert main(["train", *options]) == 0
    assert steps == undisturbed
    assert same_run(path, only_run(tmp_path / "undisturbed"))
