import json
import os
import subprocess
import sys

import pytest

from anomaly_lab.config import compose
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split, SplitOptions
from anomaly_lab.errors import RunError
from anomaly_lab.runs import Run, RunBusyError, write_json, write_text

SPLIT = Split({"train_normal": (Record("a.png"),), "test": (Record("b.png"),)}, SplitOptions())


@pytest.fixture
def config(tmp_path):
    return compose("train", [f"runs_dir={tmp_path}", "dataset=mt", "dataset.root=/data"])


def test_the_path_says_what_the_run_is(config, tmp_path):
    run = Run.of(config, SPLIT)
    assert run.path.parent == tmp_path / "mt" / "dpae"
    assert run.path.name.endswith("-s0")
    assert Run.of({**config, "seed": 3}, SPLIT).path.name == run.path.name.replace("-s0", "-s3")
    mvtec = compose("train", [f"runs_dir={tmp_path}", "dataset=mvtec", "dataset.category=carpet"])
    assert Run.of(mvtec, SPLIT).path.parts[-3] == "mvtec-carpet"


def test_a_run_goes_from_new_to_finished(config):
    run = Run.of(config, SPLIT)
    assert run.status() == "new"
    with run.lock():
        run.start(config, SPLIT)
        assert run.status() == "running"
    assert run.status() == "interrupted"  # nobody holds it
    run.finish(config, SPLIT, {"metrics": {"image_auroc": 0.5}, "reasons": {}, "seconds": {}})
    assert run.status() == "finished"
    assert run.config() == config
    assert run.split() == SPLIT
    content = json.loads(run.metrics_file.read_text())
    assert content["metrics"] == {"image_auroc": 0.5}
    assert content["config_hash"][:8] == run.path.name[:8]
    assert {"git_sha", "versions", "tags", "split_sha256"} <= content.keys()


def test_a_failed_run_keeps_its_traceback(config):
    run = Run.of(config, SPLIT)
    run.start(config, SPLIT)
    run.fail(config, SPLIT, ValueError("no such thing"), "Traceback ...")
    assert run.status() == "failed"
    assert run.read()["cause"] == "no such thing"
    assert run.error_file.read_text() == "Traceback ..."


def test_two_processes_cannot_hold_a_run_and_a_lock_dies_with_its_process(config):
    run = Run.of(config, SPLIT)
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


def test_another_configuration_under_the_same_hash_is_refused(config):
    run = Run.of(config, SPLIT)
    run.start(config, SPLIT)
    changed = {**config, "model": {**config["model"], "latent_dim": 99}}
    with pytest.raises(RunError, match=r"model\.latent_dim"):
        run.start(changed, SPLIT)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "great"}', '{"metrics": {}}'])
def test_damaged_metrics_are_named(config, text):
    run = Run.of(config, SPLIT)
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
