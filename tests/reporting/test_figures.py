import csv
import gc
import json
import subprocess
import sys
import weakref

import matplotlib
import numpy as np
import pytest
from figure_tools import METRICS, drawn, full_gallery, make_gallery, make_table
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomaly_lab.errors import RunError
from anomaly_lab.reporting import figures
from anomaly_lab.reporting.cases import cases_figure
from anomaly_lab.reporting.figures import curves_figure, draw_all, leakage_figure, roc_figure
from anomaly_lab.reporting.histogram import score_figure


def write_run(run_dir, table, gallery=None, metrics=METRICS, curves=None):
    (run_dir / "predictions").mkdir(parents=True)
    table.to_csv(run_dir / "scores.csv")
    content = {"status": "finished", "metrics": metrics, "reasons": {}, "seconds": {}}
    (run_dir / "metrics.json").write_text(json.dumps(content))
    if gallery is not None:
        np.savez_compressed(run_dir / "predictions" / "gallery.npz", **gallery)
    if curves is not None:
        with (run_dir / "curves.csv").open("w", newline="") as file:
            csv.writer(file).writerows(curves)
    return run_dir


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.fixture(scope="module")
def roc():
    table = make_table()
    return table, roc_figure(table, METRICS, "mt · dpae · seed 0")


def test_the_roc_legend_has_the_aurocs_of_scikit_learn(roc):
    table, figure = roc
    legend = legend_of(figure)
    auroc, other = (roc_auc_score(table.label, table.scores[name]) for name in ("RLX", "RLZ"))
    assert f"RLX {auroc:.3f} [0.59, 0.69]" in legend
    assert f"RLZ {other:.3f}" in legend
    assert "floor, nearest thumbnail 0.650" in legend
    assert any("chance" in text for text in legend)
    assert figure.get_suptitle() == "ROC curves, mt · dpae · seed 0"


def test_the_operating_point_is_where_scores_are_above_the_threshold():
    table = make_table(2, {"dent": 4}, scores=[0.0, 1.1, 1.0, 1.1, 2.0, 3.0])  # 1.0 is not above 1.0
    figure = roc_figure(table, METRICS)
    point = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "o")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.5, 0.75)
    assert any("finds 75%\nof defective, flags 50% of normal" in text for text in legend_of(figure))


def test_the_primary_roc_is_the_boldest(roc):
    _, figure = roc
    lines = {line.get_label().split()[0]: line.get_linewidth() for line in figure.axes[0].get_lines()}
    assert lines["RLX"] == max(lines.values()) > lines["RLZ"]


def test_a_roc_without_threshold_interval_and_floor_has_only_curves():
    figure = roc_figure(make_table(), {"threshold": None, "image_auroc_ci": None})
    assert len(legend_of(figure)) == 3
    assert "[" not in "".join(legend_of(figure))


def test_rankings_of_constant_scores_are_drawn():
    table = make_table(3, {"dent": 2}, scores=np.zeros(5))
    assert "RLX 0.500" in legend_of(drawn(roc_figure(table, {"threshold": 0.0})))
    drawn(cases_figure(full_gallery(table), table, {"threshold": 0.0}))


def captions(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_leaked_pairs_are_captioned_and_at_most_eight():
    train, test = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 99, np.uint8)
    pairs = [(train, test, 0.99 - number / 100, f"train/{number}.png", f"test/{number}.png") for number in range(10)]
    figure = drawn(leakage_figure(pairs))
    shown = figure.axes[0].images
    assert len(shown) == 16
    assert captions(figure)[:2] == [
        "correlation 0.990\ntrain, left:\ntrain/0.png\ntest, right:\ntest/0.png",
        "correlation 0.980\ntrain, left:\ntrain/1.png\ntest, right:\ntest/1.png",
    ]
    assert "8 of 10 pairs" in figure.get_suptitle()
    assert [int(picture.get_array()[0, 0, 0]) for picture in shown] == [0, 99] * 8
    boxes = np.array([picture.get_extent() for picture in shown])  # left, right, bottom, top
    assert (boxes[0::2, 1] < boxes[1::2, 0]).all()
    assert (boxes[:, 1] - boxes[:, 0]) / (boxes[:, 2] - boxes[:, 3]) == pytest.approx(1.5)
    width, height = figure.get_size_inches()
    assert boxes.min() > 0
    assert (boxes.max(0) < [width, width, height, height]).all()
    assert height < 6


def test_a_long_path_keeps_its_file_name():
    image = np.zeros((8, 8, 3), np.uint8)
    figure = leakage_figure([(image, image, 1.0, "a/very/long/way/to/somewhere/below/" + "part_0001.png", "b.png")])
    shown = captions(figure)[0].split("\n")[2]
    assert shown.startswith("…")
    assert shown.endswith("/part_0001.png")
    assert len(shown) == 30


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_pairs_are_drawn(count):
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(drawn(leakage_figure([(image, image, 1.0, "a.png", "b.png")] * count)).axes[0].images) == 2 * count


def test_each_loss_has_its_panel_and_its_last_value():
    rows = [{"epoch": e, "seconds": 1.0, "loss": 10.0**-e, "off": 0.0, "val": 0.5} for e in range(1, 5)]
    del rows[3]["val"]
    rows[1]["loss"] = float("nan")
    figure = drawn(curves_figure(rows, "mt · dpae"))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.lines}
    assert list(panels) == ["loss: 0.0001 at the end", "val: 0.5 at the end"]
    loss, val = panels.values()
    assert loss.lines[0].get_xdata().tolist() == [1, 3, 4]
    assert val.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert (loss.get_yscale(), val.get_yscale()) == ("log", "linear")
    assert figure.get_suptitle() == "Training curves, mt · dpae"


@pytest.mark.parametrize(
    "rows", [[], [{"epoch": 1.0}], [{"epoch": 1.0, "loss": 0.3}], [{"epoch": 1.0, "loss": np.inf}]]
)
def test_short_curves_are_drawn(rows):
    drawn(curves_figure(rows))


def test_names_from_outside_are_neither_formulas_nor_missing_glyphs():
    names = ["$x^", "歪み", "_a\n", "d\udce9", "a" * 90]
    table = make_table(5, dict.fromkeys(names, 2))
    figure = drawn(score_figure(table, METRICS, title="$\\frac"))
    found = [axes.texts[0].get_text().split("\n")[0] for axes in figure.axes]
    assert r"\$x^" in found
    assert "??" in found
    assert "a" * 21 + "…" in found
    drawn(cases_figure(make_gallery(table.index), table, METRICS, title="歪み"))
    image = np.zeros((8, 8, 3), np.uint8)
    drawn(leakage_figure([(image, image, 1.0, "$a$$.png", "\udce9.png")]))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run drawn by a new process: its directory, and what the process loaded before and after, and wrote."""
    table = make_table()
    curves = [["epoch", "loss", "val"], [1, 0.5, ""], [2, 0.25, 0.7]]
    run_dir = tmp_path_factory.mktemp("runs") / "mt" / "dpae" / "a1b2c3d4-s3"
    write_run(run_dir, table, full_gallery(table), curves=curves)
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from anomaly_lab.reporting.figures import draw_all\n"
        "import anomaly_lab.reporting.tables\n"
        "before = list(sys.modules)\n"
        "wrote = [str(path) for path in draw_all(Path(sys.argv[1]))]\n"
        "print(json.dumps({'before': before, 'after': list(sys.modules), 'wrote': wrote}))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(run_dir)]
    return run_dir, json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_importing_loads_no_plotting_and_drawing_neither_pyplot_nor_torch(fresh):
    _, said = fresh
    assert {"matplotlib", "sklearn", "scipy", "torch", "PIL"}.isdisjoint(said["before"])
    assert {"matplotlib.pyplot", "torch", "lightning", "albumentations"}.isdisjoint(said["after"])
    assert "matplotlib.figure" in said["after"]


def test_a_run_gets_all_its_figures(fresh):
    run_dir, said = fresh
    names = ["roc.png", "scores.png", "cases.png", "curves.png"]
    assert said["wrote"] == [str(run_dir / "figures" / name) for name in names]
    for name in names:
        with Image.open(run_dir / "figures" / name) as image:
            assert min(image.size) > 300
            assert image.info["dpi"] == pytest.approx((120, 120), abs=0.1)
            assert np.asarray(image.convert("L")).std() > 5


@pytest.fixture
def score_calls(monkeypatch):
    """What draw_all gives to score_figure, which draws nothing meanwhile."""
    from matplotlib.figure import Figure

    calls = []
    monkeypatch.setattr(figures, "score_figure", lambda *given: calls.append(given) or Figure((1, 1)))
    return calls


def test_the_title_names_dataset_model_and_seed(tmp_path, score_calls):
    draw_all(write_run(tmp_path / "mvtec-carpet" / "dpae" / "a1b2c3d4-s3", make_table(3, {})))
    draw_all(write_run(tmp_path / "imported", make_table(3, {})))
    draw_all(tmp_path / "imported", title="mine")
    assert [title for *_, title in score_calls] == ["mvtec-carpet · dpae · seed 3", "imported", "mine"]


def test_metrics_come_from_the_file_unless_they_are_given(tmp_path, score_calls):
    run_dir = write_run(tmp_path / "run", make_table(3, {}))
    draw_all(run_dir)
    draw_all(run_dir, {"threshold": 2.0})
    assert [metrics for _, metrics, _ in score_calls] == [METRICS, {"threshold": 2.0}]


@pytest.mark.parametrize(
    ("normal", "defects", "metrics"),
    [
        (12, {}, {"threshold": 1.0, "image_auroc": None, "image_auroc_ci": None}),
        (1, {}, {}),
        (0, {"dent": 1}, {}),
    ],
)
def test_without_both_classes_there_is_no_roc(tmp_path, monkeypatch, normal, defects, metrics):
    monkeypatch.setattr(figures, "DPI", 20)  # small files are written faster
    table = make_table(normal, defects)
    paths = draw_all(write_run(tmp_path / "run", table, full_gallery(table), metrics))
    assert [path.name for path in paths] == ["scores.png", "cases.png"]


def test_an_empty_gallery_and_an_empty_test_set_are_left_out(tmp_path):
    assert draw_all(write_run(tmp_path / "run", make_table(0, {}), make_gallery([]), {}, [["epoch", "loss"]])) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions/gallery.npz", b"PK\x03\x04 cut off"),
        ("predictions/gallery.npz", b""),
        ("curves.csv", b"epoch,loss\n1,abc\n"),
        ("curves.csv", b"epoch,loss\n1,2,3\n"),
        ("scores.csv", b"index,path\n"),
        ("metrics.json", b"{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    run_dir = write_run(tmp_path / "run", make_table())
    (run_dir / name).write_bytes(content)
    with pytest.raises(RunError, match=name.split("/")[-1]):
        draw_all(run_dir)


def test_a_gallery_that_carries_code_is_refused(tmp_path):
    gallery = make_gallery([0]) | {"evil": np.array([{"a": 1}], object)}
    run_dir = write_run(tmp_path / "run", make_table(), gallery)
    with pytest.raises(RunError, match=r"gallery\.npz"):
        draw_all(run_dir)


def test_figures_leave_nothing_behind():
    table, image = make_table(2, {"dent": 2}), np.zeros((8, 8, 3), np.uint8)
    before = dict(matplotlib.rcParams)
    living = []
    for _ in range(2):
        for figure in (
            roc_figure(table, METRICS),
            score_figure(table, METRICS),
            cases_figure(full_gallery(table), table, METRICS),
            curves_figure([{"epoch": 1.0, "loss": 0.3}]),
            leakage_figure([(image, image, 1.0, "a.png", "b.png")]),
        ):
            living.append(weakref.ref(drawn(figure) if len(living) < 5 else figure))
    del figure
    gc.collect()
    assert len(living) == 10
    assert not any(reference() for reference in living)
    assert dict(matplotlib.rcParams) == before
