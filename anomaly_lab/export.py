"""`anomaly-lab export RUN_DIR`: a trained run as one file, whose scores are compared before it is handed on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anomaly_lab.arguments import with_run
from anomaly_lab.config import Config, compose
from anomaly_lab.detector import Detector, load
from anomaly_lab.errors import ConfigError, RunError, require
from anomaly_lab.files import write_json
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # of a score, relative to the largest value among the images compared
_MAP_TOLERANCE = 1e-3  # of a single pixel
_COMPARED = 16  # images

Arrays = dict[str, npt.NDArray[Any]]
Program = Callable[[npt.NDArray[np.uint8]], Arrays]


class Exported(nn.Module):
    """A method with what belongs to it: pixels in, scores and verdict out.

    Args:
        threshold: of the score; without one there is no output `defective`.
    """

    def __init__(self, model: AnomalyModel, threshold: float | None) -> None:
        super().__init__()
        # torch cannot save weights in the order that training likes
        self.model, self.threshold = model.to(memory_format=torch.contiguous_format), threshold
        named = [f"score_{name}" for name in model.score_names]
        self.names = ["score", *(["defective"] if threshold is not None else []), *named]
        self.names += ["anomaly_map"] if model.has_map else []

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Scores (B,), verdicts (B,) and maps (B, 1, S, S) of uint8 images (B, S, S, 3), in the order of `names`."""
        found = self.model.predict(image.permute(0, 3, 1, 2).float() / 255)
        score = found.scores[self.model.primary_score].float()
        outputs = [score, *([score > self.threshold] if self.threshold is not None else [])]
        outputs += [found.scores[name].float() for name in self.model.score_names]
        return (*outputs, *([found.anomaly_map.float()] if found.anomaly_map is not None else []))


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab export ARGUMENTS`; the exit status is 0 when the file is written and gives the same scores."""
    asked = compose("export", with_run(arguments))
    require("format", asked["format"], _SUFFIXES)
    run = Run(Path(asked["run"]))
    path = Path(asked["output"] or run.path / "export" / f"model{_SUFFIXES[asked['format']]}")
    if path.suffix != _SUFFIXES[asked["format"]]:
        raise ConfigError(f"output={path} has to end with {_SUFFIXES[asked['format']]}.")
    worst = export(run, path, asked)
    log.info("%s: scores as here to %.0e (compared on %d images)", path, worst, _COMPARED)
    log.info("How to use it: %s", _manual_of(path))
    return 0


def export(run: Run, path: Path, asked: Config) -> float:
    """Write the file and what it needs beside it; returns how far its outputs are from ours, relative to their size.

    Raises:
        RunError: if the method cannot be exported, or the file gives other scores; then it is removed.
        ConfigError: if a package for it is missing.
    """
    detector = load(run.path, device="cpu", checkpoint=asked["checkpoint"], allow=tuple(asked["allow"]))
    model = detector.model
    if not model.exportable:
        raise RunError(f"{type(model).__name__} cannot be exported: its scores are a search by gradients.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    whole = Exported(model.float(), detector.threshold).eval()
    images = _images(run, detector.tiling.side)
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program = (_to_onnx if asked["format"] == "onnx" else _to_torch)(whole, images[:2], part)
        worst = _compare(whole, program, images)
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}. Choose another output.") from None
    finally:
        with suppress(OSError):  # it may not even have a folder
            part.unlink()
    write_json(_manual_of(path), _manual(run, detector, whole))
    return worst


def _manual_of(path: Path) -> Path:
    """Where it is written how to use a file; never over a file of the run."""
    return path.with_name(f"{path.name}.json")


def _to_onnx(whole: Exported, example: npt.NDArray[np.uint8], path: Path) -> Program:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"format=onnx needs the package {error.name}: pip install 'anomaly-lab[export]'.") from None
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    program = torch.onnx.export(
        whole,
        (torch.from_numpy(example),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["image"],
        output_names=whole.names,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(whole.names, session.run(whole.names, {"image": images}), strict=True))


def _to_torch(whole: Exported, example: npt.NDArray[np.uint8], path: Path) -> Program:
    with torch.no_grad():
        program = torch.export.export(
            whole, (torch.from_numpy(example),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    with path.open("wb") as written:
        torch.export.save(program, written)
    with path.open("rb") as written_before:
        module = torch.export.load(written_before).module()

    def run(images: npt.NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(whole.names, outputs, strict=True)}

    return run


def _compare(whole: Exported, program: Program, images: npt.NDArray[np.uint8]) -> float:
    """The largest difference of a score, relative to its largest value; batches of several sizes are tried.

    Raises:
        RunError: if it is above the tolerance.
    """
    with torch.inference_mode():
        ours = dict(zip(whole.names, (v.numpy() for v in whole(torch.from_numpy(images))), strict=True))
    worst = 0.0
    for start, stop in ((0, 1), (1, 4), (0, len(images))):
        theirs = program(images[start:stop])
        for name in (name for name in whole.names if name != "defective"):
            here = ours[name][start:stop]
            off = float(np.abs(here - theirs[name]).max() / max(np.abs(ours[name]).max(), 1e-12))
            allowed = _MAP_TOLERANCE if name == "anomaly_map" else TOLERANCE
            if not off <= allowed:
                raise RunError(
                    f"The exported file gives another {name}: off by {off:.1e} of its largest value, where "
                    f"{allowed:.0e} is allowed. Nothing was kept."
                )
            worst = max(worst, off) if name != "anomaly_map" else worst
    return worst


def _images(run: Run, side: int) -> npt.NDArray[np.uint8]:
    """Images to compare on: of the run's gallery, cut or repeated to what the network sees; noise where it has none."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (_COMPARED, side, side, 3), np.uint8)
    try:
        with np.load(run.path / "predictions" / "gallery.npz", allow_pickle=False) as gallery:
            found = gallery["image"][:_COMPARED]
    except (OSError, ValueError, KeyError):
        return noise
    around = ((0, 0), *((0, max(0, side - length)) for length in found.shape[1:3]), (0, 0))
    found = np.pad(found, around, mode="wrap")[:, :side, :side]
    return np.ascontiguousarray(np.concatenate([found, noise])[:_COMPARED])


def _manual(run: Run, detector: Detector, whole: Exported) -> dict[str, Any]:
    """What a program needs to know to use the file."""
    content = run.read()
    return {
        "input": {"name": "image", "type": "uint8", "shape": ["batch", detector.tiling.side, detector.tiling.side, 3]},
        "outputs": whole.names,
        "score": detector.primary_score,
        "threshold": detector.threshold,
        "pixel_threshold": detector.pixel_threshold,
        "preprocessing": {
            "channels": "RGB",
            "size": detector.framing.size,  # null: the picture keeps its own and is cut into tiles
            "roi": detector.framing.roi,  # top, left, height and width in pixels, cut out first; null: all
            "resize": detector.framing.policy,
            "where_it_shrinks": "area",
            "where_it_grows": "bilinear",
            "white_of_16_bits": detector.max_value,
            "tile_overlap": detector.tiling.overlap,
            "of_several_tiles": "the maps' mean where they overlap; of scores not of the map the greatest",
        },
        "run": {
            "path": "/".join(run.path.parts[-3:]),
            **{key: content.get(key) for key in ("config_hash", "git_sha", "versions")},
        },
    }
