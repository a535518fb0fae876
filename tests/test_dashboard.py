"""`logger=wandb`: real offline runs, read back through wandb's own reader."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_files import rows_of

from anomaly_lab import callbacks
from anomaly_lab.cli import main
from anomaly_lab.config import compose
from anomaly_lab.dashboard import shown_config

WANDB = Path(sys.executable).parent / "wandb"


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")


def runs_below(overrides):
    runs_dir = next(text.partition("=")[2] for text in overrides if text.startswith("runs_dir="))
    return sorted(path.parent for path in Path(runs_dir).glob("*/*/*/config.yaml"))


def records(run):
    """All records of the one offline run that a run directory holds."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    found = subprocess.run([WANDB, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return folder, [json.loads(line) for line in found.stdout.splitlines()]


def of_kind(found, kind):
    return [record[kind] for record in found if record["type"] == kind]


def epochs(found):
    """Step and loss of each epoch that was sent."""
    items = [record["item"] for record in of_kind(found, "history")]
    return [(item["_step"], item["loss"]) for item in items if "loss" in item]


def summary(found):
    merged = {}
    for record in of_kind(found, "summary"):
        merged |= record.get("update", {})
    return merged


def test_everything_of_a_run_is_there(tiny):
    assert main(["train", *tiny, "logger=wandb", "tags=[first,small]"]) == 0
    (run,) = runs_below(tiny)
    folder, found = records(run)
    (about,) = of_kind(found, "run")
    assert (about["run_id"], about["job_type"]) == ("-".join(run.parts[-3:]), "train")
    assert about["tags"] == ["first", "small"]
    assert about["config"]["update"]["model"]["latent_dim"] == 4
    assert "root" not in about["config"]["update"]["dataset"]
    curves = rows_of(run / "curves.csv")
    assert epochs(found) == [(int(row["epoch"]), pytest.approx(float(row["loss"]), rel=1e-4)) for row in curves]
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert summary(found)["image_auroc"] == metrics["image_auroc"]
    assert of_kind(found, "exit")[-1].get("exit_code", 0) == 0

    (table,) = (folder / "files/media/table").glob("scores*")
    content = json.loads(table.read_text())
    tested = rows_of(run / "scores.csv")
    assert content["columns"][:4] == ["path", "label", "defect", "RLX"]
    assert [row[0] for row in content["data"]] == [row["path"] for row in tested]
    assert np.allclose([row[3] for row in content["data"]], [float(row["RLX"]) for row in tested])
    kinds = {path.name.partition("_")[0] for path in (folder / "files/media/images/gallery").glob("*.png")}
    assert kinds == {"image", "reconstruction", "difference", "map"}
    masks = list((folder / "files/media/images/mask/gallery").glob("*.png"))
    assert len(masks) >= 16, "truth and what was found, over each image"
    waiting = list((run / "wandb").rglob("*"))
    assert any("artifacts" in path.parts for path in waiting), "what waits to be sent waits in the run directory"


def test_a_sweep_is_a_group_of_runs(tiny):
    command = ["train", *tiny, "-m", "logger=wandb", "seed=0,1"]
    assert main(command) == 0
    groups = set()
    for run in runs_below(tiny):
        (about,) = of_kind(records(run)[1], "run")
        groups.add(about["run_group"])
    assert len(runs_below(tiny)) == 2
    (group,) = groups
    assert group.startswith("seed-")


def test_stages_have_their_own_runs(tiny, pictures):
    small = ["model=ae_unet", "model.width=4", "model.levels=2", "model.latent_dim=4", "dataset.steps_per_epoch=2"]
    options = [text for text in tiny if not text.startswith(("model.", "dataset.test_f", "dataset.val_f"))]
    assert main(["train", *options, *small, "logger=wandb", "dataset.label_reserve=3"]) == 0
    stages = {run.parts[-2]: of_kind(records(run)[1], "run")[0]["job_type"] for run in runs_below(tiny)}
    assert stages == {"ae": "stage 1", "ae_unet": "stage 2"}


def test_a_failed_run_is_shown_as_failed(tiny):
    assert main(["train", *tiny, "logger=wandb", "model.optimizer.lr=1e30"]) == 1
    (run,) = runs_below(tiny)
    assert of_kind(records(run)[1], "exit")[-1]["exit_code"] == 1


def test_a_resumed_run_has_each_step_once(tiny, monkeypatch):
    """Cut off in the middle of the second of two epochs, it is one run with the steps of an undisturbed one."""
    honest = callbacks.SeedEachBatch.on_train_batch_start

    def cut_off(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            raise KeyboardInterrupt
        honest(self, trainer, pl_module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.SeedEachBatch, "on_train_batch_start", cut_off)
        assert main(["train", *tiny, "logger=wandb"]) == 130
    (run,) = runs_below(tiny)
    _, before = records(run)
    assert [step for step, _ in epochs(before)] == [1]
    assert main(["train", *tiny, "logger=wandb"]) == 0
    _, after = records(run)
    assert [step for step, _ in epochs(after)] == [1, 2]
    assert epochs(after)[0] == epochs(before)[0]
    assert summary(after)["image_auroc"] is not None
    # cut off while it was scored, the epochs are sent again from the checkpoint
    content = json.loads((run / "metrics.json").read_text()) | {"status": "running"}
    (run / "metrics.json").write_text(json.dumps(content))
    assert main(["train", *tiny, "logger=wandb"]) == 0
    assert epochs(records(run)[1]) == epochs(after)


def test_no_secret_is_sent(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "hunter22")
    config = compose("train", ["dataset=folder", "dataset.root=/data/hunter22", "model.score='x hunter22'"])
    shown = shown_config(config)
    assert "hunter22" not in json.dumps(shown)
    assert shown["model"]["score"] == "***"
    assert not {"logger", "runs_dir"} & shown.keys()


def test_no_secret_and_no_folder_is_in_what_is_sent(tiny, pictures, tmp_path, monkeypatch):
    """Not in the configuration alone: in all that the offline run holds."""
    monkeypatch.setenv("MY_API_TOKEN", "hunter22")
    monkeypatch.setattr(sys, "argv", ["anomaly-lab", "train", "tags=[hunter22x]", f"dataset.root={pictures}"])
    assert main(["train", *tiny, "logger=wandb", "tags=[hunter22x]"]) == 0
    (run,) = runs_below(tiny)
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    for told in ("hunter22", str(pictures), os.environ.get("USER") or "no-such-user"):
        assert told.encode() not in content, told
    home = str(Path(sys.executable).parent).encode()
    assert home not in content


def test_a_server_that_refuses_is_an_error_before_the_training(tiny, monkeypatch, caplog):
    import wandb

    def refuse(**_):
        raise wandb.errors.AuthenticationError("no such key")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main(["train", *tiny, "logger=wandb", "logger.offline=false"]) == 1
    assert "logger=wandb: no such key. logger.offline=true needs no server." in caplog.text
    assert "WANDB_DATA_DIR" not in os.environ


def test_nothing_is_sent_unless_it_is_asked_for(tiny):
    assert main(["train", *tiny]) == 0
    (run,) = runs_below(tiny)
    assert not (run / "wandb").exists()
    shutil.rmtree(run)
    assert main(["train", *tiny, "logger=tensorboard"]) == 2
