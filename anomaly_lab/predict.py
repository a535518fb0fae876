"""`anomaly-lab predict`: score new pictures with a trained run. What is done stays done, whatever stops it."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from anomaly_lab.arguments import with_run
from anomaly_lab.config import Config, compose
from anomaly_lab.data.digests import digest
from anomaly_lab.data.records import IMAGE_SUFFIXES, files_below, is_named_image, may_be_read
from anomaly_lab.data.store import WORKERS
from anomaly_lab.errors import ConfigError, DataError, RunError, require
from anomaly_lab.files import read_json, write_json
from anomaly_lab.locks import hold
from anomaly_lab.predictions import PredictionTable
from anomaly_lab.runs import Run

if TYPE_CHECKING:
    from anomaly_lab.detector import Detector, Pixels, Result

log = logging.getLogger("anomaly_lab")

_FORMATS = ("csv", "jsonl")
_OVERLAYS = ("defective", "all", "none")
_OVERLAY_FOLDER = "overlays"
_QUALITY = 90  # of the overlays, which are JPEG
_LARGEST = 8192  # pixels to a side of them
_LONGEST = 240  # bytes of their names


@dataclass(frozen=True)
class Picture:
    """One picture to score."""

    path: Path
    name: str  # below the input folder, or as it was given; unique


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab predict ARGUMENTS`; the exit status is 0 when every picture is scored, 1 if some cannot be."""
    asked = compose("predict", with_run(arguments))
    require("format", asked["format"], _FORMATS)
    require("overlays", asked["overlays"], _OVERLAYS)
    for name, kind, least in (("threshold", int | float, -math.inf), ("batch_size", int, 1)):
        value = asked[name]
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf
        ):
            what = "whole number of at least 1" if name == "batch_size" else "number"
            raise ConfigError(f"{name}={value!r} has to be a {what}.")
    run, output = Run(Path(asked["run"])), Path(asked["output"])
    run.check_trained()
    pictures = find_pictures(str(asked["input"]), output)
    with hold(output):
        counts = predict(run, pictures, output, asked)
    _say(counts, output, asked["format"])
    return int(counts["errors"] > 0)


def find_pictures(source: str, output: Path) -> list[Picture]:
    """What `input` means: one picture, a folder with all that is below it, a pattern, or a list of paths in a .txt.

    The overlays in `output` are left out: it may be inside of the input folder.

    Raises:
        DataError: if there is none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(files_below(path))
        base, paths = path, [file for file in files if is_named_image(file) and may_be_read(file)]
        _say_what_is_no_picture(path, files, output)
    elif path.suffix.lower() == ".txt" and path.is_file():
        base = path.parent
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        paths = [base / line.strip() for line in text.splitlines() if line.strip()]
    elif path.is_file():
        base, paths = path.parent, [path]
    elif re.search(r"[*?\[]", source):
        fixed = path.parts[: next(n for n, part in enumerate(path.parts) if re.search(r"[*?\[]", part))]
        base = Path(*fixed) if fixed else Path()
        found = base.glob(str(path.relative_to(base)))
        paths = sorted(file for file in found if is_named_image(file) and may_be_read(file))
    else:
        raise DataError(f"input={source} is neither a file nor a folder, nor a pattern such as 'DIR/*.png'.")
    inside = (output / _OVERLAY_FOLDER).resolve()
    pictures = {}
    for file in paths:
        if inside in file.resolve().parents:
            continue
        name = file.relative_to(base).as_posix() if file.is_relative_to(base) else file.as_posix()
        pictures[name] = Picture(file, name)
    if not pictures:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"input={source} holds no pictures ({suffixes}).")
    return list(pictures.values())


def _say_what_is_no_picture(folder: Path, files: Sequence[Path], output: Path) -> None:
    own = output.resolve()
    others = Counter(
        file.suffix.lower() or file.name
        for file in files
        if not is_named_image(file) and own not in file.resolve().parents
    )
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        log.warning("%s: %d other files are no pictures and passed over (%s).", folder, others.total(), kinds)


def predict(run: Run, pictures: Sequence[Picture], output: Path, asked: Config) -> dict[str, int]:
    """Score the pictures that `output` does not have yet; returns how many there are, by kind.

    A row of predictions.csv is written when its overlay is, and errors.csv names what cannot be scored; that is tried
    anew each time.

    Raises:
        RunError: if the folder holds predictions of another run, or made otherwise.
    """
    from anomaly_lab.detector import Detector

    detector = Detector(
        run, device=asked["trainer"]["accelerator"], checkpoint=asked["checkpoint"], allow=tuple(asked["allow"])
    )
    if asked["threshold"] is not None:
        detector.threshold = float(asked["threshold"])
    if asked["batch_size"] is not None:
        detector.batch_size = asked["batch_size"]
    table = _table(run, detector, output, asked)
    done = table.read()
    errors = output / "errors.csv"
    errors.unlink(missing_ok=True)
    todo = [picture for picture in pictures if picture.name not in done]
    counts = {"all": len(pictures), "before": len(pictures) - len(todo), "errors": 0}
    # images of their own size may be large: one at a time, its tiles together
    size = detector.batch_size if detector.framing.size is not None else 1
    readable = _readable(_tracked(todo), detector, errors, counts, ahead=2 * size)
    while batch := list(islice(readable, size)):
        results = detector.predict_pixels([pixels for _, pixels, _ in batch], [framed for _, _, framed in batch])
        rows = []
        for (picture, pixels, _), result in zip(batch, results, strict=True):
            if not all(map(math.isfinite, result.scores.values())):
                _note(errors, picture, f"its scores are not finite: {result.scores}", counts)
                continue
            if asked["overlays"] == "all" or (asked["overlays"] == "defective" and result.is_defective is not False):
                _draw(output / _OVERLAY_FOLDER / _overlay_name(picture.name), pixels, result, detector)
            rows.append((picture.name, result))
        table.write(rows)
        done |= {name: result.is_defective for name, result in rows}
    verdicts = [done[picture.name] for picture in pictures if picture.name in done]
    log.info(
        "Called defective above %s.",
        "nothing: the run has no threshold" if detector.threshold is None else f"a score of {detector.threshold:.6g}",
    )
    return counts | {"scored": len(verdicts), "defective": sum(verdict is True for verdict in verdicts)}


def _table(run: Run, detector: Detector, output: Path, asked: Config) -> PredictionTable:
    """The table to go on with, after a look at whose it is."""
    about = {
        "run": str(run.path.resolve()),
        "weights": digest(run.checkpoints / f"{detector.checkpoint}.ckpt"),
        "score": detector.primary_score,
        "threshold": detector.threshold,
        "format": asked["format"],
        "overlays": asked["overlays"],
    }
    path, written = output / "predict.json", output / f"predictions.{asked['format']}"
    if asked["force"]:
        for old in (path, *(output / f"predictions.{kind}" for kind in _FORMATS)):
            old.unlink(missing_ok=True)
        shutil.rmtree(output / _OVERLAY_FOLDER, ignore_errors=True)
    if path.exists():
        try:
            before = read_json(path)
            others = {
                key: (before[key], value) for key, value in about.items() if before[key] != value and key != "run"
            }
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{path} is damaged: give force=true to start anew.") from None
        if others:
            told = ", ".join(f"{key}={_brief(old)}, now {_brief(new)}" for key, (old, new) in others.items())
            raise RunError(
                f"{output} holds predictions that were made otherwise ({told}). Give another output, or force=true to "
                "start anew."
            )
    elif written.exists():
        raise RunError(f"{written} is there already, and nothing says how it was made. Give another output.")
    write_json(path, about)
    return PredictionTable(written, detector.score_names, as_json=asked["format"] == "jsonl")


def _brief(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _readable(
    pictures: Iterable[Picture], detector: Detector, errors: Path, counts: dict[str, int], ahead: int
) -> Iterator[tuple[Picture, Pixels, Pixels]]:
    """The pictures that can be read, as they are and framed, while others are scored; the others go to errors.csv."""

    def read(path: Path) -> tuple[Pixels, Pixels]:
        pixels = detector.read(path)
        try:
            return pixels, detector.framing.image(pixels)
        except DataError as error:
            raise DataError(f"{path}: {error}.") from None

    def outcome(waiting: tuple[Picture, Future[tuple[Pixels, Pixels]]]) -> Iterator[tuple[Picture, Pixels, Pixels]]:
        picture, future = waiting
        try:
            yield picture, *future.result()
        except DataError as error:
            _note(errors, picture, str(error), counts)

    with ThreadPoolExecutor(WORKERS) as pool:
        queue: deque[tuple[Picture, Future[tuple[Pixels, Pixels]]]] = deque()
        try:
            for picture in pictures:
                queue.append((picture, pool.submit(read, picture.path)))
                if len(queue) > ahead:
                    yield from outcome(queue.popleft())
            while queue:
                yield from outcome(queue.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _note(errors: Path, picture: Picture, cause: str, counts: dict[str, int]) -> None:
    is_new = not errors.exists()
    with errors.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(["path", "error"])
        writer.writerow([picture.name, cause])
    counts["errors"] += 1


def _draw(path: Path, pixels: Pixels, result: Result, detector: Detector) -> None:
    import cv2

    from anomaly_lab.reporting.overlay import overlay

    if result.anomaly_map is None:
        return
    drawn: Any = overlay(
        pixels,
        result.anomaly_map,
        pixel_threshold=detector.pixel_threshold,
        is_defective=result.is_defective is True,
    )
    if (scale := _LARGEST / max(drawn.shape[:2])) < 1:
        drawn = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise RunError.of(path, error) from None


def _overlay_name(name: str) -> PurePosixPath:
    """A picture's overlay: its name as a path that stays below a folder, shortened where a file system would refuse."""
    *folders, last = ("_" if part == ".." else part for part in PurePosixPath(name).parts if part != "/")
    if len(os.fsencode(last)) > _LONGEST:
        last = f"{last[:60]}-{hashlib.blake2b(os.fsencode(last), digest_size=6).hexdigest()}"
    return PurePosixPath(*folders, f"{last}.jpg")


def _tracked(pictures: Sequence[Picture]) -> Iterable[Picture]:
    from rich.console import Console
    from rich.progress import track

    return track(pictures, "Scoring", console=Console(stderr=True, force_jupyter=False))


def _say(counts: Mapping[str, int], output: Path, kind: str) -> None:
    before = f", {counts['before']} of them before" if counts["before"] else ""
    log.info("%d of %d pictures scored%s: %s", counts["scored"], counts["all"], before, output / f"predictions.{kind}")
    log.info("%d called defective.", counts["defective"])
    if counts["errors"]:
        log.error("%d could not be scored: %s", counts["errors"], output / "errors.csv")
