"""`anomaly-lab export`: the file gives our scores, and runs without us."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models.test_contract import MODELS, build
from run_files import rows_of

from anomaly_lab import export as export_module
from anomaly_lab import load
from anomaly_lab.cli import main
from anomaly_lab.errors import RunError
from anomaly_lab.export import Exported, _compare, _to_onnx, _to_torch

GUIDE = Path(__file__).parent.parent / "docs/export.md"


def test_the_guide_s_program_gives_our_scores_without_us(finished, pictures):
    assert main(["threshold", str(finished), "false_alarms=0.5"]) == 0
    assert main(["export", str(finished)]) == 0
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    (finished / "export/score.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'anomaly_lab', 'lightning']))\n" + program
    )
    tested = rows_of(finished / "scores.csv")
    command = [sys.executable, "score.py", *(str(pictures / row["path"]) for row in tested)]
    shown = subprocess.run(command, cwd=finished / "export", capture_output=True, text=True, check=True).stdout
    threshold = load(finished).threshold
    for line, row in zip(shown.splitlines(), tested, strict=True):
        _, score, verdict = line.rsplit(" ", 2)
        assert float(score) == pytest.approx(float(row["score"]), rel=1e-4)
        assert verdict == ("defective" if float(row["score"]) > threshold else "normal")
    manual = json.loads((finished / "export/model.onnx.json").read_text())
    assert manual["threshold"] == threshold
    assert manual["outputs"][:2] == ["score", "defective"]


def test_a_torch_program_gives_our_scores(finished, pictures, tmp_path):
    assert main(["export", str(finished), "format=torch", f"output={tmp_path / 'own.pt2'}"]) == 0
    program = torch.export.load(tmp_path / "own.pt2").module()
    detector = load(finished, device="cpu")
    images = [detector.read(pictures / row["path"]) for row in rows_of(finished / "scores.csv")[:3]]
    squares = torch.from_numpy(np.stack([detector.framing.image(image) for image in images]))
    names = json.loads((tmp_path / "own.pt2.json").read_text())["outputs"]
    outputs = dict(zip(names, program(squares), strict=True))
    for place, result in enumerate(detector.predict_pixels(images)):
        assert float(outputs["score"][place]) == pytest.approx(result.score, rel=1e-4)
        for name, value in result.scores.items():
            assert float(outputs[f"score_{name}"][place]) == pytest.approx(value, rel=1e-3)
    assert outputs["anomaly_map"].shape == (3, 1, 32, 32)


def test_a_file_that_gives_other_scores_is_not_kept(finished, monkeypatch, capsys):
    honest = export_module._to_torch

    def wrong(*arguments):
        program = honest(*arguments)
        return lambda images: {name: values * 1.001 for name, values in program(images).items()}

    monkeypatch.setattr(export_module, "_to_torch", wrong)
    assert main(["export", str(finished), "format=torch"]) == 2
    assert "gives another score: off by 1.0e-03" in capsys.readouterr().err
    assert list((finished / "export").iterdir()) == []


def test_what_cannot_be_exported_says_so(finished, capsys):
    assert main(["export", str(finished), "output=x.pt2"]) == 2
    assert "has to end with .onnx" in capsys.readouterr().err
    assert main(["export", str(finished), "format=tflite"]) == 2
    assert "format='tflite' is unknown" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("write", [_to_onnx, _to_torch])
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"anogan"}))
def test_every_method_s_file_gives_its_scores(name, write, tmp_path):
    model = build(name).eval().requires_grad_(False)
    whole = Exported(model, 0.5).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    assert _compare(whole, write(whole, images[:2], tmp_path / "model"), images) <= export_module.TOLERANCE


def test_a_search_by_gradients_is_refused(finished, monkeypatch):
    monkeypatch.setattr(type(load(finished).model), "exportable", False)
    with pytest.raises(RunError, match="search by gradients"):
        export_module.main([f"run={finished}"])
