import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from run_files import rows_of
from sklearn.metrics import roc_auc_score

from anomaly_lab import score
from anomaly_lab.callbacks import AfterStep
from anomaly_lab.cli import main
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.records import Record
from anomaly_lab.errors import LabError
from anomaly_lab.runs import Run
from anomaly_lab.train import train


def runs_below(tiny):
    root = Path(tiny[-1].partition("=")[2])
    return sorted(path.parent for path in root.glob("*/*/*/metrics.json"))


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_one_command_leaves_a_whole_run(tiny, capsys):
    assert main(["train", *tiny]) == 0
    (run,) = runs_below(tiny)
    content = json.loads((run / "metrics.json").read_text())
    assert content["status"] == "finished"
    rows = rows_of(run / "scores.csv")
    split = json.loads((run / "split.json").read_text())["lists"]
    assert [row["path"] for row in rows] == [record["path"] for record in split["test"]]
    labels = [int(row["label"]) for row in rows]
    for name, metric in (("score", "image_auroc"), ("RLX", "image_auroc_RLX"), ("PL2", "image_auroc_PL2")):
        auroc = roc_auc_score(labels, [float(row[name]) for row in rows])
        assert content["metrics"][metric] == pytest.approx(auroc, abs=1e-6)
    assert {"floor_knn_auroc", "floor_pca_auroc", "floor_all_f1", "image_auroc_ci"} <= content["metrics"].keys()
    for path in ("config.yaml", "curves.csv", "figures/roc.png", "figures/scores.png", "figures/cases.png"):
        assert (run / path).stat().st_size > 0
    assert set(torch.load(run / "checkpoints/last.ckpt", weights_only=True)) == {"state_dict", "epoch", "history"}
    shown = capsys.readouterr().out
    assert f"{content['metrics']['image_auroc']:.3f}" in shown
    assert f"{content['metrics']['floor_knn_auroc']:.3f}" in shown


def test_the_floors_of_many_images_are_of_some_drawn_at_random(finished, tmp_path, monkeypatch):
    plan = make_plan(yaml.safe_load((finished / "config.yaml").read_text())["dataset"])
    every = score.describe_split(plan, tmp_path / "every")
    assert every["leakage"]["test_count"] == len(plan.split.lists["test"]) > 7
    assert "drawn" not in every["leakage"]["sentence"]
    monkeypatch.setattr(score, "_FLOOR_IMAGES", 7)
    some, again = (score.describe_split(plan, tmp_path / name) for name in ("some", "again"))
    assert some == again
    assert some["leakage"]["test_count"] == 7
    assert "only 7 training and 7 test images drawn at random" in some["leakage"]["sentence"]
    assert None not in some["metrics"].values()
    assert some["metrics"]["floor_all_f1"] == every["metrics"]["floor_all_f1"], "which takes no picture"


@pytest.mark.parametrize(("normal", "defective", "drawn"), [(3, 20, 7), (20, 3, 3), (20, 20, 5), (20, 0, 0), (4, 5, 5)])
def test_of_a_large_set_the_rare_class_is_drawn_first(normal, defective, drawn, monkeypatch):
    monkeypatch.setattr(score, "_FLOOR_IMAGES", 10)
    if normal + defective <= 10:
        monkeypatch.setattr(score, "_FLOOR_IMAGES", normal + defective)
    records = tuple(Record(f"{i:03}", "good" if i < normal else "spot") for i in range(normal + defective))
    some = score._some(records)
    assert sum(record.label for record in some) == drawn
    assert len(some) == len(set(some)) == min(10, len(records))
    assert list(some) == sorted(some, key=lambda record: record.path)


def test_a_finished_run_is_left_alone_without_importing_torch(tiny, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    code = (
        "import sys; from anomaly_lab.cli import main; status = main(sys.argv[1:]);"
        "print('torch' in sys.modules, 'lightning' in sys.modules, status)"
    )
    again = subprocess.run([sys.executable, "-c", code, "train", *tiny], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == "False False 0"
    assert "nothing was trained" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main(["train", *tiny, "force=true"]) == 0
    assert (finished / "metrics.json").stat().st_mtime_ns > before[finished / "metrics.json"]


def test_a_killed_training_goes_on_and_ends_with_the_same_weights_bit_for_bit(tiny, tmp_path, caplog):
    long = [*tiny, "trainer.max_epochs=25", "model.prototype_rate=0.3"]
    undisturbed = [*long, f"runs_dir={tmp_path / 'undisturbed'}"]
    assert main(["train", *undisturbed]) == 0
    with subprocess.Popen([sys.executable, "-m", "anomaly_lab", "train", *long], stderr=subprocess.PIPE) as training:
        curves = _wait_for(training, Path(tiny[-1].partition("=")[2]), rows=3)
        training.send_signal(signal.SIGKILL)
    (killed,) = runs_below(tiny)
    assert Run(killed).status() == "interrupted"
    assert 3 <= _rows(curves) < 25, "the training was to be killed in the middle"
    caplog.set_level("INFO", logger="anomaly_lab")
    assert main(["train", *long]) == 0
    assert f"Going on with {killed}" in caplog.text
    (expected,) = (tmp_path / "undisturbed").glob("*/*/*-s0")
    for name, tensor in weights(expected).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert (killed / "scores.csv").read_bytes() == (expected / "scores.csv").read_bytes()
    losses = [[row["loss"] for row in rows_of(run / "curves.csv")] for run in (killed, expected)]
    assert len(losses[0]) == 25
    assert losses[0] == losses[1]


def _wait_for(training, root, rows):
    for _ in range(1200):
        found = list(root.glob("*/*/*/curves.csv"))
        if found and _rows(found[0]) >= rows:
            return found[0]
        assert training.poll() is None, training.stderr.read().decode()
        time.sleep(0.05)
    raise AssertionError("no epoch was finished in a minute")


def _rows(path):
    return len(path.read_text().splitlines()) - 1


def test_a_run_that_was_cut_off_while_it_was_scored_is_not_trained_again(tiny, finished, monkeypatch):
    expected = (finished / "scores.csv").read_bytes()
    content = json.loads((finished / "metrics.json").read_text())
    (finished / "metrics.json").write_text(json.dumps({**content, "status": "running"}))
    (finished / "scores.csv").unlink()
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", lambda *_, **__: pytest.fail("trained again"))
    assert main(["train", *tiny]) == 0
    assert (finished / "scores.csv").read_bytes() == expected


def test_a_sweep_leaves_its_runs_and_one_table(tiny, capsys):
    sweep = ["-m", "model.latent_dim=4,8", "seed=0,1", "trainer.max_epochs=1"]
    assert main(["train", *[t for t in tiny if "latent_dim" not in t and "max_epochs" not in t], *sweep]) == 0
    assert len(runs_below(tiny)) == 4
    shown = capsys.readouterr().out
    assert len(re.findall(r"latent_dim=[48] +finished", shown)) == 4, shown
    assert "different lists" not in shown


def test_a_sweep_whose_jobs_test_other_images_or_lost_their_split_says_so(tiny, capsys, caplog):
    sweep = ["train", *tiny, "-m", "dataset.test_fraction=0.2,0.4", "trainer.max_epochs=0"]
    assert main(sweep) == 0
    assert "tested on 2 different lists of images" in " ".join(capsys.readouterr().out.split())
    runs_below(tiny)[0].joinpath("split.json").unlink()
    assert main(sweep) == 0
    assert capsys.readouterr().out.count("skipped ") == 2
    assert "split.json cannot be read" in caplog.text


def test_a_failing_job_of_a_sweep_is_named_and_the_others_finish(tiny, capsys, caplog):
    sweep = ["-m", "model.latent_dim=4,-1,8,6", "trainer.max_epochs=1"]
    assert main(["train", *[t for t in tiny if "latent_dim" not in t and "max_epochs" not in t], *sweep]) == 1
    states = [json.loads((run / "metrics.json").read_text())["status"] for run in runs_below(tiny)]
    assert sorted(states) == ["failed", "finished", "finished", "finished"]
    failed = next(run for run in runs_below(tiny) if Run(run).status() == "failed")
    assert "Traceback" in (failed / "error.txt").read_text()
    assert "model.latent_dim=-1" in caplog.text
    assert "failed" in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_with_the_epoch_and_keeps_the_last_good_checkpoint(tiny, caplog, monkeypatch):
    from anomaly_lab.models.dpae import DPAE

    step = DPAE.training_step
    monkeypatch.setattr(
        DPAE, "training_step", lambda self, b, i: step(self, b, i) * (float("nan") if self.current_epoch == 2 else 1.0)
    )
    assert main(["train", *tiny, "trainer.max_epochs=5"]) == 1
    (run,) = runs_below(tiny)
    content = json.loads((run / "metrics.json").read_text())
    assert content["status"] == "failed"
    assert "epoch 3 of 5" in content["cause"]
    assert "model.optimizer.lr" in content["cause"]
    kept = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert kept["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values() if tensor.is_floating_point())


def flipped(data):
    half = len(data) // 2  # within a tensor
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


def packed(data):
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w", zipfile.ZIP_DEFLATED) as bomb, zipfile.ZipFile(io.BytesIO(data)) as whole:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    return text.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"PK\x03\x04x",
        lambda data: b"hello\n",
        flipped,
        packed,
    ],
)
def test_a_truncated_checkpoint_is_named(tiny, finished, caplog, damage):
    content = json.loads((finished / "metrics.json").read_text())
    (finished / "metrics.json").write_text(json.dumps({**content, "status": "running"}))
    checkpoint = finished / "checkpoints/last.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert main(["train", *tiny]) == 1
    assert "last.ckpt" in caplog.text
    assert "damaged" in caplog.text


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tiny, finished, caplog, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "went-off",))

    torch.save({"state_dict": {}, "epoch": 0, "history": Bomb()}, finished / "checkpoints/last.ckpt")
    assert main(["evaluate", f"run={finished}"]) == 2
    assert not (tmp_path / "went-off").exists()


def test_the_best_epoch_on_val_is_an_option(tiny):
    assert main(["train", *tiny, "checkpoint=best", "trainer.max_epochs=3"]) == 0
    (run,) = runs_below(tiny)
    curve = [float(row["val_image_auroc"]) for row in rows_of(run / "curves.csv")]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert curve[best] == max(curve)
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["val_image_auroc"] == pytest.approx(max(curve), abs=1e-6)


def test_averaged_weights_are_what_is_judged_and_kept(tiny, monkeypatch):
    steps = []
    before = AfterStep.on_train_batch_end

    def note(self, trainer, pl_module, *arguments):
        before(self, trainer, pl_module, *arguments)
        steps.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    monkeypatch.setattr(AfterStep, "on_train_batch_end", note)
    assert main(["train", *tiny, "model.weight_average=0.5", "checkpoint=best"]) == 0
    (run,) = runs_below(tiny)
    kept = weights(run)
    average = steps[0]
    for count, found in enumerate(steps[1:], start=1):
        share = 1 - min(0.5, (1 + count) / (10 + count))
        average = {
            name: torch.lerp(average[name], tensor, share) if tensor.is_floating_point() else tensor
            for name, tensor in found.items()
        }
    assert len(steps) > 5
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, average[name])
    assert not all(torch.equal(tensor, steps[-1][name]) for name, tensor in kept.items())
    curve = [float(row["val_image_auroc"]) for row in rows_of(run / "curves.csv")]
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["val_image_auroc"] == pytest.approx(max(curve), abs=1e-6), "each epoch was judged by its average"


@pytest.mark.parametrize(
    "options",
    [["model.weight_average=1.5"], ["model.weight_average=1"], ["model=pca"], ["trainer.precision=bf16-true"]],
)
def test_an_average_that_cannot_be_is_an_error_that_names_the_option(options, tiny, capsys, caplog):
    texts = [text for text in tiny if not text.startswith("model.")]
    assert main(["train", *texts, "model.weight_average=0.9", *options]) == 1
    assert "model.weight_average" in caplog.text + capsys.readouterr().err


def test_normal_pictures_only_give_a_threshold_and_reasons_for_the_rest(tiny, pictures):
    only = [f"dataset.root={pictures / 'good'}" if t.startswith("dataset.root") else t for t in tiny]
    assert main(["train", *only]) == 0
    (run,) = runs_below(tiny)
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"]["image_auroc"] is None
    assert "image_auroc" in content["reasons"]
    assert isinstance(content["metrics"]["threshold"], float)
    assert "too few" in json.dumps(content["reasons"])  # 6 held-out pictures


def test_an_estimate_comes_before_the_training(tiny, caplog):
    caplog.set_level("INFO", logger="anomaly_lab")
    assert main(["train", *tiny, "trainer.estimate=true"]) == 0
    assert re.search(r"Training up to epoch 2, \d+ batches each: about \d+ s and \d+\.\d GiB of memory", caplog.text)


def test_an_estimate_changes_nothing(tiny, tmp_path):
    other = [*tiny, f"runs_dir={tmp_path / 'other'}"]
    assert main(["train", *tiny]) == 0
    assert main(["train", *other, "trainer.estimate=true"]) == 0
    (a,) = runs_below(tiny)
    (b,) = runs_below(other)
    assert (a / "scores.csv").read_bytes() == (b / "scores.csv").read_bytes()


def test_zero_epochs_score_the_untrained_method(tiny):
    assert main(["train", *tiny, "trainer.max_epochs=0"]) == 0
    (run,) = runs_below(tiny)
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == -1
    assert not (run / "curves.csv").exists()
    assert json.loads((run / "metrics.json").read_text())["metrics"]["image_auroc"] is not None


def test_every_unreadable_picture_is_named_before_the_training(tiny, pictures, tmp_path, caplog):
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    whole = (broken / "good/003.png").read_bytes()
    (broken / "good/003.png").write_bytes(whole[: len(whole) // 2])
    (broken / "good/ünicode name.PNG").write_text("no picture")
    (broken / "good/notes.txt").write_text("neither, but nobody says so")
    (broken / "good/._003.png").write_text("hidden")
    assert main(["train", *tiny, f"dataset.root={broken}"]) == 1
    assert "003.png" in caplog.text
    assert "ünicode name.PNG" in caplog.text
    assert "._003.png" not in caplog.text
    assert not list(tmp_path.glob("runs/*/*/*/checkpoints/*"))


def test_what_was_changed_under_a_hash_is_an_error_even_if_finished(tiny, finished, caplog):
    config = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(config.replace("prototype_rate: 0.5", "prototype_rate: 0.9"))
    assert main(["train", *tiny]) == 1
    assert "model.prototype_rate" in caplog.text


def test_force_mends_a_damaged_run(tiny, finished):
    (finished / "metrics.json").write_text("{")
    assert main(["train", *tiny]) == 1
    assert main(["train", *tiny, "force=true"]) == 0
    assert Run(finished).status() == "finished"


def test_ctrl_c_leaves_a_run_to_go_on_with_and_ends_a_sweep(tiny, monkeypatch):
    def interrupted(*_, **__):
        raise SystemExit(1)  # what Lightning makes of it

    with monkeypatch.context() as patch:
        patch.setattr("anomaly_lab.fit.score", interrupted)
        assert main(["train", *tiny, "-m", "seed=0,1"]) == 130
    (run,) = runs_below(tiny)
    assert Run(run).status() == "interrupted"
    assert main(["train", *tiny]) == 0
    assert Run(run).status() == "finished"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_runs_whole(tiny, precision):
    assert main(["train", *tiny, f"trainer.precision={precision}"]) == 0
    (run,) = runs_below(tiny)
    assert json.loads((run / "metrics.json").read_text())["metrics"]["image_auroc"] is not None


def test_from_python_a_training_gives_its_own_run(tiny, finished, caplog):
    newer = train(*tiny, "trainer.max_epochs=1")
    assert newer != [finished]
    assert train(*tiny) == [finished], "not the one that was made last"
    assert "nothing was trained" in caplog.text
    both = train("-m", *tiny, "trainer.max_epochs=2,1")
    assert both == [finished, *newer]
    with pytest.raises(LabError, match="latent_dim"):
        train(*tiny, "model.latent_dim=-3")


def test_a_sweep_over_models_takes_options_that_the_default_model_lacks(pictures, tmp_path):
    options = ["model=unet,pi_model", "model.width=4", "model.levels=2", "dataset.label_reserve=3", "~recipe"]
    data = ["dataset=folder", f"dataset.root={pictures}", "dataset.image_size=32", "trainer.max_epochs=0"]
    found = train("-m", *options, *data, f"runs_dir={tmp_path}", "trainer.accelerator=cpu")
    assert [path.parent.name for path in found] == ["unet", "pi_model"]
