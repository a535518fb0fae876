import subprocess
import sys
import time

import pytest

from anomaly_lab.cli import VERBS, main

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
