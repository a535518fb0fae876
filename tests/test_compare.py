"""`anomaly-lab compare`: hand-made runs whose differences are known, and two trained ones."""

import csv
import json

import pytest
from run_files import make_finished
from sklearn.metrics import roc_auc_score

from anomaly_lab.cli import main
from anomaly_lab.compare import compare
from anomaly_lab.errors import RunError
from anomaly_lab.runs import Run

PATHS = [f"good/{i}.png" for i in range(6)] + [f"scratch/{i}.png" for i in range(6)]
LABEL = [0] * 6 + [1] * 6
A = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.15, 0.35, 0.6, 0.7, 0.8, 0.95]
B = [0.1, 0.2, 0.3, 0.7, 0.5, 0.4, 0.65, 0.35, 0.2, 0.7, 0.8, 0.95]


@pytest.fixture
def pair(tmp_path):
    a = make_finished(tmp_path / "a", PATHS, LABEL, A, {"loss": "mse", "optimizer": {"lr": 0.1}}, threshold=0.55)
    b = make_finished(tmp_path / "b", PATHS, LABEL, B, {"loss": "ssim", "optimizer": {"lr": 0.1}}, threshold=0.55)
    return Run(a), Run(b)


def test_options_that_differ_are_named_with_both_values(pair):
    found = compare(*pair)
    assert dict(found.config) == {"model.loss": ("mse", "ssim")}
    assert dict(found.versions) == {}
    assert dict(found.split) == {}


def test_scores_are_paired_and_sides_are_told_apart(pair):
    found = compare(*pair).scores
    assert found.aurocs == pytest.approx((roc_auc_score(LABEL, A), roc_auc_score(LABEL, B)))
    names = {kind: [PATHS[row] for row in rows] for kind, rows in found.sides.items()}
    assert names == {
        "found": ["scratch/0.png"],
        "missed": ["scratch/2.png"],
        "cleared": ["good/5.png"],
        "alarmed": ["good/3.png"],
    }
    low, high = found.interval
    assert low < found.aurocs[1] - found.aurocs[0] < high


def test_the_interval_of_a_run_with_itself_is_nothing(pair):
    found = compare(pair[0], pair[0]).scores
    assert found.interval == (0, 0)
    assert not any(found.sides.values())


def test_only_images_that_both_have_count(tmp_path, pair):
    fewer = make_finished(tmp_path / "c", PATHS[:5] + PATHS[6:9], [0] * 5 + [1] * 3, A[:5] + A[6:9], {}, threshold=0.5)
    found = compare(pair[0], Run(fewer))
    assert len(found.scores.paths) == 8
    assert found.split["test"] == (8, 4, 0)


def test_all_images_go_to_a_file(pair, tmp_path, capsys):
    assert main(["compare", str(pair[0].path), str(pair[1].path), f"output={tmp_path / 'out/pairs.csv'}"]) == 0
    with (tmp_path / "out/pairs.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12
    assert rows["good/3.png"] == {
        "path": "good/3.png", "label": "0", "defect": "good", "score_a": "0.4", "score_b": "0.7", "changed": "alarmed",
    }  # fmt: skip
    assert rows["good/0.png"]["changed"] == ""
    shown = capsys.readouterr().out
    assert "model.loss" in shown
    assert "false alarms of B only" in shown


def test_what_cannot_be_compared_is_refused(pair, tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        compare(pair[0], Run(tmp_path / "nowhere"))
    content = json.loads(pair[1].metrics_file.read_text())
    pair[1].metrics_file.write_text(json.dumps(content | {"status": "failed"}))
    with pytest.raises(RunError, match="is failed, not finished"):
        compare(*pair)
    other = make_finished(tmp_path / "d", ["x.png", "y.png"], [0, 1], [0.1, 0.2], {}, threshold=0.5)
    with pytest.raises(RunError, match="no image in common"):
        compare(pair[0], Run(other))
    turned = make_finished(tmp_path / "e", PATHS, [1 - one for one in LABEL], A, {}, threshold=0.5)
    with pytest.raises(RunError, match="differently"):
        compare(pair[0], Run(turned))
    assert main(["compare", str(pair[0].path)]) == 2


def test_two_trained_runs(tiny, tmp_path, capsys):
    assert main(["train", "-m", *tiny, "model.prototype_rate=0.1,0.9"]) == 0
    a, b = sorted(path.parent for path in (tmp_path / "runs").glob("*/*/*/metrics.json"))
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "model.prototype_rate" in shown
    assert "The same split." in shown
