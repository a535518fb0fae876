import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lab.errors import RunError, TrainingError
from anomaly_lab.metrics.scores import ScoreTable

NAMES = [
    "a.png",
    'with "quotes", commas.png',
    "line\nbreak.png",
    "carriage\rreturn.png",
    "Riß äöü 表面.png",
    "\udcff.png",
    "",
]
FINITE32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
HEADER = "index,path,label,defect,score\n"


def table(names, scores, primary="RLZ", **changes):
    count = len(names)
    columns = {
        "index": np.arange(count) * 3,
        "path": names,
        "label": np.arange(count) % 2,
        "defect": ["good" if row % 2 == 0 else "a, b" for row in range(count)],
        "group": [f"tile {row // 2}" for row in range(count)],
        "scores": scores,
        "primary": primary,
    }
    return ScoreTable(**columns | changes)


def same(left, right):
    return (
        left.primary == right.primary
        and [*left.path] == [*right.path]
        and [*left.defect] == [*right.defect]
        and [*left.group] == [*right.group]
        and left.index.tolist() == right.index.tolist()
        and left.label.tolist() == right.label.tolist()
    )


def test_names_of_every_kind_come_back(tmp_path):
    rng = np.random.default_rng(0)
    written = table(NAMES, {"RLX": rng.random(len(NAMES)), "RLZ": rng.random(len(NAMES))})
    written.to_csv(tmp_path / "scores.csv")
    assert same(ScoreTable.from_csv(tmp_path / "scores.csv"), written)


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    table([text], {"RLZ": np.zeros(1)}, defect=[text], group=[text]).to_csv(path)
    read = ScoreTable.from_csv(path)
    assert (read.path[0], read.defect[0], read.group[0]) == (text, text, text)


@settings(deadline=None, max_examples=50)
@given(st.lists(FINITE32, min_size=1))
def test_float32_scores_come_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    scores = np.array(values, np.float32)
    table(["x.png"] * len(values), {"RLZ": scores.astype(np.float64)}).to_csv(path)
    assert ScoreTable.from_csv(path).primary_scores.astype(np.float32).tobytes() == scores.tobytes()


def test_the_file_has_the_columns_of_the_contract(tmp_path):
    table(["a.png", "b.png"], {"RLX": np.array([1 / 3, 2.0]), "RLZ": np.array([1e-7, 5.0])}).to_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["index", "path", "label", "defect", "group", "score", "RLX", "RLZ"]
    assert [*rows[0].values()] == ["0", "a.png", "0", "good", "tile 0", "1e-07", "0.333333333", "1e-07"]
    assert rows[1] | {"index": "3", "label": "1", "defect": "a, b", "score": "5", "RLX": "2"} == rows[1]


@pytest.mark.parametrize("primary", ["RLX", "RLZ"])
def test_the_primary_score_is_recognised(tmp_path, primary):
    scores = {"RLX": np.array([1.0, 2.0]), "RLZ": np.array([2.0, 1.0])}
    table(["a", "b"], scores, primary).to_csv(tmp_path / "s.csv")
    read = ScoreTable.from_csv(tmp_path / "s.csv")
    assert read.primary == primary
    assert {name: values.tolist() for name, values in read.scores.items()} == {"RLX": [1, 2], "RLZ": [2, 1]}


def test_another_tools_file_needs_no_named_score_and_no_group(tmp_path):
    (tmp_path / "s.csv").write_text("\ufeff" + HEADER + "7,a.png,1,crack,0.5\n", encoding="utf-8")
    read = ScoreTable.from_csv(tmp_path / "s.csv")
    assert read.primary == "score"
    assert (read.index.tolist(), read.label.tolist(), [*read.group]) == ([7], [1], [""])
    read.to_csv(tmp_path / "again.csv")
    assert same(ScoreTable.from_csv(tmp_path / "again.csv"), read)


def test_a_table_without_rows_comes_back(tmp_path):
    table([], {"RLZ": np.empty(0)}).to_csv(tmp_path / "s.csv")
    assert len(ScoreTable.from_csv(tmp_path / "s.csv")) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: no column index, path, label, defect, score"),
        ("index,path,defect,score\n", "line 1: no column label"),
        ("index,path,label,defect,score,score\n", "line 1: a column stands twice"),
        (HEADER + "0,a,0,good,1\n1,b,1,crack,high\n", "line 3: score is 'high', not a number"),
        (HEADER + "0,a,0,good,nan\n", "line 2: score is nan, not a finite number"),
        (HEADER + "0,a,0,good,-inf\n", "line 2: score is -inf, not a finite number"),
        (HEADER + "0,a,0,good,1e999\n", "line 2: score is 1e999, not a finite number"),
        (HEADER + "0,a,2,good,1\n", "line 2: the label is '2'"),
        (HEADER + "0,a,,good,1\n", "line 2: the label is ''"),
        (HEADER + '0,"a\nb",0,good,1\n0,c,0,good,1\n', "line 4: the index 0 stands twice"),
        (HEADER + "-1,a,0,good,1\n", "line 2: the index is '-1'"),
        (HEADER + "1.0,a,0,good,1\n", "line 2: the index is '1.0'"),
        (HEADER + "99999999999999999999,a,0,good,1\n", "line 2: the index is"),
        (HEADER + "0,a,0,good\n", "line 2: 4 cells under 5 columns"),
        (HEADER.strip() + ",TP\n0,a,0,good,1,2.5\n", "line 2: TP is '2.5', not a whole number"),
        (HEADER + "0,a,0,go", "line 2: 4 cells under 5 columns"),
        (HEADER + '0,"a,0,good,1\n', "not a CSV file"),
        (HEADER + "0," + "a" * 200_000 + ",0,good,1\n", "not a CSV file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(RunError) as error:
        ScoreTable.from_csv(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(RunError, match=r"scores\.csv"):
        ScoreTable.from_csv(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"none\.csv: cannot be read \(No such file"):
        ScoreTable.from_csv(tmp_path / "none.csv")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_names_its_image(bad):
    with pytest.raises(TrainingError, match=r"score RLX of b\.png is -?(nan|inf) \(1 of 2 images\)"):
        table(["a.png", "b.png"], {"RLZ": np.zeros(2), "RLX": np.array([0.0, bad])})


@pytest.mark.parametrize(
    ("scores", "changes", "words"),
    [
        (["RLZ"], {"label": np.zeros(1)}, "not all of 2 rows"),
        (["RLZ"], {"primary": "PL1"}, "PL1 is not among"),
        (["RLZ", "group"], {}, "no score can be named"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(scores, changes, words):
    with pytest.raises(ValueError, match=words):
        table(["a.png", "b.png"], {name: np.zeros(2) for name in scores}, **changes)


def test_pixel_counts_come_back_as_whole_numbers_and_are_no_scores(tmp_path):
    counts = {"TP": np.array([0, 12_345_678]), "FP": np.array([1, 0]), "FN": np.array([2, 3]), "TN": np.array([4, 5])}
    table(["a", "b"], {"max": np.array([0.25, 0.5])}, primary="max", counts=counts).to_csv(tmp_path / "scores.csv")
    again = ScoreTable.from_csv(tmp_path / "scores.csv")
    assert {name: column.tolist() for name, column in again.counts.items()} == {
        name: column.tolist() for name, column in counts.items()
    }
    assert list(again.scores) == ["max"]
    assert again.primary == "max"
