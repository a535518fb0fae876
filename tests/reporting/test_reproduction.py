import csv
import io
import re
import shutil
import subprocess

import pytest
import yaml
from terminal import line_with, text_of

from anomaly_lab.experiment import Cell, load
from anomaly_lab.reporting.paper_files import write
from anomaly_lab.reporting.paper_table import notes, plan_table, terminal
from anomaly_lab.reporting.reproduction import Reproduction

AE = {0: 0.60, 1: 0.62, 2: 0.61}
DPAE = {0: 0.90, 1: 0.93, 2: 0.90}


def metrics(auroc, floor=0.88, **more):
    return {"image_auroc": auroc, "image_f1_defect_ratio": 0.7, "floor_knn_auroc": floor, "floor_all_f1": 0.85, **more}


@pytest.fixture
def experiment(tmp_path):
    content = {
        "title": "Two methods & two datasets",
        "source": "a paper, Table 4",
        "rows": ["methods"],
        "columns": ["datasets", "metrics"],
        "datasets": {"MT": ["dataset=mt"], "CSD": ["dataset=csd"]},
        "methods": {"AE_1": ["model=ae_l2"], "DPAE": ["model=dpae"]},
        "metrics": {"AUC": "image_auroc", "F1": "image_f1_defect_ratio"},
        "seeds": 3,
        "printed": {"Table 4": {"AE_1": [0.68, 0.73, 0.61, 0.73], "DPAE": [0.91, 0.78, 0.83, 0.85]}},
        "notes": ["A note of the paper."],
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load(str(path))


@pytest.fixture
def found(experiment):
    values = {
        ("MT", "AE_1"): {seed: metrics(value) for seed, value in AE.items()},
        ("MT", "DPAE"): {seed: metrics(value) for seed, value in DPAE.items()},
    }
    gaps = {("CSD", "AE_1"): "csd: no folder given.", ("CSD", "DPAE"): "csd: no folder given."}
    return Reproduction(experiment, values, gaps, "own.yaml seeds=3", ("abc1234",))


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_cell_is_over_its_seeds_and_says_what_holds(found):
    cell = Cell("MT", "DPAE", "AUC")
    assert found.spread(cell).mean == pytest.approx(0.91)
    # sd 0.01732, t 4.303: 0.043 to each side, wider than 0.03
    assert found.verdicts(cell) == {"Table 4": "undecided"}
    assert found.verdicts(Cell("MT", "AE_1", "AUC")) == {"Table 4": "different"}
    assert found.verdicts(Cell("CSD", "DPAE", "AUC")) == {"Table 4": "not run"}


def test_the_terminals_table_names_ours_the_papers_and_what_is_missing(found):
    text = text_of(terminal(found))
    assert max(map(len, text.splitlines())) <= 80
    assert line_with(text, "DPAE").split()[1:4] == ["0.910", "±", "0.017"]
    assert "0.91 undecided" in text
    assert "0.68 different" in text
    assert line_with(text, "floor: nearest").split() == ["floor:", "nearest", "thumbnail", "0.880", "±", "0.000", "—"]
    assert "Not run: CSD / AE_1, CSD / DPAE: csd: no folder given." in text
    assert "A note of the paper." in text
    assert "own.yaml seeds=3; commit abc1234" in " ".join(text.split())


def test_a_seed_that_is_missing_is_said(found):
    values = {**found.values, ("MT", "DPAE"): {0: metrics(0.9), 2: metrics(0.92)}}
    text = text_of(terminal(Reproduction(found.experiment, values, {}, "", ())))
    assert "0.910 ± 0.014 (2 of 3)" in " ".join(text.split())


def test_differences_are_paired_by_seed(found):
    differences = [(cell, last, one) for cell, last, one in found.differences() if cell.metric == "AUC"]
    ((cell, last, difference),) = differences
    assert (cell, last) == (Cell("MT", "AE_1", "AUC"), "DPAE")
    assert difference.spread.mean == pytest.approx(0.30)
    assert difference.spread.deviation == pytest.approx(0.01)  # 0.30 0.31 0.29
    assert difference.p_value is None
    assert "+0.300 ± 0.010" in text_of(terminal(found))


def test_the_files_hold_what_the_terminal_shows(found, tmp_path):
    written = {path.name: path.read_text() for path in write(found, tmp_path / "out")}
    assert set(written) == {"table.md", "table.csv", "table.tex", "differences.csv"}
    rows = {(row["dataset"], row["method"], row["metric"]): row for row in rows_of(written["table.csv"])}
    dpae = rows["MT", "DPAE", "AUC"]
    assert dpae["values"] == "0:0.9 1:0.93 2:0.9"
    assert (dpae["printed"], dpae["verdict"], dpae["seeds"]) == ("0.91", "undecided", "3")
    assert float(dpae["low"]) == pytest.approx(0.91 - 0.04303, abs=1e-4)
    assert rows["CSD", "DPAE", "F1"]["mean"] == ""
    assert rows["MT", "floor: all defective", "F1"]["mean"] == "0.85"
    assert rows["MT", "floor: all defective", "AUC"]["mean"] == ""
    header, *_ = re.findall(r"^\| .*AUC.*\|$", written["table.md"], re.M)
    assert header.startswith("|  | MT, AUC | Table 4 | MT, F1 | Table 4 |")
    assert "| DPAE | 0.910 ± 0.017 [0.867, 0.953] | 0.91 undecided |" in written["table.md"]
    assert "| DPAE less | on | of | difference | 95% interval | p |" in written["table.md"]
    assert re.search(r"^\| AE_1 \| MT \| AUC \| \+0\.\d{3} ± ", written["table.md"], re.M)
    (difference, _) = rows_of(written["differences.csv"])
    assert (difference["method"], difference["less"]) == ("DPAE", "AE_1")


def test_the_latex_table_has_as_many_cells_in_each_row(found, tmp_path):
    text = {path.name: path.read_text() for path in write(found, tmp_path)}["table.tex"]
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {4}
    assert r"Two methods \& two datasets" in text
    assert r"AE\_1 & 0.610 $\pm$ 0.010 (0.68)" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_the_latex_compiles(found, tmp_path):
    write(found, tmp_path)
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table.tex}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_a_mean_needs_all_rows_and_is_taken_seed_by_seed(tmp_path):
    content = {
        "title": "t", "source": "s", "rows": ["datasets"], "columns": ["methods"], "seeds": 2, "mean": "Mean",
        "datasets": {"A": ["dataset=mt"], "B": ["dataset=csd"]},
        "methods": {"UNet": ["model=unet"]},
        "metrics": {"IoU": "pixel_miou"},
        "printed": {"Table 2": {"A": [0.6], "B": [0.5], "Mean": [0.57]}},
    }  # fmt: skip
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    values = {
        ("A", "UNet"): {0: {"pixel_miou": 0.6, "floor_empty_miou": 0.47}, 1: {"pixel_miou": 0.5}},
        ("B", "UNet"): {0: {"pixel_miou": 0.4}},
    }
    found = Reproduction(load(str(path)), values, {}, "", ())
    assert found.by_seed(Cell("Mean", "UNet", "IoU")) == {0: 0.5}
    assert "Table 2 prints 0.57 as the mean of UNet; its cells average 0.550." in notes(found)
    text = text_of(terminal(found))
    assert line_with(text, "Mean").split()[:2] == ["Mean", "0.500"]
    assert "floor: nothing marked" in " ".join(text.split()).replace("floor: nothing\nmarked", "floor: nothing marked")


def test_a_floor_is_of_the_runs_made_here(experiment):
    values = {
        ("MT", "AE_1"): {0: metrics(0.6, floor=0.88)},
        ("MT", "theirs (imported)"): {0: metrics(0.6, floor=0.5)},
    }
    found = Reproduction(experiment, values, {}, "", ())
    assert found.by_seed(Cell("MT", "floor: nearest thumbnail", "AUC")) == {0: 0.88}


def test_a_wide_interval_decides_nothing_where_values_are_no_shares(experiment):
    times = experiment.model_copy(update={"close": None})
    cell = Cell("MT", "DPAE", "AUC")
    for values, verdict in (((0.85, 0.97), "undecided"), ((0.907, 0.912), "reproduced"), ((0.8, 0.81), "different")):
        of_seeds = {seed: metrics(value) for seed, value in enumerate(values)}
        found = Reproduction(times, {("MT", "DPAE"): of_seeds}, {}, "", ())
        assert found.verdicts(cell) == {"Table 4": verdict}


def test_printed_means_of_ae_unet_that_do_not_fit_are_marked():
    text = "\n".join(notes(Reproduction(load("ae_unet/table2"), {}, {}, "", ())))
    assert "Table 2 prints 0.666 as the mean of mean IoU, AE+UNet; its cells average 0.674." in text
    assert "mean IoU, UNet;" not in text
    text = "\n".join(notes(Reproduction(load("ae_unet/table4"), {}, {}, "", ())))
    assert "Table 4 prints 0.614 as the mean of not augmented; its cells average 0.601." in text
    text = "\n".join(notes(Reproduction(load("ae_unet/tableA2"), {}, {}, "", ())))
    assert "Table A2 prints 47494 as the mean of PCA; its cells average 49,671." in text


def test_counts_are_the_same_or_not():
    experiment = load("dpae/table2")
    counts = {"count_train": 330, "count_test_normal": 142, "count_test_defective": 392, "count_defects": 5}
    found = Reproduction(experiment, {("MT", "DPAE"): {0: counts | {"defect_ratio": 0.734}}}, {}, "", ())
    verdicts = {metric: found.verdicts(Cell("MT", "DPAE", metric))["Table 2"] for metric in experiment.metrics}
    assert list(verdicts.values()) == ["reproduced", "reproduced", "different", "reproduced", "different"]


def test_a_plan_says_what_is_there_and_how_long_the_rest_takes(experiment):
    rows = [
        ("MT", "AE_1", 3, 1, 600.0, None),
        ("MT", "DPAE", 3, 0, None, None),
        ("CSD", "AE_1", 3, 0, None, "csd: no folder given."),
    ]
    text = text_of(plan_table(experiment, rows))
    assert next(line.split() for line in text.splitlines() if "AE_1" in line) == [
        "MT",
        "AE_1",
        "3",
        "1",
        "2",
        "20",
        "min",
    ]
    assert "cannot" in text
    assert "What is missing takes about 20 min on one machine." in text
    assert "How long 3 runs take is not known" in text
    nothing = plan_table(experiment, [("MT", "AE_1", 3, 3, 600.0, None)])
    assert "Nothing is missing." in text_of(nothing)
