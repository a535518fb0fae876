"""`anomaly-lab report`: the page, and what a browser does with it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_files import rows_of
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_lab.cli import main
from anomaly_lab.metrics.scores import ScoreTable

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def folder(trained_once, tmp_path_factory):
    """Runs of two latent sizes and two seeds of which one failed, a table of `reproduce`, and a hostile file name."""
    root = tmp_path_factory.mktemp("report")
    (run,) = trained_once.glob("*/*/*-s0")
    for size, seed, auroc in ((4, 0, 0.8), (4, 1, 0.9), (8, 0, 0.7), (8, 1, None)):
        path = root / "runs" / "folder" / "dpae" / f"{size:08}-s{seed}"
        shutil.copytree(run, path)
        config = (path / "config.yaml").read_text()
        config = config.replace("latent_dim: 4", f"latent_dim: {size}").replace("seed: 0", f"seed: {seed}")
        (path / "config.yaml").write_text(config)
        content = json.loads((path / "metrics.json").read_text()) | {"seed": seed}
        content["metrics"]["image_auroc"] = auroc
        if auroc is None:
            content |= {"status": "failed", "metrics": {}, "cause": "<b>no</b>"}
        (path / "metrics.json").write_text(json.dumps(content))
    shown = root / "runs/folder/dpae/00000004-s0"
    table = ScoreTable.from_csv(shown / "scores.csv")
    table.path[0] = HOSTILE
    table.to_csv(shown / "scores.csv")
    tables = root / "runs/tables/dpae/table4-mt"
    tables.mkdir(parents=True)
    (tables / "table.md").write_text("# All methods\n\nDPAE, Table 4\n\n- Mean over 3 seeds.\n")
    (tables / "table.csv").write_text(
        "dataset,method,metric,seeds,mean,deviation,low,high,values,source,printed,verdict\n"
        "MT,DPAE,AUC,3,0.6,0.01,0.58,0.62,,Table 4,0.91,different\n"
    )
    output = root / "out/report.html"
    assert main(["report", f"runs_dir={root / 'runs'}", f"output={output}", f"run={shown}", "images=folder"]) == 0
    return root


def page_of(folder):
    return (folder / "out/report.html").read_text()


def test_the_page_stands_alone(folder):
    text = page_of(folder)
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # of a library, addresses are in its comments
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", own)
    assert str(folder) not in own, "a report is handed on"
    assert "00000008-s1: failed, &lt;b&gt;no&lt;/b&gt;" in own
    assert "DPAE, Table 4" in own


def test_seeds_are_one_row_and_sizes_are_two(folder):
    rows = re.findall(r"<tr data-dataset.*?</tr>", page_of(folder), re.DOTALL)
    assert len(rows) == 2
    assert "latent_dim=4" in rows[0]
    assert re.search(r"0\.850 <small>± 0\.071", rows[0])
    assert "0.700" in rows[1]


def test_runs_on_other_folders_are_other_rows(folder, tmp_path):
    """Two folders of one's own images are no seeds of one another."""
    shutil.copytree(folder / "runs/folder/dpae", tmp_path / "runs/folder/dpae")
    config = tmp_path / "runs/folder/dpae/00000004-s1/config.yaml"
    text = config.read_text()
    root = re.search(r"^  root: (.*)$", text, re.M)[1]
    config.write_text(text.replace(f"root: {root}", "root: /elsewhere/screws"))
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}"]) == 0
    rows = re.findall(r'<tr data-dataset="(.*?)"', (tmp_path / "r.html").read_text())
    assert sorted(set(rows)) == [f"folder {Path(root).name}", "folder screws"]
    assert len(rows) == 3


def test_folders_of_one_name_are_told_apart():
    from anomaly_lab.reporting.page.groups import _places

    assert _places({"/a/screws", "/b/screws", "/c/line.2023"}) == {
        "/a/screws": "a/screws", "/b/screws": "b/screws", "/c/line.2023": "line.2023",
    }  # fmt: skip


def test_the_threshold_chosen_for_use_is_told(folder, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs/folder/dpae/00000004-s1"
    report = ["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}", f"run={run}"]
    assert main(["threshold", str(run), "false_alarms=0.25"]) == 0
    assert main(report) == 0
    chosen = json.loads((run / "threshold.json").read_text())

    def told():
        text = (tmp_path / "r.html").read_text()
        assert f'"threshold":{chosen["threshold"]}' in text
        (table,) = re.findall(r'<table id="chosen">.*?</table>', text, re.DOTALL)
        return dict(re.findall(r'<tr><th>([\w ]+)</th><td class="number">(.*?)</td>', table)), text

    rows, text = told()
    assert rows == {"threshold": f"{chosen['threshold']:.4g}", "false alarms": f"{chosen['false_alarms']:.1%}"}
    f1 = re.findall(r'data-value="([\d.]*)"', re.findall(r"<tr data-dataset.*?</tr>", text, re.DOTALL)[0])[3]
    other = json.loads((run.with_name("00000004-s0") / "metrics.json").read_text())["metrics"]["image_f1"]
    assert float(f1) == pytest.approx((chosen["test"]["f1"] + other) / 2), "of the threshold in use"
    costs = ["miss_cost=10", "false_alarm_cost=1", "defect_rate=0.1"]
    assert main(["threshold", str(run), *costs]) == 0
    assert main(report) == 0
    chosen = json.loads((run / "threshold.json").read_text())
    rows, text = told()
    assert rows.keys() == {"threshold", "false alarms", "misses", "cost of an image"}
    assert "misses are of painted defects" in text
    (run / "threshold.json").write_text('{"threshold": 0.25}')  # by hand
    assert main(report) == 0
    assert main(["threshold", str(run)]) == 0


def test_pictures_lie_beside_the_page(folder):
    found = {path.name for path in (folder / "out/report_images").iterdir()}
    index = np.load(folder / "runs/folder/dpae/00000004-s0/predictions/gallery.npz")["index"][0]
    assert {f"{index}-{kind}.webp" for kind in ("image", "reconstruction", "difference", "map", "truth")} <= found


def test_what_is_asked_is_checked(folder, tmp_path, capsys):
    runs = f"runs_dir={folder / 'runs'}"
    for options, told in (
        (["runs_dir=nowhere"], "is no folder"),
        ([runs, "output=x.pdf"], "ends with .html"),
        ([runs, "images=some"], "images='some' is unknown"),
        ([runs, "runs=3"], "Did you mean 'run'"),
        ([runs, "model=vae"], "no finished run to report on with model=vae"),
        ([f"runs_dir={folder / 'runs/folder'}"], "runs lie at DIR/dataset/method/run"),
        ([runs, f"run={folder / 'runs/folder/dpae/00000008-s1'}"], "is failed, not finished"),
    ):
        assert main(["report", *options]) == 2
        assert told in capsys.readouterr().err


def test_a_damaged_run_is_named_and_the_rest_is_shown(folder, tmp_path, caplog):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (tmp_path / "runs/folder/dpae/00000008-s0/scores.csv").write_text("nonsense")
    (tmp_path / "runs/tables/dpae/table4-mt/table.csv").write_text("a,b\n1,2\n")
    run = tmp_path / "runs/folder/dpae/00000004-s1"
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}", f"run={run}"]) == 0
    assert "scores.csv, line 1" in caplog.text
    assert "table.csv cannot be shown" in caplog.text
    assert "leaderboard" in (tmp_path / "r.html").read_text()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def view(browser, folder):
    """Opens the page without any network, and at the end sees that nothing went wrong in it."""
    opened, wrong = [], []

    def open_page(width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.goto((folder / "out/report.html").as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert wrong == []


def test_the_curves_are_what_auroc_and_average_precision_measure(folder, tmp_path, browser):
    """Of scores with ties too: the area under the lines that are drawn."""
    shutil.copytree(folder / "runs/folder/dpae/00000004-s0", tmp_path / "runs/folder/dpae/00000004-s0")
    path = tmp_path / "runs/folder/dpae/00000004-s0/scores.csv"
    table = ScoreTable.from_csv(path)
    rng = np.random.default_rng(0)
    table.scores[table.primary][:] = rng.integers(0, 3, len(table)) + table.label
    table.to_csv(path)
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}"]) == 0
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    show(page, "curves")
    drawn = {}
    for chart in ("roc", "pr"):
        page.wait_for_selector(f"#{chart} .scatterlayer")
        drawn[chart] = page.evaluate(
            f"(({{x, y, line}}) => [x, y, line.shape])(document.getElementById('{chart}').data[0])"
        )
    page.close()
    x, y, shape = drawn["roc"]
    assert shape == "linear"
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(table.label, table.primary_scores), abs=1e-3)
    x, y, shape = drawn["pr"]
    assert shape == "vh", "up at the left end, then along"
    area = float(np.sum(np.diff(x) * np.array(y[1:])))
    assert area == pytest.approx(average_precision_score(table.label, table.primary_scores), abs=1e-3)


def show(page, part):
    page.evaluate("id => document.getElementById(id).scrollIntoView()", part)


def test_a_click_on_a_heading_sorts(view):
    page = view()
    cells = page.locator("#leaderboard tbody tr td:nth-child(4)")
    heading = page.get_by_role("button", name="AUROC", exact=True)
    heading.click()
    assert [text[:5] for text in cells.all_inner_texts()] == ["0.850", "0.700"]
    assert page.locator("th[aria-sort=descending]").count() == 1
    heading.click()
    assert [text[:5] for text in cells.all_inner_texts()] == ["0.700", "0.850"]


def test_the_threshold_is_dragged_and_the_counts_follow(view, folder):
    page = view()
    show(page, "scores")
    page.wait_for_selector("#histogram .bars")
    rows = rows_of(folder / "runs/folder/dpae/00000004-s0/scores.csv")

    def check():
        threshold = page.evaluate("document.getElementById('histogram').layout.shapes[0].x0")
        assert page.inner_text("#threshold-value").startswith(f"{threshold:.2g}"[:3])
        expected = {
            name: sum(row["label"] == label and (float(row["score"]) > threshold) == above for row in rows)
            for name, label, above in (("tp", "1", True), ("fn", "1", False), ("fp", "0", True), ("tn", "0", False))
        }
        assert {name: int(page.inner_text(f"#{name}")) for name in expected} == expected
        return threshold

    own = check()
    box = page.locator("#histogram .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 50, steps=5)
    page.mouse.up()
    dragged = check()
    assert dragged > own
    page.mouse.move(box["x"] + 10, box["y"] + 50)
    assert check() == dragged, "without the button down nothing moves"
    page.focus("#threshold")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert check() < dragged
    page.click("#own")
    assert check() == pytest.approx(own)


def test_the_gallery_is_filtered_sorted_and_enlarged(view):
    page = view()
    show(page, "gallery")
    page.wait_for_selector(".card")
    every = page.locator(".card").count()
    page.select_option("#class", "spot")
    assert 0 < page.locator(".card").count() < every
    assert all("· spot ·" in text for text in page.locator(".card span").all_text_contents())
    page.select_option("#class", "")
    page.select_option("#order", "low")
    scores = [float(text) for text in page.locator(".card b").all_text_contents()]
    assert scores == sorted(scores)
    page.select_option("#verdict", "wrong")
    told = page.locator(".card span").all_text_contents()
    assert all("missed" in text or "false alarm" in text for text in told)
    page.select_option("#verdict", "")
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#large[open] img")
    page.wait_for_function("[...document.querySelectorAll('#large img')].every(image => image.naturalWidth === 32)")
    page.keyboard.press("Escape")
    assert page.locator("#large[open]").count() == 0


def test_names_of_files_are_text(view):
    page = view()
    show(page, "gallery")
    page.wait_for_selector(".card")
    assert page.evaluate("shown.path[0]") == HOSTILE
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_and_has_both_themes(view, width, scheme):
    page = view(width, 844, scheme)
    for part in ("curves", "sizes", "paper", "scores", "gallery", "leakage", "runs"):
        show(page, part)
        page.wait_for_timeout(150)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in ("roc", "pr", "size-chart", "histogram"):
        assert page.locator(f"#{chart} .main-svg").count() > 0
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_everything_is_reached_by_the_keyboard(view):
    page = view()
    page.evaluate("document.body.focus()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)")
        )
    assert {"Leaderboard", "theme", "AUROC", "curves-dataset", "threshold", "own", "class", "order"} <= reached


@pytest.mark.slow
def test_two_thousand_images_stay_below_25_mib(folder, tmp_path):
    shutil.copytree(folder / "runs/folder/dpae/00000004-s1", run := tmp_path / "runs/folder/dpae/00000004-s1")
    rng = np.random.default_rng(0)
    count = 2000
    index = np.arange(count)
    names, label = [f"{number:04}.png" for number in index], index % 2
    kinds = ["spot" if one else "good" for one in label]
    ScoreTable(index, names, label, kinds, [""] * count, {"RLX": rng.normal(size=count)}, "RLX").to_csv(
        run / "scores.csv"
    )
    stripes = (np.arange(128) * 2)[None, :, None, None]
    images = (stripes + rng.integers(-20, 20, (count, 128, 128, 1))).clip(0, 255).astype(np.uint8).repeat(3, -1)
    maps, masks = rng.random((count, 128, 128), np.float32), np.zeros((count, 128, 128), np.uint8)
    gallery = {"index": index, "image": images, "reconstruction": images[::-1], "anomaly_map": maps, "mask": masks}
    np.savez(run / "predictions/gallery.npz", **gallery)
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'big.html'}"]) == 0
    assert Path(tmp_path / "big.html").stat().st_size < 25 * 2**20


def test_on_a_phone_an_enlarged_picture_is_larger(folder, tmp_path, browser):
    runs = folder / "runs"
    assert main(["report", f"runs_dir={runs}", f"output={tmp_path / 'thumbs.html'}"]) == 0
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((tmp_path / "thumbs.html").as_uri())
    show(page, "gallery")
    page.wait_for_selector(".card")
    small = page.locator(".card img").first.bounding_box()
    page.locator(".card").first.click()
    pictures = page.locator("#large-body [role=img]")
    assert pictures.count() == 5
    assert page.locator("#large-body figcaption").all_inner_texts()[:2] == ["image", "reconstruction"]
    assert pictures.first.bounding_box()["width"] > 3 * small["width"] / 5
    assert page.evaluate("document.querySelector('#large').scrollWidth <= document.querySelector('#large').clientWidth")
    page.close()
