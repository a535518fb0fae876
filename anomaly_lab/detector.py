"""A trained run, ready for new images: `load(RUN_DIR).predict(image)`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.build import trained_model
from anomaly_lab.config import check_values
from anomaly_lab.data.framing import Framing
from anomaly_lab.data.images import read_image, to_rgb
from anomaly_lab.data.plan import DataPlan, load_options, make_dataset
from anomaly_lab.data.tiles import Tiling
from anomaly_lab.metrics.image import is_segmenter
from anomaly_lab.runs import Run
from anomaly_lab.single import predict_images
from anomaly_lab.trainer import make_trainer, quieten
from anomaly_lab.types import Prediction

log = logging.getLogger("anomaly_lab")

if TYPE_CHECKING:
    from PIL.Image import Image as Pillow

    Picture = str | Path | Pillow | npt.NDArray[Any]

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True, eq=False)
class Result:
    """What a trained method says of one picture of H x W pixels."""

    score: float  # the score that counts; higher = more anomalous
    is_defective: bool | None  # whether it is above the threshold; None without one
    scores: dict[str, float]  # all of the method's, by name
    anomaly_map: npt.NDArray[np.float32] | None  # (H, W); NaN where it does not look; None: the method has none
    reconstruction: npt.NDArray[np.float32] | None  # (h, w, 3) in [0, 1], at the size the network sees


class Detector:
    """A trained method with all that is done to a picture before it.

    Attributes:
        model: the method, in eval mode.
        framing: what is done to a picture first.
        tiling: how one that is larger than the network's input is cut.
        threshold: the score above which a picture is called defective; None: nothing is called anything.
        pixel_threshold: the value of the anomaly map above which a pixel is, where the method has one of its own, such
            as a probability of 0.5.
        score_names: of all scores.
        primary_score: the name of the one that counts.
    """

    def __init__(self, run: Run, *, device: str = "auto", checkpoint: str | None = None, allow: Sequence[str] = ()):
        run.check_trained()
        config = run.config()
        quieten()
        with run.named_in_errors():
            config["trainer"] |= {"accelerator": device, "devices": 1}
            config["allow"] = list(allow)  # the user's word, never the run's
            scored, config["checkpoint"] = config["checkpoint"], checkpoint or config["checkpoint"]
            check_values(config)
            chosen = (run.chosen_threshold() or {}).get("score")
            is_scored = config["checkpoint"] == scored
            if chosen and is_scored:  # the score and the threshold for use go together
                config["model"]["score"] = chosen
            # of the split only what says how images are cut; the dataset itself need not be there
            plan = DataPlan(make_dataset(config["dataset"], tuple(allow)), run.split(), load_options(config["dataset"]))
            trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
            self.model = trained_model(run, config)
        load, metrics = plan.load, run.read()["metrics"]
        self._precision = trainer.precision_plugin
        self._precision.convert_module(self.model)  # in place
        self.model.to(trainer.strategy.root_device).eval()
        self.checkpoint: str = config["checkpoint"]
        self.framing = Framing(plan.full_size, load.resize, load.image_size, load.roi)
        self.tiling = Tiling(load.image_size, load.tile_overlap)
        self.max_value, self.batch_size = load.max_value, load.batch_size
        self.threshold = run.threshold() if is_scored else _threshold_of(run, config["checkpoint"])
        self.pixel_threshold: float | None = metrics.get("pixel_threshold") if is_segmenter(metrics) else None
        self.score_names, self.primary_score = self.model.score_names, self.model.primary_score

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}(score={self.primary_score}, threshold={self.threshold})"

    def predict(self, image: Picture) -> Result:
        """Score one picture: a path, a Pillow image, or an array (H, W) or (H, W, 3) of uint8 or uint16.

        Raises:
            DataError: if it cannot be read.
            TypeError: for several pictures.
        """
        if isinstance(image, list | tuple):
            raise TypeError("predict takes one picture; predict_all takes several.")
        return next(self.predict_all([image]))

    def predict_all(self, images: Iterable[Picture]) -> Iterator[Result]:
        """Score pictures as they come, a batch at a time.

        Raises:
            DataError: if one cannot be read.
        """
        remaining = iter(images)
        while batch := [self.read(image) for image in islice(remaining, self.batch_size)]:
            yield from self.predict_pixels(batch)

    def read(self, image: Picture) -> Pixels:
        """A picture upright, as 8-bit RGB (H, W, 3)."""
        if isinstance(image, str | Path):
            return read_image(Path(image), max_value=self.max_value)
        return to_rgb(image, max_value=self.max_value)

    def predict_pixels(self, images: Sequence[Pixels], framed: Sequence[Pixels] | None = None) -> list[Result]:
        """Score 8-bit RGB pictures (H, W, 3) of any sizes together; `framed` are they after `framing`, if that is done.

        Raises:
            DataError: if the region of interest reaches beyond one.
        """
        framed = [self.framing.image(image) for image in images] if framed is None else framed
        with self._precision.forward_context():
            found = predict_images(self.model, framed, self.tiling, self.batch_size)
        return [self._result(each, *image.shape[:2]) for each, image in zip(found, images, strict=True)]

    def _result(self, found: Prediction, height: int, width: int) -> Result:
        scores = {name: float(values[0]) for name, values in found.scores.items()}
        score = scores[self.primary_score]
        anomaly_map = reconstruction = None
        if found.anomaly_map is not None:
            anomaly_map = self.framing.back(found.anomaly_map[0, 0].float().cpu().numpy(), height, width)
        if found.reconstruction is not None:
            reconstruction = found.reconstruction[0].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        verdict = None if self.threshold is None else score > self.threshold
        return Result(score, verdict, scores, anomaly_map, reconstruction)


def _threshold_of(run: Run, checkpoint: str) -> float | None:
    """The threshold of another checkpoint than the run was scored with, if `evaluate` has found it."""
    scored = Run(run.path / f"evaluate-{checkpoint}")
    if not scored.metrics_file.exists():
        log.warning(
            "%s was scored with another checkpoint, so it has no threshold for `%s`: `anomaly-lab evaluate run=%s "
            "checkpoint=%s` finds one.",
            *(run.path, checkpoint, run.path, checkpoint),
        )
        return None
    return scored.threshold()


def load(
    run: str | Path, *, device: str = "auto", checkpoint: str | None = None, allow: Sequence[str] = ()
) -> Detector:
    """The trained method of a run directory.

    Args:
        run: the directory that `anomaly-lab train` names at its end.
        device: `cpu`, `cuda`, or `auto` for what there is.
        checkpoint: `last` or `best`; None for the one that the run was scored with.
        allow: packages of your own whose classes the run's configuration may name.

    Raises:
        RunError: if the run is not finished, or its files are damaged.
    """
    return Detector(Run(Path(run)), device=device, checkpoint=checkpoint, allow=allow)
