"""Sweeps by Hydra's launchers: several jobs at once on one machine, and as a cluster runs them."""

import json
import os
import subprocess
import sys

import pytest

from anomaly_lab.cli import main
from anomaly_lab.hardware import one_of_many, shows_bars
from anomaly_lab.jobs import Outcome
from anomaly_lab.list_runs import find
from anomaly_lab.sweep import best

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


CLIMBER = """
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

@dataclass
class Conf:
    _target_: str = "hydra_plugins.climber.Climber"
    n_trials: int = 20

class Climber(Sweeper):
    '''Tries both ends of an interval, then the better one's neighbour.'''
    def __init__(self, n_trials):
        self.n_trials = n_trials

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        fixed = [text for text in arguments if "interval" not in text]
        found = {}
        for number, value in enumerate((1, 4)):
            result, = self.launcher.launch([[*fixed, f"model.latent_dim={value}"]], initial_job_idx=number)
            found[value] = result.return_value
        best = max(found, key=found.get)
        self.launcher.launch([[*fixed, f"model.latent_dim={best + 1}"]], initial_job_idx=2)

ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=Conf)
"""


@pytest.mark.slow
def test_a_search_goes_by_held_out_images(pictures, tmp_path):
    """Any sweeper of Hydra's gets the objective of each job; this one stands in for Optuna's."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/climber.py").write_text(CLIMBER)
    options = [*SMALL, "model=pca", "dataset.protocol=normal_only", f"dataset.root={pictures}", f"runs_dir={tmp_path}"]
    search = ["hydra/sweeper=climber", "hydra.sweeper.n_trials=3", "model.latent_dim=interval(1,4)"]
    command = [sys.executable, "-m", "anomaly_lab", "train", "-m", *options, *search]
    found = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "3 of 3 jobs done (3 finished)." in found.stderr
    values = {
        entry.run.config()["model"]["latent_dim"]: entry.content["metrics"]["val_image_auroc"]
        for entry in find(tmp_path)
    }
    better = max((1, 4), key=lambda size: values[size])
    assert values.keys() == {1, 4, better + 1}, "the job's objective came back to the sweeper"
    highest = max(values.values())
    sizes = [size for size, value in values.items() if value == highest]
    assert any(
        f"Highest val_image_auroc: {highest:.3f}, with model.latent_dim={size}\n" in found.stderr for size in sizes
    )


def test_nothing_is_chosen_by_the_test(capsys):
    assert main(["train", "-m", "objective=val_image_auroc,image_auroc"]) == 2
    assert "objective=image_auroc has" in capsys.readouterr().err
    assert main(["train", "objective=image_auroc"]) == 2
    assert "objective=image_auroc has to be a metric of val or tune" in capsys.readouterr().err


def test_the_best_of_a_search(tmp_path, caplog):
    jobs = []
    for number, value in enumerate((0.6, 0.7)):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.json").write_text(json.dumps({"status": "finished", "metrics": {"val_image_auroc": value}}))
        jobs.append(Outcome(["model=pca", f"model.latent_dim={number}"], "finished", str(run)))
    jobs.append(Outcome(["model=pca", "model.latent_dim=9"], "failed", None, "no"))
    assert best(jobs, "val_image_auroc") == f"Highest val_image_auroc: 0.700, with model.latent_dim=1\n{jobs[1].run}"
    assert best(jobs, "val_image_auroch") == "No job has val_image_auroch."
    assert "Did you mean 'val_image_auroc'?" in caplog.text
