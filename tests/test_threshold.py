"""`anomaly-lab threshold`: chosen on held-out images, kept with the run, used by `predict`."""

import json
import shutil

import numpy as np
import pytest
from run_files import rows_of

from anomaly_lab import load
from anomaly_lab.cli import main
from anomaly_lab.files import csv_text
from anomaly_lab.runs import Run

COSTS = ["miss_cost=10", "false_alarm_cost=1", "defect_rate=0.1"]


def column(path, label):
    return np.array([float(row["score"]) for row in rows_of(path) if row["label"] == label])


def test_it_is_chosen_kept_used_and_taken_back(finished, pictures, tmp_path, capsys):
    own = Run(finished).threshold()
    assert main(["threshold", str(finished), "false_alarms=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "for at most 0.5 false alarms" in shown
    assert "On the test images, which chose nothing" in shown
    normals = column(finished / "scores-val.csv", "0")
    chosen = Run(finished).threshold()
    assert chosen == pytest.approx(np.sort(normals)[int(np.ceil(0.5 * (len(normals) + 1))) - 1], rel=1e-4)
    assert chosen != own
    assert load(finished, device="cpu").threshold == chosen
    content = json.loads((finished / "threshold.json").read_text())
    assert content["test"]["specificity"] == np.mean(column(finished / "scores.csv", "0") <= chosen)
    assert main(["predict", str(finished), f"input={pictures}/good", f"output={tmp_path / 'out'}"]) == 0
    for row in rows_of(tmp_path / "out/predictions.csv"):
        assert row["verdict"] == ("defective" if float(row["score"]) > chosen else "normal")
    assert main(["threshold", str(finished)]) == 0
    assert main(["threshold", f"run={finished}", "reset=true"]) == 0
    assert "the run's own" in capsys.readouterr().out
    assert Run(finished).threshold() == own


def test_another_score_is_used_from_then_on(finished, pictures, tmp_path, capsys):
    assert main(["threshold", str(finished), "score=RLX_peak", "false_alarms=0.5"]) == 0
    assert "score RLX_peak" in capsys.readouterr().out
    detector = load(finished, device="cpu")
    assert detector.primary_score == "RLX_peak"
    normals = np.array([float(row["RLX_peak"]) for row in rows_of(finished / "scores-val.csv") if row["label"] == "0"])
    assert detector.threshold == pytest.approx(np.sort(normals)[int(np.ceil(0.5 * (len(normals) + 1))) - 1], rel=1e-4)
    result = detector.predict(pictures / "spot/040.png")
    assert result.score == result.scores["RLX_peak"]
    output = tmp_path / "r.html"
    runs = [f"runs_dir={finished.parents[2]}", f"output={output}"]
    assert main(["report", *runs]) == 0
    assert '"score":"RLX_peak"' in output.read_text()
    assert main(["threshold", str(finished), "score=RLX_peek", "false_alarms=0.5"]) == 2
    assert "Did you mean 'RLX_peak'" in capsys.readouterr().err
    assert main(["threshold", str(finished), "score=RLX"]) == 2
    assert "together with its threshold" in capsys.readouterr().err
    shutil.copy(finished / "checkpoints/last.ckpt", finished / "checkpoints/best.ckpt")
    (finished / "evaluate-best").mkdir()
    (finished / "evaluate-best/metrics.json").write_text('{"status": "finished", "metrics": {"threshold": 0.25}}')
    other = load(finished, device="cpu", checkpoint="best")
    assert (other.primary_score, other.threshold) == ("RLX", 0.25), "a score and its threshold go together"
    assert main(["threshold", str(finished), "reset=true"]) == 0
    assert load(finished, device="cpu").primary_score == "RLX"


def test_misses_are_weighed_on_painted_copies_unless_real_defects_are_set_aside(finished, capsys):
    assert main(["threshold", str(finished), *COSTS]) == 0
    assert "misses are of painted defects" in capsys.readouterr().out
    val = (finished / "scores-val.csv").read_text()
    (finished / "scores-tune.csv").write_text(val.replace("painted_", "real_"))
    assert main(["threshold", str(finished), *COSTS]) == 0
    shown = capsys.readouterr().out
    assert "painted" not in shown
    assert json.loads((finished / "threshold.json").read_text())["defects_from"] == "tune"


def test_scores_that_are_worth_nothing_are_said(finished, capsys):
    rows = rows_of(finished / "scores-val.csv")
    for row in rows:
        row["score"] = -1 if row["label"] == "1" else row["score"]
    (finished / "scores-val.csv").write_text(csv_text(rows))
    assert main(["threshold", str(finished), "miss_cost=1000000", "false_alarm_cost=1", "defect_rate=0.5"]) == 0
    assert "calling every image defective costs 0.5" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["false_alarms=2"], "false_alarms=2 has to be a number above 0 and below 1"),
        (["false_alarms=few"], "false_alarms=few"),
        (["miss_cost=2"], "false_alarm_cost is missing"),
        (["false_alarms=0.1", *COSTS], "not by both"),
        (["false_alarm=0.1"], "Did you mean 'false_alarms'"),
        (["miss_cost=-1"], "miss_cost=-1"),
    ],
)
def test_what_is_asked_is_checked(options, told, finished, capsys):
    assert main(["threshold", str(finished), *options]) == 2
    assert told in capsys.readouterr().err
    assert not (finished / "threshold.json").exists()


def test_a_run_without_held_out_images_says_so(finished, tmp_path, capsys):
    (finished / "scores-val.csv").unlink()
    assert main(["threshold", str(finished), "false_alarms=0.1"]) == 2
    assert "dataset.val_count=50" in capsys.readouterr().err
    assert main(["threshold", str(tmp_path / "nothing"), "false_alarms=0.1"]) == 2
    assert "no run directory" in capsys.readouterr().err
    assert main(["threshold"]) == 2
