"""Hand-made run directories, and what runs leave."""

import csv
import json

import numpy as np
import yaml

from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split
from anomaly_lab.metrics.scores import ScoreTable


def rows_of(path):
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def make_finished(path, paths, label, scores, model, *, threshold):
    """A finished run of these test images with these scores."""
    path.mkdir(parents=True)
    defect = ["scratch" if one else "good" for one in label]
    records = tuple(Record(name, kind) for name, kind in zip(paths, defect, strict=True))
    split = Split({"test": records}, SplitOptions(), ())
    config = {"model": {"name": "ae", **model}, "dataset": {"name": "folder"}, "trainer": {}, "seed": 0}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "split.json").write_text(json.dumps(split.to_json()))
    content = {"status": "finished", "metrics": {"threshold": threshold}, "git_sha": "abc", "versions": {"torch": "2"}}
    (path / "metrics.json").write_text(json.dumps(content))
    table = ScoreTable(
        np.arange(len(paths)), paths, np.array(label), defect, [""] * len(paths), {"mean": np.array(scores)}, "mean"
    )
    table.to_csv(path / "scores.csv")
    return path
