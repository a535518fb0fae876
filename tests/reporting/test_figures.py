import csv
import gc
import json
import subprocess
import sys
import weakref

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomaly_lab.errors import RunError
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting import figures
from anomaly_lab.reporting.figures import (
    cases_figure,
    curves_figure,
    draw_all,
    leakage_figure,
    roc_figure,
    score_figure,
)

METRICS = {"threshold": 1.0, "image_auroc_ci": [0.594, 0.688], "floor_knn_auroc": 0.65}
GROUPS = (
    "Defects ranked highest: clear hits",
    "Defects ranked lowest: likely misses",
    "Normals ranked highest: likely false alarms",
    "Normals ranked lowest: clearly normal",
)


def make_table(normal=30, defects=None, scores=None):
    defects = {"dent": 12, "scratch": 8} if defects is None else defects
    rng = np.random.default_rng(0)
    defect = ["good"] * normal + [name for name, count in defects.items() for _ in range(count)]
    label = np.array([int(name != "good") for name in defect], np.int64)
    drawn = rng.normal(size=len(defect)) + label if scores is None else np.asarray(scores, np.float64)
    return ScoreTable(
        index=np.arange(len(defect)),
        path=[f"{name}/{row}.png" for row, name in enumerate(defect)],
        label=label,
        defect=defect,
        group=[""] * len(defect),
        scores={"RLX": drawn, "RLZ": rng.normal(size=len(defect))},
        primary="RLX",
    )


def make_gallery(index, side=(16, 16), **parts):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (len(index), *side, 3), np.uint8)
    return {"index": np.asarray(index), "image": pictures, **parts}


def full_gallery(table):
    gallery = make_gallery(table.index)
    mask = np.zeros(gallery["image"].shape[:3], np.uint8)
    mask[table.label == 1, 4:9, 5:12] = 1
    return gallery | {"reconstruction": gallery["image"] // 2, "mask": mask}


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 20)  # small files are written faster


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


def drawn(figure):
    """Laid out and rendered: what warns or fails only when it is drawn does so here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def pictures(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_roc_legend_has_the_aurocs_of_scikit_learn():
    table = make_table()
    legend = legend_of(roc_figure(table, METRICS, "mt · dpae · seed 0"))
    auroc, other = (roc_auc_score(table.label, table.scores[name]) for name in ("RLX", "RLZ"))
    assert f"RLX {auroc:.3f} [0.59, 0.69]" in legend
    assert f"RLZ {other:.3f}" in legend
    assert "floor, nearest thumbnail 0.650" in legend
    assert any("chance" in text for text in legend)


def test_the_operating_point_is_where_scores_are_above_the_threshold():
    table = make_table(2, {"dent": 4}, scores=[0.0, 1.1, 1.0, 1.1, 2.0, 3.0])  # 1.0 is not above 1.0
    figure = roc_figure(table, METRICS)
    point = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "o")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.5, 0.75)
    assert any("finds 75%\nof defective, flags 50% of normal" in text for text in legend_of(figure))


def test_the_primary_roc_is_the_boldest():
    figure = roc_figure(make_table(), METRICS)
    lines = {line.get_label().split()[0]: line.get_linewidth() for line in figure.axes[0].get_lines()}
    assert lines["RLX"] == max(lines.values()) > lines["RLZ"]


def test_a_roc_without_threshold_interval_and_floor_has_only_curves():
    figure = roc_figure(make_table(), {"threshold": None, "image_auroc_ci": None})
    assert len(legend_of(figure)) == 3
    assert "[" not in "".join(legend_of(figure))


def heights_of(axes):
    """The bars of each histogram, grey first."""
    return [np.diff(patch.get_path().vertices[:, 0]) for patch in axes.patches]


def test_each_class_has_a_row_with_its_count_and_its_share_above_the_threshold():
    table = make_table()
    figure = score_figure(table, METRICS, "mt · dpae")
    rows = [axes.texts[0].get_text().split("\n") for axes in figure.axes]
    expected = []
    for name, members in (("all normal", "good"), ("dent", "dent"), ("scratch", "scratch")):
        scores = table.primary_scores[np.array(table.defect) == members]
        expected.append([name, f"{len(scores)} images", f"{np.mean(scores > 1):.0%} flagged"])
    assert rows == expected
    assert all(len(axes.patches) == 1 + (row > 0) for row, axes in enumerate(figure.axes))
    assert "Scores by class, mt · dpae" in texts(figure)
    assert all(axes.lines[0].get_xdata()[0] == 1.0 for axes in figure.axes)


def test_histogram_bars_sum_to_the_whole_class(monkeypatch):
    from matplotlib.axes import Axes

    calls = []
    real = Axes.hist

    def spy(self, values, edges, **look):
        counts, *_ = found = real(self, values, edges, **look)
        calls.append((len(values), counts.sum()))
        return found

    monkeypatch.setattr(Axes, "hist", spy)
    score_figure(make_table(scores=[*np.linspace(0, 1, 49), 1e6]), METRICS)
    assert [count for count, _ in calls] == [30, 30, 12, 30, 8]
    assert [total for _, total in calls] == pytest.approx([1] * 5)


def test_at_most_eight_defect_types_have_a_row_and_the_rest_one_together():
    table = make_table(5, {f"type{number:02}": number for number in range(1, 12)})
    figure = score_figure(table, {})
    names = [axes.texts[0].get_text().split("\n") for axes in figure.axes]
    assert [name for name, _ in names] == ["all normal", *(f"type{n:02}" for n in range(4, 12)), "other (3 types)"]
    assert names[-1][1] == "6 images"


def test_one_far_score_does_not_squeeze_the_others():
    figure = score_figure(make_table(scores=[*np.linspace(0, 1, 49), 1e6]), METRICS)
    low, high = figure.axes[-1].get_xlim()
    assert -0.1 < low < high < 1.1
    assert any("1 image beyond the axis, up to 1e+06, in the end bins" in text for text in texts(figure))


def test_scores_over_many_decades_are_drawn_on_a_log_axis():
    figure = drawn(score_figure(make_table(30, {"dent": 20}, np.geomspace(1e-4, 1e4, 50)), METRICS))
    assert figure.axes[-1].get_xscale() == "log"
    assert figure.axes[-1].get_xlim()[0] < 1e-4
    assert figure.axes[-1].get_xlim()[1] > 1e4
    assert "log axis" in figure.axes[-1].get_xlabel()


def test_a_threshold_far_from_all_scores_is_named_and_not_shown():
    figure = score_figure(make_table(), {"threshold": 1e9})
    assert figure.axes[-1].get_xlim()[1] < 10
    assert any("threshold 1e+09, beyond the axis" in text for text in texts(figure))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e9, 1e-12])
def test_constant_scores_are_drawn(value):
    table = make_table(3, {"dent": 2}, scores=np.full(5, value))
    figure = drawn(score_figure(table, {"threshold": value}))
    low, high = figure.axes[0].get_xlim()
    assert low < value < high


def test_rankings_of_constant_scores_are_drawn():
    table = make_table(3, {"dent": 2}, scores=np.zeros(5))
    assert "RLX 0.500" in legend_of(drawn(roc_figure(table, {"threshold": 0.0})))
    drawn(cases_figure(full_gallery(table), table, {"threshold": 0.0}))


def test_defective_images_alone_are_drawn():
    table = make_table(0, {"dent": 3})
    figure = drawn(score_figure(table, METRICS))
    assert [axes.texts[0].get_text().split("\n")[0] for axes in figure.axes] == ["dent"]
    assert not any("grey" in text for text in texts(figure))


def test_cases_are_the_ends_of_the_ranking():
    table = make_table()
    figure = cases_figure(full_gallery(table), table, METRICS, "mt · dpae · seed 0")
    found = texts(figure)
    assert [text for text in found if text in GROUPS] == list(GROUPS)
    assert len(pictures(figure)) == 4 * 4 * 3
    order = np.argsort(table.primary_scores)
    ranked = {label: [row for row in order if table.label[row] == label] for label in (0, 1)}
    wanted = [*ranked[1][:-5:-1], *ranked[1][:4], *ranked[0][:-5:-1], *ranked[0][:4]]
    captions = [text for text in found if "above" in text and "\n" in text]
    scores = table.primary_scores
    assert captions == [
        f"{table.defect[row]}\n{scores[row]:.4g} · above {np.sum(scores < scores[row]) / 50:.1%}" for row in wanted
    ]


def test_the_difference_is_the_mean_over_channels_on_one_scale():
    table = make_table(2, {"dent": 2}, scores=[0, 1, 2, 3])
    gallery = full_gallery(table)
    figure = cases_figure(gallery, table, METRICS)
    shown = pictures(figure)
    maps = shown[2::3]
    assert len(maps) == 4
    assert len({image.get_clim() for image in maps}) == 1
    assert maps[0].get_clim()[0] == 0
    expected = np.mean(
        [abs(gallery["image"][3, 5, 7, c] / 255 - gallery["reconstruction"][3, 5, 7, c] / 255) for c in range(3)]
    )
    assert maps[0].get_array()[5, 7] == pytest.approx(expected)
    assert "mean absolute difference" in texts(figure)


def contours(figure):
    from matplotlib.contour import ContourSet

    return figure.findobj(ContourSet)


def test_only_known_defective_pixels_are_outlined():
    table = make_table(2, {"dent": 2}, scores=[0, 1, 2, 3])
    gallery = full_gallery(table)
    figure = cases_figure(gallery, table, METRICS)
    assert len(contours(figure)) == 2 * 2  # two defective images, a dark line below a light one
    gallery["mask"][2:] = 255
    figure = cases_figure(gallery, table, METRICS)
    assert contours(figure) == []
    assert not any("true defect" in text for text in texts(figure))


def test_a_mask_over_the_whole_image_does_not_change_the_view():
    table = make_table(1, {"dent": 1}, scores=[0, 1])
    gallery = full_gallery(table)
    gallery["mask"][1] = 1
    axes = drawn(cases_figure(gallery, table, METRICS)).axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 15.5), (15.5, -0.5))


def test_flagged_inputs_have_a_frame():
    table = make_table(2, {"dent": 2}, scores=[0, 1.0, 1.5, 3])
    figure = cases_figure(full_gallery(table), table, METRICS)
    inputs = [axes for axes in figure.axes if axes.images][::3]
    assert [axes.spines["top"].get_visible() for axes in inputs] == [True, True, False, False]


@pytest.mark.parametrize(
    ("drop", "extra", "rows"),
    [
        ((), (), 3),
        (("reconstruction",), (), 1),
        (("reconstruction", "mask"), ("anomaly_map",), 2),
        (("mask",), ("anomaly_map",), 3),
    ],
)
def test_cases_show_what_the_gallery_has(drop, extra, rows):
    table = make_table(2, {"dent": 2})
    gallery = {name: array for name, array in full_gallery(table).items() if name not in drop}
    if extra:
        gallery["anomaly_map"] = np.linspace(-3, 5, 4 * 256, dtype=np.float32).reshape(4, 16, 16)
    figure = drawn(cases_figure(gallery, table, METRICS))
    assert len(pictures(figure)) == 4 * rows
    assert ("anomaly map" in texts(figure)) == (rows == 2)


@pytest.mark.parametrize(("label", "heading"), [(0, GROUPS[2]), (1, GROUPS[0])])
def test_one_image_is_shown_once(label, heading):
    table = make_table(1 - label, {"dent": label})
    figure = drawn(cases_figure(full_gallery(table), table, {}))
    assert len(pictures(figure)) == 3
    assert [text for text in texts(figure) if text in GROUPS] == [heading]


def test_no_image_is_shown_twice():
    table = make_table(0, {"dent": 5}, scores=[5, 4, 3, 2, 1])
    captions = [
        text for text in texts(cases_figure(full_gallery(table), table, {})) if "above" in text and "\n" in text
    ]
    assert [text.split("\n")[1].split()[0] for text in captions] == ["5", "4", "3", "1", "2"]


def test_a_flat_map_is_drawn():
    table = make_table(2, {"dent": 2})
    gallery = make_gallery(table.index)
    drawn(cases_figure(gallery | {"reconstruction": gallery["image"]}, table, {}))
    drawn(cases_figure(gallery | {"anomaly_map": np.ones((4, 16, 16), np.float32)}, table, {}))


def test_a_gallery_of_other_images_is_refused():
    with pytest.raises(RunError, match=r"image 77 is not in scores\.csv"):
        cases_figure(make_gallery([0, 77]), make_table(), {})


def test_leaked_pairs_are_captioned_and_at_most_eight():
    image = np.zeros((20, 30, 3), np.uint8)
    pairs = [(image, image, 0.99 - number / 100, f"train/{number}.png", f"test/{number}.png") for number in range(10)]
    figure = drawn(leakage_figure(pairs))
    assert len(figure.axes) == 16
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == [
        "train\ntrain/0.png",
        "test, correlation 0.990\ntest/0.png",
        "train\ntrain/1.png",
        "test, correlation 0.980\ntest/1.png",
    ]
    assert "8 of 10 pairs" in figure.get_suptitle()


def test_a_long_path_keeps_its_file_name():
    image = np.zeros((8, 8, 3), np.uint8)
    figure = leakage_figure([(image, image, 1.0, "a/very/long/way/to/somewhere/below/" + "part_0001.png", "b.png")])
    shown = figure.axes[0].get_title(loc="left").split("\n")[1]
    assert shown.startswith("…")
    assert shown.endswith("/part_0001.png")
    assert len(shown) == 28


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_pairs_are_drawn(count):
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(drawn(leakage_figure([(image, image, 1.0, "a.png", "b.png")] * count)).axes) == 2 * count


def test_each_loss_has_its_panel_and_its_last_value():
    rows = [{"epoch": e, "seconds": 1.0, "loss": 10.0**-e, "val": 0.5} for e in range(1, 5)]
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


def test_a_run_gets_all_its_figures(tmp_path):
    table = make_table()
    curves = [["epoch", "loss", "val"], [1, 0.5, ""], [2, 0.25, 0.7]]
    run_dir = write_run(tmp_path / "mt" / "dpae" / "a1b2c3d4-s3", table, full_gallery(table), curves=curves)
    paths = draw_all(run_dir)
    assert [path.name for path in paths] == ["roc.png", "scores.png", "cases.png", "curves.png"]
    for path in paths:
        assert path.parent == run_dir / "figures"
        with Image.open(path) as image:
            assert min(image.size) > 300
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert np.asarray(image.convert("L")).std() > 5


def spy_on(monkeypatch, name):
    calls = []
    real = getattr(figures, name)
    monkeypatch.setattr(figures, name, lambda *given: calls.append(given) or real(*given))
    return calls


def test_the_title_names_dataset_model_and_seed(tmp_path, monkeypatch, coarse):
    calls = spy_on(monkeypatch, "score_figure")
    draw_all(write_run(tmp_path / "mvtec-carpet" / "dpae" / "a1b2c3d4-s3", make_table(3, {})))
    draw_all(write_run(tmp_path / "imported", make_table(3, {})))
    draw_all(tmp_path / "imported", title="mine")
    assert [title for *_, title in calls] == ["mvtec-carpet · dpae · seed 3", "imported", "mine"]


def test_metrics_come_from_the_file_unless_they_are_given(tmp_path, monkeypatch, coarse):
    calls = spy_on(monkeypatch, "score_figure")
    run_dir = write_run(tmp_path / "run", make_table(3, {}))
    draw_all(run_dir)
    draw_all(run_dir, {"threshold": 2.0})
    assert [metrics for _, metrics, _ in calls] == [METRICS, {"threshold": 2.0}]


def test_without_defective_images_there_is_no_roc(tmp_path, coarse):
    table = make_table(12, {})
    metrics = {"threshold": 1.0, "image_auroc": None, "image_auroc_ci": None}
    paths = draw_all(write_run(tmp_path / "run", table, full_gallery(table), metrics))
    assert [path.name for path in paths] == ["scores.png", "cases.png"]


@pytest.mark.parametrize(("normal", "defects"), [(1, {}), (0, {"dent": 1})])
def test_a_test_set_of_one_image_is_drawn(tmp_path, normal, defects, coarse):
    table = make_table(normal, defects)
    paths = draw_all(write_run(tmp_path / "run", table, full_gallery(table), {}))
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


def test_fifty_figures_leave_nothing_behind():
    table = make_table(6, {"dent": 4})
    before = dict(matplotlib.rcParams)
    living = []
    for number in range(50):
        figure = roc_figure(table, METRICS, str(number)) if number % 10 else drawn(score_figure(table, METRICS))
        living.append(weakref.ref(figure))
    del figure
    gc.collect()
    assert not any(reference() for reference in living)
    assert dict(matplotlib.rcParams) == before


def test_drawing_needs_neither_pyplot_nor_torch_and_importing_neither_matplotlib(tmp_path):
    table = make_table(2, {"dent": 2})
    run_dir = write_run(tmp_path / "run", table, full_gallery(table))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from anomaly_lab.reporting.figures import draw_all\n"
        "import anomaly_lab.reporting.tables\n"
        "heavy = {'matplotlib', 'sklearn', 'scipy', 'torch', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "draw_all(Path(sys.argv[1]))\n"
        "unwanted = {'matplotlib.pyplot', 'torch', 'lightning', 'albumentations'} & sys.modules.keys()\n"
        "assert not unwanted, unwanted\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(run_dir)], check=True)
