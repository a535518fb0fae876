import logging
import subprocess
import sys
import time

import pytest

from anomaly_lab.arguments import with_plain_paths
from anomaly_lab.cli import VERBS, main
from anomaly_lab.config import compose
from anomaly_lab.console import said_once

HEAVY = ("torch", "lightning", "torchmetrics", "albumentations", "hydra", "wandb")


def test_help_lists_every_verb(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_help_of_its_own(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert VERBS[verb] in text
    assert f"  anomaly-lab {verb}" in text


def test_a_mistyped_verb_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_a_mistyped_option_is_answered_with_the_nearest(capsys):
    assert main(["train", "model.laten_dim=3"]) == 2
    assert "Did you mean 'model.latent_dim'?" in capsys.readouterr().err


def test_a_missing_dataset_says_how_to_get_it(capsys, caplog, monkeypatch, tmp_path):
    monkeypatch.delenv("ANOMALY_LAB_DATA", raising=False)
    assert main(["train", "dataset=mt", f"runs_dir={tmp_path}"]) == 1
    assert "dataset.root" in caplog.text
    assert "Huang" in caplog.text


NAMES = [
    "a b",
    "o'clock",
    "a,b",
    "(1)",
    "a=b",
    "[x]",
    "~x",
    "50%",
    "{}:",
    "Prüfung",
    "日本",
    "2024",
    "true",
    "a\\",
    "a\\'b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_may_hold_any_sign(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (f"~/{name}/pictures", f"{tmp_path}/{name}/pictures", f"{name}/pictures", f"~/{name}", name):
        config = compose("train", with_plain_paths(["dataset=folder", f"dataset.root={typed}", f"runs_dir={typed}"]))
        expected = str(tmp_path) + typed[1:] if typed.startswith("~/") else typed
        assert config["dataset"]["root"] == config["runs_dir"] == expected


def test_paths_in_quotes_and_sweeps_over_paths_stay_what_they_are(monkeypatch):
    for texts in (["run='a b'"], ["-m", "runs_dir=choice(a,b)"], ["model.latent_dim=3", "run=runs/x-s0"]):
        assert with_plain_paths(texts) == texts
    monkeypatch.setenv("HOME", "/home")
    assert with_plain_paths(["-m", "dataset.root=~/a,b c"]) == ["-m", "dataset.root=/home/a,'b c'"]


def test_a_warning_is_said_once_and_whatever_else_each_time(capsys):
    console = logging.StreamHandler(sys.stdout)
    console.addFilter(said_once())
    log = logging.Logger("one command")
    log.addHandler(console)
    for job in (1, 2):
        log.warning("%s is left out", "a.png")
        log.info("trained")
        log.warning("job %d failed", job)
        log.error("no room")
    assert capsys.readouterr().out.splitlines() == [
        *("a.png is left out", "trained", "job 1 failed", "no room"),
        *("trained", "job 2 failed", "no room"),
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["trian"]])
def test_help_and_a_mistyped_verb_import_nothing_heavy_and_answer_in_a_second(arguments):
    code = (
        "import sys; from anomaly_lab.cli import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    def ask():
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return time.perf_counter() - started, done.stdout.splitlines()[-1]

    answers = [ask() for _ in range(3)]
    assert {imported for _, imported in answers} == {"[]"}
    bare = min(_seconds([sys.executable, "-c", "pass"]) for _ in range(3))
    # a second beside an empty interpreter: the machine may be busy with something else
    assert min(seconds for seconds, _ in answers) < 1 + bare


def _seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "anomaly_lab", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("anomaly-lab ")


def test_the_console_says_warnings_once(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    main(["train", "model.laten_dim=3"])
    for _ in range(2):
        logging.getLogger("anomaly_lab.data").warning("a.png is left out")
    assert capsys.readouterr().err.count("a.png is left out") == 1
