"""README and guides: every command in them is understood, every snippet runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from run_files import rows_of

from anomaly_lab import get_data, list_runs, manifest, report, reproduce, threshold, workspace
from anomaly_lab.arguments import option_of, with_plain_paths
from anomaly_lab.cli import VERBS, main
from anomaly_lab.config import check, compose, conf_dir
from anomaly_lab.data.manifest import Manifest
from anomaly_lab.sweep import with_sweep

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "experiments/README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_OPTIONS = {
    "data": get_data._OPTIONS,
    "threshold": threshold._OPTIONS,
    "manifest": manifest._OPTIONS,
    "report": report._OPTIONS,
    "dashboard": workspace._OPTIONS,
    "compare": ("output",),
    "import": ("name", "maps", "pixel_threshold"),
}


def commands():
    """Each command of the pages, continued lines joined, as (page, words)."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        text = re.sub(r"```(python|yaml|csv)\n.*?```", "", text, flags=re.DOTALL)
        lines = [line.strip() for line in text.splitlines() if re.match(r"( {4}|\t)?anomaly-lab ", line)]
        for found in (*lines, *re.findall(r"`(anomaly-lab [^`]+)`", text)):
            yield page.name, found.partition(" # ")[0].strip()


COMMANDS = sorted(set(commands()))


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_the_command_is_understood(page, command, tmp_path, monkeypatch):
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    verb, arguments = words[0], with_plain_paths([word for word in words[1:] if word != "SETTINGS"])
    assert verb in VERBS
    if verb == "train":
        if "model=blur" in arguments:
            return  # below, with its files
        flags = {"-m", "--multirun", "--cfg", "job"}
        check("train", [text for text in with_sweep(arguments) if text not in flags])
    elif verb in ("evaluate", "predict", "export"):
        given = [text if "=" in text else f"run={text}" for text in arguments]
        needed = {"evaluate": ["run=R"], "export": ["run=R"], "predict": ["run=R", "input=I", "output=O"]}[verb]
        compose(verb, [*needed, *given])
    elif verb == "reproduce":
        if arguments and not arguments[0].endswith(("NAME", ".yaml")):
            reproduce.parse(arguments)
    elif verb == "runs":
        list_runs.parse(arguments)
    else:
        known = OWN_OPTIONS.get(verb, ())
        train = compose("train", [])
        for text in arguments:
            if "=" in text:
                name = option_of(text)
                assert name in known or name.partition(".")[0] in train, text


NOT_HERE = {  # what a command needs that no test machine has
    "dashboard": "a server",
    "data get": "the network; test_get_data.py has a server of its own",
    "data make": "CrackForest; test_get_data.py has a small one of its own",
    "data prepare": "an archive; test_get_data.py has some of its own",
    "devices=4": "four GPUs",
    "submitit_slurm": "a cluster; test_launchers.py runs its local twin",
    "launcher=ray": "Ray, whose launcher is installed apart",
    "sweeper=optuna": "Optuna, which is installed apart",
    "model=blur": "its files: below",
    "mine.yaml": "a file of one's own: below",
    "SETTINGS": "what a search found",
}
SMALL = {
    "dataset.image_size": "32",
    "dataset.batch_size": "4",
    "dataset.steps_per_epoch": "2",
    "trainer.max_epochs": "1",
    "trainer.estimate": "false",
    "trainer.accelerator": "cpu",
}


@pytest.fixture(scope="module")
def at_hand(trained_once, pictures, tmp_path_factory):
    """What the pages' capitals stand for, and small magnetic tiles."""
    root = tmp_path_factory.mktemp("at_hand")
    (run,) = trained_once.glob("*/*/*-s0")
    for name in ("a", "b"):
        shutil.copytree(run, root / "runs/folder/dpae" / name)
    shutil.copytree(pictures, root / "pictures")
    tiles = root / "magnetic_tile"
    for number, path in enumerate(sorted((pictures / "good").iterdir()), 1):
        (tiles / "MT_Free/Imgs").mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(tiles / f"MT_Free/Imgs/exp1_num_{100 * number}.jpg")
    for number, path in enumerate(sorted((pictures / "spot").iterdir()), 1):
        (tiles / "MT_Blowhole/Imgs").mkdir(parents=True, exist_ok=True)
        stem = tiles / f"MT_Blowhole/Imgs/exp1_num_{100_000 + 100 * number}"
        Image.open(path).convert("RGB").save(stem.with_suffix(".jpg"))
        shutil.copy(pictures / "masks/spot" / path.name, stem.with_suffix(".png"))
    names = [path.relative_to(tiles).as_posix() for path in sorted(tiles.rglob("*.jpg"))]
    (root / "scores.csv").write_text("path,score\n" + "".join(f"{name},{len(name)}\n" for name in names))
    for old, new in (("good", "train/good"), ("spot", "test/spot"), ("masks/spot", "ground_truth/spot")):
        shutil.copytree(pictures / old, root / "listed" / new)
    outline = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]}
    image = {"id": 1, "file_name": "test/spot/040.png", "height": 36, "width": 36}
    others = [
        {"id": 2 + number, "file_name": f"train/good/{number:03}.png", "height": 36, "width": 36}
        for number in range(40)
    ]
    coco = {"images": [image, *others], "annotations": [outline], "categories": [{"id": 1, "name": "spot"}]}
    (root / "listed/annotations.json").write_text(json.dumps(coco))
    return root


def runnable(command):
    return command.count(" ") > 1 and not any(text in command for text in NOT_HERE)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS if runnable(command)}))
def test_the_command_runs(command, at_hand, monkeypatch):
    """As it stands, its capitals filled in, and small."""
    monkeypatch.chdir(at_hand)
    monkeypatch.setenv("ANOMALY_LAB_DATA", str(at_hand))
    runs = [at_hand / "runs/folder/dpae" / name for name in ("a", "b")]
    stands_for = {"RUN_DIR": runs[0], "RUN_A": runs[0], "RUN_B": runs[1], "NEW": at_hand / "pictures/spot"}
    stands_for |= {"FOLDER": at_hand / "pictures", "OUT": at_hand / "out", "NAME": "RLX", "DIR": at_hand / "pictures"}
    stands_for["output=DIR"] = f"output={at_hand / 'elsewhere'}"
    if "manifest" in command:
        stands_for["DIR"] = at_hand / "listed"
    if "reproduce" in command:
        stands_for["NAME"] = "dpae/fig6"
    for name, value in stands_for.items():
        command = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", str(value), command)
    verb, *arguments = (word for word in shlex.split(command)[1:] if word != "...")
    given = {option_of(text) for text in arguments}
    tiles = {"dataset.train_count": "16", "dataset.val_count": "8", "dataset.test_normal_count": "6"}
    small = tiles if "dataset=mt" in arguments else {}
    if verb in ("train", "import"):
        small |= {"runs_dir": str(at_hand / "trained")}
    if verb == "train":
        small |= SMALL
        if "model=ae_unet" in command or "sweep=labels" in command:
            small |= {"dataset.label_reserve": "5", "model.levels": "2", "model.width": "4"}
        if "sweep=labels" in command:
            small |= {"dataset.labelled_per_type": "1"}
        if "sweep=latent_dim" in command:
            small |= {"model.latent_dim": "4,8", "seed": "0"}
    if verb == "reproduce" and "--dry-run" not in arguments:
        arguments = [text for text in arguments if option_of(text) not in ("seeds", "settings")]
        given -= {"seeds", "settings"}
        small |= {"seeds": "1", "settings": "tiny", "runs_dir": str(at_hand / "trained")}
        small |= {} if "dataset" in given else {"dataset": "synthetic"}
    if verb == "manifest":
        small |= {"force": "true"}
    arguments += [f"{key}={value}" for key, value in small.items() if key not in given]
    assert main([verb, *arguments]) == 0


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_names_in_backticks_with_a_slash_are_there():
    """Files of the repository that a page names."""
    for page in PAGES:
        for name in re.findall(r"`((?:conf|docs|tests|anomaly_lab|experiments|notebooks)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.fixture(scope="module")
def own_method(tmp_path_factory):
    """The guide's method, in a package and a folder of configuration of its own."""
    root = tmp_path_factory.mktemp("own")
    text = (ROOT / "docs/your_method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for path, content in (("my_methods/__init__.py", code), ("my_conf/model/blur.yaml", settings)):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(content)
    return root


def anomaly_lab(own, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "anomaly_lab", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(own)},
        cwd=own,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_method_from_outside_does_all_that_ours_do(own_method, pictures):
    where = [f"hydra.searchpath=[file://{own_method}/my_conf]", "allow=[my_methods]"]
    data = ["dataset=folder", f"dataset.root={pictures}", "dataset.image_size=32", "dataset.val_fraction=0.2"]
    small = ["trainer.estimate=false", "trainer.accelerator=cpu", f"runs_dir={own_method}/runs"]
    anomaly_lab(own_method, "train", "model=blur", *where, *data, *small)
    (run,) = (own_method / "runs").glob("folder/blur/*-s0")
    assert "nothing was trained" in anomaly_lab(own_method, "train", "model=blur", *where, *data, *small)
    told = anomaly_lab(own_method, "evaluate", run, status=2)
    assert "allow=[PACKAGE]" in told, "a run's configuration chooses no code"
    anomaly_lab(own_method, "evaluate", run, where[1])
    anomaly_lab(own_method, "threshold", run, "false_alarms=0.3")
    anomaly_lab(own_method, "predict", run, f"input={pictures}/spot", f"output={own_method}/out", where[1])
    assert (own_method / "out/predictions.csv").exists()
    anomaly_lab(own_method, "export", run, where[1])
    anomaly_lab(own_method, "train", "-m", "model=blur", "model.radius=1,2", *where, *data, *small)
    assert len(list((own_method / "runs").glob("folder/blur/*/metrics.json"))) == 2
    (own_method / "table.yaml").write_text(
        "title: Ours\nsource: own\nrows: [methods]\ncolumns: [datasets]\ndatasets: {mine: [dataset=folder]}\n"
        "methods: {Blur: [model=blur], wide: [model=blur, model.radius=3]}\nmetrics: {AUC: image_auroc}\n"
    )
    shown = anomaly_lab(own_method, "reproduce", "table.yaml", "seeds=2", *where, *data[1:], *small)
    assert "wide" in shown
    anomaly_lab(own_method, "report", f"runs_dir={own_method}/runs", f"output={own_method}/report.html")
    assert "radius=3" in (own_method / "report.html").read_text()


def test_the_python_snippet_runs(finished, pictures, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/predict.md").read_text(), re.DOTALL)
    exec(code, {"RUN_DIR": finished, "PICTURE": pictures / "spot/040.png"})
    assert "(36, 36)" in capsys.readouterr().out


def test_the_readme_s_line_of_python_runs(finished, pictures, monkeypatch):
    (line,) = re.findall(r"`(from anomaly_lab import load; [^`]+)`", (ROOT / "README.md").read_text())
    monkeypatch.chdir(pictures / "spot")
    scope = {"RUN_DIR": finished}
    exec(line.replace("image.png", "040.png").replace("; load", "; found = load"), scope)
    assert scope["found"].score > 0


def test_the_manifest_of_the_guide_can_be_trained_on(tmp_path):
    (table,) = re.findall(r"```\n(path,label.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "manifest.csv").write_text(table)
    for row in rows_of(tmp_path / "manifest.csv"):
        for name in filter(None, (row["path"], row.get("mask"))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    records = Manifest(tmp_path, tmp_path / "manifest.csv").scan()
    assert {record.label for record in records} == {0, 1}


def test_the_guide_s_snippets_are_of_this_package(own_method):
    assert "my_methods.Blur" in (own_method / "my_conf/model/blur.yaml").read_text()
    assert (conf_dir() / "model/_base.yaml").exists()
    assert main(["train", "model=blur"]) == 2
