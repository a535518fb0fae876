"""Sweeps by Hydra's launchers: several jobs at once on one machine, and as a cluster runs them."""

import json

import pytest

from anomaly_lab.cli import main
from anomaly_lab.hardware import one_of_many, shows_bars
from anomaly_lab.list_runs import find

SMALL = [
    "dataset=folder", "dataset.image_size=32", "dataset.batch_size=4", "dataset.steps_per_epoch=2",
    "dataset.label_reserve=3", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.estimate=false",
]  # fmt: skip


@pytest.mark.slow
def test_jobs_side_by_side_share_a_first_stage_and_one_that_fails_stops_none(pictures, tmp_path, capsys):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    small = ["model.width=4", "model.levels=2", "model.latent_dim=4"]
    options = ["model=ae_unet", *SMALL, *small, f"dataset.root={pictures}", f"runs_dir={tmp_path}"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    assert main(["train", "-m", "dataset.labelled_per_type=1,2,0", *options, *launcher]) == 1
    shown = capsys.readouterr().out
    assert "failed: dataset.labelled_per_type=0" in shown
    entries = list(find(tmp_path))
    assert sorted((entry.model, entry.status) for entry in entries) == [
        ("ae", "finished"),
        ("ae_unet", "finished"),
        ("ae_unet", "finished"),
    ]
    before = {entry.run.path: entry.changed for entry in entries}
    assert main(["train", "-m", "dataset.labelled_per_type=1,2", *options, *launcher]) == 0
    assert {entry.run.path: entry.changed for entry in find(tmp_path)} == before


@pytest.mark.slow
def test_jobs_as_a_cluster_runs_them(pictures, tmp_path, capsys):
    """Submitit's local executor takes the place of SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    options = [*SMALL, f"dataset.root={pictures}", f"runs_dir={tmp_path}", "model=pca", "model.latent_dim=2"]
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    assert main(["train", "-m", "dataset.protocol=normal_only", "seed=0,1", *options, *launcher]) == 0
    assert [(entry.content["seed"], entry.status) for entry in find(tmp_path)] == [(0, "finished"), (1, "finished")]
    jobs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(".sweeps/*/*/job.json"))]
    assert [job["status"] for job in jobs] == ["finished", "finished"]


def test_a_worker_beside_others_has_no_bar_and_a_gpu_of_its_own(monkeypatch):
    for name in ("ANOMALY_LAB_BARS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert shows_bars()
    monkeypatch.setattr("anomaly_lab.hardware.gpu_count", lambda: 4)
    one_of_many(6)
    assert not shows_bars()
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    one_of_many(7)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2", "a worker stays with its GPU, and a user's choice stays"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("anomaly_lab.hardware.gpu_count", lambda: 1)
    one_of_many(3)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
