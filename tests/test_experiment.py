"""The definitions of the papers' tables, and what they print, read from the papers where those are at hand."""

import os
import re
from pathlib import Path

import pytest
import yaml

from anomaly_lab.errors import ConfigError
from anomaly_lab.experiment import Cell, load, load_settings, names

PAPERS = os.environ.get("ANOMALY_LAB_PAPERS")
TABLES = [name for name in names() if "/table" in name]
APART = ("ae_unet/table1", "dpae/table2", "dpae/table5")  # printed in another order than they are here


def definition(tmp_path, **changes):
    content = {
        "title": "A table",
        "source": "a paper",
        "rows": ["methods"],
        "columns": ["datasets", "metrics"],
        "datasets": {"A": ["dataset=mt"], "B": ["dataset=csd"]},
        "methods": {16: ["model=dpae", "model.latent_dim=16"], "VAE": ["model=vae"]},
        "metrics": {"AUC": "image_auroc", "F1": "image_f1"},
        "printed": {"Table 1": {16: [0.1, 0.2, None, 0.4], "VAE": [0.5]}},
        **changes,
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(path)


def test_all_of_both_papers_is_there_and_what_goes_beyond():
    dpae = {"table2", "fig4", "table3", "table4", "table5", "table6", "fig5", "fig6", "fig7"}
    ae_unet = {"table1", "table2", "table3", "table4", "tableA1", "tableA2", "fig4", "fig5", "fig6"}
    beyond = {"methods", "defects", "kinds", "inputs", "labels"}
    families = {"dpae": dpae, "ae_unet": ae_unet, "normal_only": beyond}
    assert set(names()) == {f"{family}/{name}" for family, of in families.items() for name in of}
    assert all(load(name).source for name in names())


def test_values_are_those_of_their_cells(tmp_path):
    found = load(definition(tmp_path))
    assert found.printed_at(Cell("A", "16", "AUC")) == {"Table 1": 0.1}
    assert found.printed_at(Cell("A", "16", "F1")) == {"Table 1": 0.2}
    assert found.printed_at(Cell("B", "16", "AUC")) == {}
    assert found.printed_at(Cell("B", "16", "F1")) == {"Table 1": 0.4}
    assert found.printed_at(Cell("A", "VAE", "AUC")) == {"Table 1": 0.5}
    assert found.printed_at(Cell("B", "VAE", "F1")) == {}


def test_values_stay_with_their_names_when_a_table_is_narrowed(tmp_path):
    whole = load(definition(tmp_path))
    fewer = whole.narrowed({"datasets": {"B": ("dataset=csd",)}})
    assert fewer.printed_at(fewer.cell({"methods": "16"}, {"datasets": "B", "metrics": "F1"})) == {"Table 1": 0.4}
    other = whole.narrowed({"datasets": {"synthetic": ("dataset=synthetic",)}})
    assert [other.printed_at(other.cell(row, column)) for row in other.places(other.rows) for column in
            other.places(other.columns)] == [{}] * 4  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"title": None}, "title: Field required"),
        ({"figur": "roc"}, "figur: Extra inputs"),
        ({"figure": "pie"}, "figure: Input should be"),
        ({"rows": ["methods", "metrics"]}, "an axis stands twice"),
        ({"columns": ["metrics"]}, "datasets has 2 entries and stands in neither"),
        ({"printed": {"Table 1": {"AE": [0.1]}}}, "there is no row 'AE'; rows are 16; VAE"),
        ({"printed": {"Table 1": {"VAE": [0.1] * 5}}}, "5 values for 4 columns"),
        ({"mean": "Mean"}, "a mean is over datasets"),
        ({"seeds": 0}, "seeds: Input should be greater than 0"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        load(definition(tmp_path, **changes))
    assert "own.yaml" in str(caught.value)


def test_a_mistyped_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'dpae/table4'"):
        load("dpae/tabel4")
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        load_settings("smal", load("dpae/table4"))


def test_settings_are_lists_of_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("all: [dataset.image_size=64]\nvae: model.latent_dim=8\n")
    with pytest.raises(ConfigError, match="vae has to be a list of overrides"):
        load_settings(str(path), load("dpae/table4"))
    path.write_text("ael2: [model.latent_dim=4]\n")
    with pytest.raises(ConfigError, match=r"no model 'ael2'\. Did you mean 'ae_l2'"):
        load_settings(str(path), load("dpae/table4"))
    assert load_settings("tiny", load("dpae/table4"))["all"][0] == "dataset.image_size=32"


def test_a_mean_stays_with_all_its_datasets():
    table = load("ae_unet/table2")
    assert table.narrowed({"datasets": dict(table.datasets)}).mean == "Mean Total"
    assert table.narrowed({"datasets": {"Tile": table.datasets["Tile"]}}).mean is None


# the values as the papers print them


def printed_rows(text, title):
    """The rows of numbers below a table's title, as (name, values); the first table of that title and what goes on."""
    rows = []
    for line in text[text.index(title) :].splitlines()[1:]:
        name, *values = line.split("\t")
        cleaned = [re.sub(r"</?u>|,|%", "", value).strip() for value in values]
        if values and all(re.fullmatch(r"[\d.]+", value) for value in cleaned):
            rows.append((name.strip(), [float(value) for value in cleaned]))
        elif rows and line and not values and not line.startswith("Table"):
            break  # the running text
    return rows


@pytest.mark.skipif(PAPERS is None, reason="ANOMALY_LAB_PAPERS does not name the folder of the papers' texts")
class TestPrintedValues:
    @pytest.mark.parametrize("name", [name for name in TABLES if name not in APART])
    def test_a_table_is_the_papers(self, name):
        paper, table = name.split("/")
        number = table.removeprefix("table")
        text = (Path(PAPERS) / f"{paper}.txt").read_text()
        if name == "ae_unet/tableA2":  # printed in two parts
            text = text.replace("Table A2. Cont.\n\nCategory", "Table A2 goes on\n\n")
        title = f"\nTable {number}\n" if paper == "dpae" else f"\nTable {number}. "
        rows = printed_rows(text, title)
        experiment = load(name)
        (printed,) = experiment.printed.values()
        assert [row for _, row in rows] == [list(values) for values in printed.values()]

    def test_the_labels_that_table_5_swaps(self):
        text = (Path(PAPERS) / "dpae.txt").read_text()
        rows = dict(printed_rows(text, "\nTable 5\n"))
        experiment = load("dpae/table5")
        for method, printed in {"AE(L2)": "AE(L ₂)", "AE(SSIM)": "AE(SSIM)", "DPAE": "DPAE"}.items():
            assert list(experiment.printed_at(Cell("APSD", method, "AUC")).values()) == rows[printed]
        cell = Cell("APSD", "only reconstruction", "AUC")
        assert experiment.printed_at(cell)["Table 5"] == rows["DPAE w/o DPS"][0] == 0.54
        assert "DPAE with only RS achieves an AUC of 0.72" in text
        assert experiment.printed_at(cell)["section 5.3"] == 0.72

    def test_the_values_of_fig_6_are_in_the_text(self):
        text = (Path(PAPERS) / "dpae.txt").read_text()
        experiment = load("dpae/fig6")
        printed = [value for row in experiment.printed["section 5.3"].values() for value in row if value is not None]
        (passage,) = re.findall(r"Latent vector size in DPAE\..*", text)
        assert len(printed) == 4
        assert all(f"{value}" in passage for value in printed)

    def test_dpaes_datasets(self):
        rows = dict(printed_rows((Path(PAPERS) / "dpae.txt").read_text(), "\nTable 2\n"))
        for name, values in load("dpae/table2").printed["Table 2"].items():
            train, normal, defective, _, groups, ratio = rows[name]
            assert list(values) == [train, normal, defective, groups, ratio]

    def test_the_split_of_mvtec(self):
        lines = (Path(PAPERS) / "ae_unet.txt").read_text().partition("\nTable 1. ")[2].splitlines()
        rows = [line.split("\t") for line in lines[:20] if "\t" in line]
        columns = {}
        for row in rows:
            if row[0] == "Category":
                names_here = [name.title() for name in row[1:]]
            elif not row[0].startswith("%"):
                for name, value in zip(names_here, row[1:], strict=True):
                    columns.setdefault(name, []).append(float(value))
        assert {name: list(values) for name, values in load("ae_unet/table1").printed["Table 1"].items()} == columns
