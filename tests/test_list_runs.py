"""`anomaly-lab runs`, and what sweeps leave for it."""

import json
import shutil
from pathlib import Path

import pytest

from anomaly_lab import locks
from anomaly_lab.cli import main
from anomaly_lab.errors import ConfigError, RunError
from anomaly_lab.list_runs import at_work, find, parse
from anomaly_lab.locks import RunBusyError, hold, is_held
from anomaly_lab.sweep import progress, with_sweep


def make_run(root, name, status, model="dpae", dataset="mt", **content):
    run = root / dataset / model / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model: {}\n")
    metrics = {"image_auroc": 0.61} if status == "finished" else {}
    text = json.dumps({"status": status, "metrics": metrics, "seed": int(name[-1]), "tags": [], **content})
    (run / "metrics.json").write_text(text if status != "unreadable" else text[:20])
    (run / "weights.bin").write_bytes(bytes(2**20))
    return run


@pytest.fixture
def runs_dir(tmp_path):
    make_run(tmp_path, "aaaaaaaa-s0", "finished", tags=["fig6"])
    make_run(tmp_path, "aaaaaaaa-s1", "failed", cause="the loss is no number\nmore")
    make_run(tmp_path, "bbbbbbbb-s0", "running", model="vae")
    make_run(tmp_path, "cccccccc-s0", "unreadable", model="vae", dataset="mvtec-carpet")
    return tmp_path


def test_all_runs_are_listed_with_their_state_and_size(runs_dir, capsys):
    assert main(["runs", f"runs_dir={runs_dir}"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[2]: line.split() for line in shown.splitlines() if "-s" in line and "/" not in line[:4]}
    assert rows["aaaaaaaa-s0"][:6] == ["mt", "dpae", "aaaaaaaa-s0", "finished", "0.610", "1.0"]
    assert rows["bbbbbbbb-s0"][3] == "interrupted"  # it says running, and nobody works on it
    assert rows["cccccccc-s0"][3] == "unreadable"
    assert "aaaaaaaa-s1: the loss is no number" in shown
    assert "1 failed, 1 finished, 1 interrupted, 1 unreadable" in shown


def test_a_run_somebody_works_on_is_running_and_is_not_cleaned(runs_dir, capsys):
    (run,) = [entry.run for entry in find(runs_dir) if entry.run.path.name == "bbbbbbbb-s0"]
    with run.lock():
        assert {entry.run.path.name: entry.status for entry in find(runs_dir)}["bbbbbbbb-s0"] == "running"
        assert main(["runs", f"runs_dir={runs_dir}", "clean=interrupted"]) == 0
    assert run.path.exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["status=failed"], ["aaaaaaaa-s1"]),
        (["model=vae"], ["bbbbbbbb-s0", "cccccccc-s0"]),
        (["dataset=mvtec"], ["cccccccc-s0"]),
        (["seed=1"], ["aaaaaaaa-s1"]),
        (["tag=fig6"], ["aaaaaaaa-s0"]),
        (["model=dpae", "status=finished"], ["aaaaaaaa-s0"]),
        (["model=unet"], []),
    ],
)
def test_runs_can_be_chosen(runs_dir, capsys, options, names):
    assert main(["runs", f"runs_dir={runs_dir}", *options]) == 0
    shown = capsys.readouterr().out
    found = [name for name in ("aaaaaaaa-s0", "aaaaaaaa-s1", "bbbbbbbb-s0", "cccccccc-s0") if f" {name} " in shown]
    assert found == names


def test_cleaning_deletes_what_failed_and_nothing_else(runs_dir):
    assert main(["runs", f"runs_dir={runs_dir}", "clean=failed"]) == 0
    assert [entry.run.path.name for entry in find(runs_dir)] == ["aaaaaaaa-s0", "bbbbbbbb-s0", "cccccccc-s0"]
    assert main(["runs", f"runs_dir={runs_dir}", "clean=unreadable", "model=dpae"]) == 0
    assert len(list(find(runs_dir))) == 3, "only the chosen ones"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["statsu=failed"], "'status'"),
        (["clean=finished"], "clean=finished"),
        (["status=faild"], "'failed'"),
        (["x"], "x"),
    ],
)
def test_a_mistake_is_named(arguments, told):
    with pytest.raises(ConfigError, match=told):
        parse(arguments)


def test_a_folder_is_held_by_one_and_the_hold_ends(tmp_path):
    assert not is_held(tmp_path / "new")
    with hold(tmp_path / "new"):
        assert is_held(tmp_path / "new")
        with pytest.raises(RunBusyError), hold(tmp_path / "new"):
            pass
    assert not is_held(tmp_path / "new")


def test_a_folder_that_is_deleted_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    folder, lock, tries = tmp_path / "run", locks._lock, []

    def deleted_just_before(handle, path):
        if not tries:
            shutil.rmtree(path)  # as `runs clean=failed` does while it holds it
        tries.append(path)
        lock(handle, path)

    monkeypatch.setattr(locks, "_lock", deleted_just_before)
    with hold(folder):
        assert is_held(folder), "what is held is what others find"
    assert len(tries) == 2


def test_a_lock_that_can_never_be_opened_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "nowhere/lock")
    with pytest.raises(RunError, match="cannot be written"), hold(tmp_path / "run"):
        pass


def test_a_sweep_at_work_says_how_far_it_is(tmp_path):
    folder = tmp_path / ".sweeps" / "20260101-000000-1"
    for number, status in enumerate(("finished", "failed", "skipped")):
        (folder / f"{number:06}").mkdir(parents=True)
        (folder / f"{number:06}" / "job.json").write_text(json.dumps({"overrides": [], "status": status}))
    (folder / "jobs.json").write_text(json.dumps({"count": 8}))
    told = progress(folder)
    assert told.startswith("3 of 8 jobs done (1 finished, 1 skipped, 1 failed), about ")
    assert at_work(tmp_path) == []
    with hold(folder):
        ((_, shown),) = at_work(tmp_path)
    assert shown.startswith("3 of 8 jobs done")
    shutil.rmtree(folder / "000000")
    assert progress(folder) == "2 of 8 jobs done (1 skipped, 1 failed)."


def test_a_named_sweep_is_written_out_and_what_is_given_counts():
    texts = with_sweep(["sweep=latent_dim", "dataset=mt", "seed=7"])
    assert texts == [
        "-m", "model=dpae", "model.latent_dim=16,32,64,128,256,512,1024", "dataset.split_seed=${seed}", "dataset=mt",
        "seed=7",
    ]  # fmt: skip
    assert with_sweep(["model=vae"]) == ["model=vae"]
    with pytest.raises(ConfigError, match="Did you mean 'labels'"):
        with_sweep(["sweep=label"])


@pytest.mark.parametrize("name", ["labels", "latent_dim", "loss_weights", "scores"])
def test_every_named_sweep_composes(name):
    from anomaly_lab.config import check

    config = check("train", [text for text in with_sweep([f"sweep={name}"]) if text != "-m"])
    assert config["dataset"]["split_seed"] == config["seed"]


def test_a_named_sweep_runs(tiny, capsys):
    options = [text for text in tiny if not text.startswith("model.latent_dim")]
    assert main(["train", "sweep=latent_dim", "model.latent_dim=4,8", "seed=1", *options]) == 0
    assert "model.latent_dim=8" in capsys.readouterr().out
    runs = list(find(Path(options[-1].removeprefix("runs_dir="))))
    assert [entry.status for entry in runs] == ["finished", "finished"]
    assert {entry.content["seed"] for entry in runs} == {1}
