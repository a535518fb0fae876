"""`anomaly-lab reproduce`, on the generated dataset at a tiny size: every definition, gaps, and kills."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image
from run_files import rows_of

from anomaly_lab.cli import main
from anomaly_lab.errors import ConfigError
from anomaly_lab.experiment import load, names
from anomaly_lab.needed import plan
from anomaly_lab.reproduce import parse
from anomaly_lab.runs import Run

TINY = ["dataset=synthetic", "seeds=1", "settings=tiny"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder of runs for all experiments, so that each run is made once."""
    return tmp_path_factory.mktemp("runs")


LIKE_OTHERS = ("normal_only/defects", "normal_only/kinds", "normal_only/labels")  # of two more: other options of UNet


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_OTHERS else name for name in names()]
)
def test_every_definition_runs_and_every_cell_is_filled(name, runs, capsys):
    assert main(["reproduce", name, *TINY, f"runs_dir={runs}"]) == 0
    folder = runs / "tables" / f"{name}-synthetic-tiny"
    experiment = load(name)
    rows = [row for row in rows_of(folder / "table.csv") if not row["method"].startswith("floor: ")]
    assert {row["dataset"] for row in rows} == {"synthetic"}
    assert {row["method"] for row in rows} == set(experiment.methods)
    scores_of_dpae = ("AUC of RLZ",)  # other methods have no such score

    def of_tiles(row):  # the generated dataset has no such defects
        return experiment.metrics[row["metric"]].startswith("per_defect.")

    for row in rows:
        filled = row["mean"] != ""
        assert filled or (row["metric"] in scores_of_dpae and row["method"].startswith("AE(")) or of_tiles(row), row
    assert (folder / "table.md").read_text().startswith(f"# {experiment.title}")
    assert (folder / "table.tex").exists()
    for ending in ("png", "svg", "pdf"):
        assert (folder / f"figure.{ending}").exists() == (experiment.figure is not None)
    shown = capsys.readouterr().out
    assert experiment.title in " ".join(shown.split())
    if any(metric == "image_auroc" for metric in experiment.metrics.values()) and len(experiment.methods) > 1:
        assert "floor: nearest thumbnail" in " ".join(shown.split())


def test_a_second_time_nothing_is_run(runs, capsys):
    name = "dpae/table6"
    assert main(["reproduce", name, *TINY, f"runs_dir={runs}"]) == 0
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/*/metrics.json")}
    table = (runs / "tables" / f"{name}-synthetic-tiny" / "table.csv").read_bytes()
    assert main(["reproduce", name, *TINY, f"runs_dir={runs}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (runs / "tables" / f"{name}-synthetic-tiny" / "table.csv").read_bytes() == table
    capsys.readouterr()
    assert main(["reproduce", name, *TINY, f"runs_dir={runs}", "--dry-run"]) == 0
    assert "Nothing is missing." in capsys.readouterr().out


def test_a_dataset_that_is_not_there_is_a_gap_and_a_dry_run_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ANOMALY_LAB_DATA", raising=False)
    asked = ["reproduce", "dpae/table3", "seeds=1", f"runs_dir={tmp_path}"]
    assert main([*asked, "--dry-run"]) == 0
    assert "cannot" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(asked) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.92 not run" in shown
    assert "Not run: APSD / AE(L2), APSD / AE(SSIM), APSD / VAE and 3 more: apsd: no folder given" in shown


def test_a_table_of_labels_has_a_gap_where_there_are_none(pictures, tmp_path, capsys):
    """And no number of a method that learnt from synthesised ones."""
    normal = tmp_path / "normal"
    shutil.copytree(pictures / "good", normal)
    asked = ["reproduce", "ae_unet/table2", "dataset=folder", f"dataset.root={normal}", "seeds=1", "--dry-run"]
    assert main([*asked, "model=unet", f"runs_dir={tmp_path}"]) == 0
    assert "UNet 1 0 cannot" in " ".join(capsys.readouterr().out.split())


def test_a_job_that_fails_is_named_and_the_others_are_shown(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    content = {
        "title": "t", "source": "s", "rows": ["methods"], "columns": ["datasets"], "seeds": 1,
        "datasets": {"generated": ["dataset=synthetic"]},
        "methods": {"good": ["model=pca"], "bad": ["model=pca", "model.latent_dim=-3"]},
        "metrics": {"AUC": "image_auroc"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    assert main(["reproduce", str(path), "settings=tiny", f"runs_dir={tmp_path / 'runs'}"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Not run: generated / bad" in shown
    assert "model.latent_dim" in shown
    rows = {row["method"]: row["mean"] for row in rows_of(tmp_path / "runs/tables" / f"{path.stem}-tiny" / "table.csv")}
    assert rows["good"] != ""
    assert rows["bad"] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one experiment of"),
        (["dpae/table4", "dpae/fig6"], "one experiment of"),
        (["dpae/table4", "seeds=0"], "seeds=0 has to be"),
        (["dpae/table4", "seed=1"], "seeds=3 says how many"),
        (["dpae/table4", "--dryrun"], "'--dry-run'"),
        (["dpae/table4", "model=unet"], "has no model=unet: model=ae_l2"),
        (["dpae/table4", "model=vae,unet"], "has no model=unet: model=ae_l2"),
        (["dpae/table4", "settings=tinny"], "'tiny'"),
        (["dpae/table4", "trainer.max_epoch=1"], "trainer.max_epochs"),
    ],
)
def test_a_mistake_is_named(arguments, told):
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert told in str(caught.value)


def test_one_dataset_and_one_method_can_be_chosen():
    asked = parse(["dpae/table4", "dataset=mt", "model=vae", "seeds=2", "settings=small", "dataset.split=by_tile"])
    assert asked.experiment.datasets == {"MT": ("dataset=mt", "dataset.split=random")}
    assert list(asked.experiment.methods) == ["VAE"]
    assert asked.overrides == ("dataset.split=by_tile",)
    jobs = list(plan(asked.experiment, asked.settings, asked.overrides))
    assert [one.seed for one in jobs] == [0, 1]
    assert "dataset.split=by_tile" in jobs[1].overrides
    assert "dataset.split=random" not in jobs[1].overrides  # what is asked for stands in for the table's own
    assert {"seed=1", "dataset.split_seed=1", "model.input_norm=per_image"} <= set(jobs[1].overrides)
    asked = parse(["ae_unet/table2", "dataset=mvtec", "dataset.category=pill"])
    assert list(asked.experiment.datasets) == ["Pill"]
    assert parse(["ae_unet/table2", "dataset=crackforest"]).experiment.datasets == {
        "crackforest": ("dataset=crackforest",)
    }


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_table_and_runs_nothing_twice(tmp_path):
    """SIGKILL at random moments; a run that was finished keeps its files as they were."""
    rng = random.Random(0)
    command = [sys.executable, "-m", "anomaly_lab", "reproduce", "dpae/fig6", *TINY, "trainer.max_epochs=3"]

    def start(where):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*command, f"runs_dir={where}"], **options)

    def finished(where):
        paths = where.glob("*/*/*/metrics.json")
        return {path: path.stat().st_mtime_ns for path in paths if Run(path.parent).status() == "finished"}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    assert start(whole).wait() == 0
    took = time.monotonic() - started
    known = {}
    for _ in range(3):
        process = start(killed)
        time.sleep(rng.uniform(0.3, 0.7) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = finished(killed)
        assert known.items() <= now.items()
        known = now
    assert known, "no kill came after a run was finished"
    assert start(killed).wait() == 0
    assert known.items() <= finished(killed).items()
    tables = [rows_of(where / "tables/dpae/fig6-synthetic-tiny/table.csv") for where in (whole, killed)]
    assert tables[0] == tables[1]
    assert all(row["mean"] for row in tables[0] if not row["method"].startswith("floor"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dpae/table4", "dataset=syntetic"], "'synthetic'"),
        (["dpae/table4", "dataset=synthetic", "dataset.imge_size=16"], "image_size"),
        (["dpae/table4", "dataset=synthetic", "model.samplse=3"], "samplse"),
        (["dpae/table4", "dataset=synthetic", "trainer.max_epochs=-1"], "trainer.max_epochs"),
        (["dpae/fig6", "dataset=synthetic", "model.latent_dim=4"], "varies it itself"),
        (["dpae/table6", *TINY, "output=/dev/null"], "output=/dev/null"),
        (["dpae/table4", "dataset=mt,csd"], "a table is of one dataset"),
    ],
)
def test_a_mistake_is_no_gap(arguments, told, tmp_path, capsys):
    assert main(["reproduce", *arguments, f"runs_dir={tmp_path}"]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.md"))


def test_a_damaged_run_is_a_gap_until_forced_and_others_do_not_matter(tmp_path, capsys):
    asked = ["reproduce", "dpae/table6", *TINY, f"runs_dir={tmp_path}"]
    assert main(asked) == 0
    (run,) = tmp_path.glob("synthetic/dpae/*")
    stray = tmp_path / "synthetic/xx/aaaaaaaa-s0"
    stray.mkdir(parents=True)
    (stray / "metrics.json").write_text("{")
    before = (run / "metrics.json").stat().st_mtime_ns
    assert main(asked) == 0
    assert (run / "metrics.json").stat().st_mtime_ns == before
    assert main([*asked, "force=True"]) == 0
    assert (run / "metrics.json").stat().st_mtime_ns > before
    (run / "metrics.json").write_text("{")
    capsys.readouterr()
    assert main(asked) == 1
    assert "Delete it, or run with force=true" in " ".join(capsys.readouterr().out.split())


def test_a_metric_that_no_run_has_is_said(tmp_path, capsys):
    table = {"title": "T", "source": "here", "rows": ["methods"], "columns": ["metrics"], "seeds": 1}
    table |= {"datasets": {"s": ["dataset=synthetic"]}, "methods": {"PCA": ["model=pca"]}}
    table |= {"metrics": {"AUC": "image_aurok", "IoU": "pixel_iou_defect"}}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(table, sort_keys=False))
    assert main(["reproduce", str(tmp_path / "own.yml"), "settings=tiny", f"runs_dir={tmp_path}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "AUC (image_aurok): no run has it. Did you mean 'image_auroc'?" in told


def test_wrong_pixels_are_of_one_size(runs, capsys):
    asked = ["reproduce", "ae_unet/tableA2", "dataset=synthetic", "seeds=1", "model=pca", f"runs_dir={runs}"]
    empty = []
    for side in (32, 64):
        folder = runs / f"a2-{side}"
        assert main([*asked, f"dataset.image_size={side}", f"output={folder}"]) == 0
        rows = {row["method"]: float(row["mean"]) for row in rows_of(folder / "table.csv")}
        empty.append(rows["floor: nothing marked"])
    assert empty[0] == pytest.approx(empty[1], rel=0.1), "as many defective pixels at either size"


def test_quarters_are_images_of_which_wrong_pixels_are_counted(tmp_path):
    """P2's section 3.3 cuts a texture's images in four: a quarter of a defective half is still a half."""
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 10), ("test/good", 3), ("test/cut", 6)):
        for number in range(count):
            path = tmp_path / "carpet" / folder / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(90, 120, (64, 64, 3), np.uint8)).save(path)
    (tmp_path / "carpet/ground_truth/cut").mkdir(parents=True)
    half = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(64, 0)
    for number in range(6):
        Image.fromarray(half).save(tmp_path / f"carpet/ground_truth/cut/{number:03}_mask.png")
    where = ["dataset=mvtec", "dataset.category=carpet", f"dataset.root={tmp_path}"]
    options = ["model=pca", "model.latent_dim=4", "dataset.image_size=32", "seeds=1"]
    places = [f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'out'}"]
    assert main(["reproduce", "ae_unet/tableA2", *where, *options, *places]) == 0
    (run,) = (Run(path.parent) for path in tmp_path.glob("runs/*/pca/*/metrics.json"))
    tested = run.split().lists["test"]
    defective = sum(record.label for record in tested) / len(tested)
    floor = next(row for row in rows_of(tmp_path / "out/table.csv") if row["method"].startswith("floor"))
    assert float(floor["mean"]) == pytest.approx(256 * 256 / 2 * defective)


def test_tables_of_two_splits_or_folders_are_two_tables():
    def place(*more):
        return parse(["dpae/table4", "dataset=mt", *more]).place

    assert place() == place("tags=[x]", "logger=wandb", "logger.project=p") == "dpae/table4-mt"
    apart = [place(), place("dataset.split=random"), place("dataset.root=/a"), place("dataset.root=/b")]
    assert len(set(apart)) == 4
    assert all(name.startswith("dpae/table4-mt") for name in apart)


@pytest.mark.slow
def test_two_at_once_on_one_folder_make_each_run_once(tmp_path):
    command = [sys.executable, "-m", "anomaly_lab", "reproduce", "dpae/table5", *TINY, f"runs_dir={tmp_path}"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    jobs = [json.loads(path.read_text()) for path in tmp_path.glob(".sweeps/*/*/job.json")]
    trained = [job["run"] for job in jobs if job["status"] == "finished"]
    assert len(trained) == len(set(trained)) == 5
    rows = rows_of(tmp_path / "tables/dpae/table5-synthetic-tiny/table.csv")
    assert all(row["mean"] for row in rows if row["metric"] == "AUC")


def test_some_of_a_table_s_methods_are_chosen():
    assert list(parse(["ae_unet/table2", "model=pca,unet", "dataset=mt"]).experiment.methods) == ["PCA", "UNet"]
    # one model may be several methods
    assert len(parse(["dpae/table5", "model=dpae"]).experiment.methods) == 3
