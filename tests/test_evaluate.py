import json
import shutil
from pathlib import Path

import pytest
import yaml

from anomaly_lab.cli import main


def test_the_same_scores_come_again(finished, capsys):
    before = (finished / "scores.csv").read_bytes()
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    (finished / "scores.csv").unlink()
    assert main(["evaluate", f"run={finished}"]) == 0
    assert (finished / "scores.csv").read_bytes() == before
    again = json.loads((finished / "metrics.json").read_text())
    assert again["metrics"] == metrics
    assert again["status"] == "finished"
    assert {"train", "evaluate"} <= again["seconds"].keys()


def test_a_run_from_before_an_option_is_scored_as_it_was(finished):
    content = yaml.safe_load((finished / "config.yaml").read_text())
    del content["model"]["weight_average"]
    (finished / "config.yaml").write_text(yaml.safe_dump(content))
    before = (finished / "scores.csv").read_bytes()
    assert main(["evaluate", str(finished)]) == 0
    assert (finished / "scores.csv").read_bytes() == before


def test_the_run_needs_no_name_in_front(finished, tmp_path):
    finished = finished.rename(tmp_path / "it's a=b")
    assert main(["evaluate", str(finished), f"output={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out/scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()


def test_other_pictures_do_not_overwrite_the_runs_numbers(finished, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    shutil.copy(other / "good/000.png", other / "spot/040.png")
    before = (finished / "metrics.json").read_bytes()
    assert main(["evaluate", f"run={finished}", f"dataset.root={other}"]) == 2
    assert "output=DIR" in capsys.readouterr().err
    assert (finished / "metrics.json").read_bytes() == before
    assert main(["evaluate", f"run={finished}", f"dataset.root={other}", "model.score=RLZ"]) == 2
    assert not (finished / "evaluate-RLZ").exists()
    assert main(["evaluate", f"run={finished}", f"dataset.root={other}", f"output={tmp_path / 'out'}"]) == 0
    hashes = [
        json.loads((folder / "metrics.json").read_text())["data_sha256"] for folder in (finished, tmp_path / "out")
    ]
    assert hashes[0] != hashes[1]


def test_images_may_have_moved(finished, pictures, tmp_path, capsys):
    before = (finished / "scores.csv").read_bytes()
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    output = tmp_path / "elsewhere"
    assert main(["evaluate", f"run={finished}", f"dataset.root={moved}", f"output={output}"]) == 0
    assert (output / "scores.csv").read_bytes() == before
    (moved / "spot/040.png").unlink()
    assert main(["evaluate", f"run={finished}", f"dataset.root={moved}", f"output={output}"]) == 2
    assert "spot/040.png" in capsys.readouterr().err


def test_what_is_no_finished_run_is_refused(finished, tmp_path, capsys):
    assert main(["evaluate", f"run={tmp_path / 'nowhere'}"]) == 2
    assert main(["evaluate"]) == 2
    assert "run has no value" in capsys.readouterr().err
    content = json.loads((finished / "metrics.json").read_text())
    (finished / "metrics.json").write_text(json.dumps({**content, "status": "failed"}))
    assert main(["evaluate", f"run={finished}"]) == 2
    assert "is failed" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(finished, capsys):
    assert main(["evaluate", f"run={finished}", "checkpoint=best"]) == 2
    assert "best.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["os.system", "anomaly_lab.provenance.subprocess.Popen"])
@pytest.mark.parametrize("part", ["model", "dataset", "optimizer"])
def test_a_strangers_config_runs_no_code_of_its_choice(finished, capsys, part, target):
    import yaml

    config = yaml.safe_load(Path(finished / "config.yaml").read_text())
    node = config["model"]["optimizer"] if part == "optimizer" else config[part]
    node["_target_"] = target
    config["allow"] = ["os", "subprocess"]  # a run's own config allows nothing
    Path(finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", f"run={finished}"]) == 2
    assert "_target_" in capsys.readouterr().err


def test_another_score_counts_without_a_training(finished, capsys):
    before = (finished / "metrics.json").read_bytes()
    assert main(["evaluate", f"run={finished}", "model.score=RLZ"]) == 0
    assert (finished / "metrics.json").read_bytes() == before
    metrics, again = (
        json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (finished, finished / "evaluate-RLZ")
    )
    assert again["image_score"] == "RLZ" != metrics["image_score"]
    assert again["image_auroc"] == metrics["image_auroc_RLZ"]
    assert main(["evaluate", f"run={finished}", "model.score=RLY"]) == 2
    assert "model.score='RLY'" in capsys.readouterr().err
