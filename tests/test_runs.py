import json
import os
import subprocess
import sys

import pytest

from anomaly_lab.config import compose
from anomaly_lab.data.folder import ImageFolder
from anomaly_lab.data.options import LoadOptions, SplitOptions
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split
from anomaly_lab.errors import RunError
from anomaly_lab.files import write_json, write_text
from anomaly_lab.locks import RunBusyError
from anomaly_lab.runs import Run

SPLIT = Split({"train_normal": (Record("a.png"),), "test": (Record("b.png"),)}, SplitOptions())


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / name).write_text(name)
    return DataPlan(ImageFolder(tmp_path / "data"), SPLIT, LoadOptions())


@pytest.fixture
def config(tmp_path):
    return compose("train", [f"runs_dir={tmp_path / 'runs'}", "dataset=mt", "dataset.root=/data"])


def test_the_path_says_what_the_run_is(config, plan, tmp_path):
    run = Run.of(config, plan)
    assert run.path.parent == tmp_path / "runs/mt/dpae"
    assert run.path.name.endswith("-s0")
    assert Run.of({**config, "seed": 3}, plan).path.name == run.path.name.replace("-s0", "-s3")
    mvtec = compose("train", [f"runs_dir={tmp_path}", "dataset=mvtec", "dataset.category=carpet"])
    assert Run.of(mvtec, plan).path.parts[-3] == "mvtec-carpet"


def test_a_run_goes_from_new_to_finished(config, plan):
    run = Run.of(config, plan)
    assert run.status() == "new"
    with run.lock():
        run.start(config, plan)
        assert run.status() == "running"
    assert run.status() == "interrupted"  # nobody holds it
    run.finish(config, plan, {"metrics": {"image_auroc": 0.5}, "reasons": {}, "seconds": {}})
    assert run.status() == "finished"
    assert run.config() == config
    assert run.split() == SPLIT
    content = json.loads(run.metrics_file.read_text())
    assert content["metrics"] == {"image_auroc": 0.5}
    assert content["config_hash"][:8] == run.path.name[:8]
    assert {"git_sha", "versions", "tags", "split_sha256"} <= content.keys()


def test_a_failed_run_keeps_its_traceback(config, plan):
    run = Run.of(config, plan)
    run.start(config, plan)
    run.fail(config, plan, ValueError("no such thing"), "Traceback ...")
    assert run.status() == "failed"
    assert run.read()["cause"] == "no such thing"
    assert run.error_file.read_text() == "Traceback ..."


def test_two_processes_cannot_hold_a_run_and_a_lock_dies_with_its_process(config, plan):
    run = Run.of(config, plan)
    hold = (
        "import sys; from pathlib import Path; from anomaly_lab.runs import Run\n"
        f"with Run(Path({str(run.path)!r})).lock():\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match="another process"), run.lock():
            pass
        other.kill()
    with run.lock():
        pass


def test_another_configuration_under_the_same_hash_is_refused(config, plan):
    run = Run.of(config, plan)
    run.start(config, plan)
    changed = {**config, "model": {**config["model"], "latent_dim": 99}}
    with pytest.raises(RunError, match=r"model\.latent_dim"):
        run.check(changed, plan)
    run.check(config, plan)


def test_other_pictures_of_the_same_names_are_another_run(config, plan, tmp_path):
    before = Run.of(config, plan)
    before.start(config, plan)
    (tmp_path / "data/b.png").write_text("another picture")
    changed = DataPlan(plan.dataset, plan.split, plan.load)
    assert Run.of(config, changed).path != before.path
    with pytest.raises(RunError, match="data"):
        before.check(config, changed)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "great"}', '{"metrics": {}}'])
def test_damaged_metrics_are_named(config, plan, text):
    run = Run.of(config, plan)
    write_text(run.metrics_file, text)
    with pytest.raises(RunError, match=r"metrics\.json"):
        run.status()


@pytest.mark.parametrize("text", ["", "- a", "model: 1", "a: [", "!!python/object/apply:os.system [id]"])
def test_a_damaged_or_hostile_config_is_named(tmp_path, text):
    write_text(tmp_path / "config.yaml", text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        Run(tmp_path).config()


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        Run(tmp_path).config()


def test_what_cannot_be_written_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["metrics.json"]  # noqa: PTH208
