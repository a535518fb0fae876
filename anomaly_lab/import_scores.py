"""`anomaly-lab import FILE.csv name=NAME dataset=...`: the scores (and maps) of another tool as a run of its own."""

from __future__ import annotations

import csv
import hashlib
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.arguments import option_of, own_options
from anomaly_lab.config import Config, check_values, compose, has_choice
from anomaly_lab.data.plan import DataPlan, make_plan
from anomaly_lab.errors import ConfigError, DataError
from anomaly_lab.files import write_json
from anomaly_lab.metrics.scores import PIXEL_COUNTS, ScoreTable
from anomaly_lab.runs import Run

log = logging.getLogger("anomaly_lab")

_OWN = ("name", "maps", "pixel_threshold")
_MAPS = (".npy", ".tiff", ".tif", ".png")
_LISTED = 3  # paths in an error
_PRIMARY = "imported"  # how the score that counts is named
_NO_SCORES = ("path", "score", "index", "label", "defect", "group", _PRIMARY, *PIXEL_COUNTS)


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab import FILE.csv name=NAME dataset=... [maps=DIR] [pixel_threshold=X]`."""
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    files = [text for text in arguments if "=" not in text]
    own = {key: value for key, value in own_options(arguments, _OWN).items() if value}
    if len(files) != 1 or "name" not in own:
        raise ConfigError("import takes a CSV file with the columns path and score, name=NAME, and dataset=...")
    overrides = [text for text in arguments if "=" in text and text.partition("=")[0] not in _OWN]
    if wrong := [t for t in overrides if option_of(t).split(".")[0] in ("model", "trainer")]:
        raise ConfigError(f"{wrong[0]}: an imported run is trained elsewhere; options of dataset and split are taken.")
    threshold = None
    if "pixel_threshold" in own:
        try:
            threshold = float(own["pixel_threshold"])
        except ValueError:
            raise ConfigError(f"pixel_threshold={own['pixel_threshold']} has to be a number.") from None
    maps = Path(own["maps"]) if "maps" in own else None
    config = compose("train", overrides)
    if not any(text.startswith("seed=") for text in overrides):
        config["seed"] = config["dataset"]["split_seed"]  # as in the papers' tables
    run = import_run(Path(files[0]), own["name"], config, maps, threshold)
    content = run.read()
    Console().print(result_table(content["metrics"], content["reasons"], title="/".join(run.path.parts[-3:])))
    log.info("Run directory: %s", run.path)
    return 0


def import_run(
    file: Path, name: str, config: Config, maps: Path | None = None, pixel_threshold: float | None = None
) -> Run:
    """Make a finished run of a table of scores: every test image of the split needs one.

    Args:
        file: a CSV with the columns `path` and `score` (higher = more anomalous); further columns of numbers are named
            scores. A path is that of the image below the dataset's folder, or ends like it. Rows for images of val
            give the threshold to deploy; other rows are left out.
        name: of the method.
        config: of `train`; what it says of dataset, split, seed and runs_dir counts.
        maps: a folder with an anomaly map for each test image at the image's relative path, as .npy or as a picture.
        pixel_threshold: from where on a map's pixel is called defective.

    Raises:
        ConfigError: if the name is no plain one.
        DataError: if a test image has no score, two, or no map, or the file is no such table.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"name={name!r} has to be of letters, digits, - and _: it names a folder.")
    if has_choice("model", name):
        raise ConfigError(f"name={name} is a method here: take another name for what was made elsewhere.")
    check_values(config)
    plan = make_plan(config["dataset"], tuple(config["allow"]))
    rows, names = _read(file)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    config = {**config, "model": {"name": name, "latent_dim": None, "scores_sha256": content}}
    tables = {part: table for part in ("val", "tune", "test") if (table := _table(plan, part, rows, names)) is not None}
    pixels = ({}, {}) if maps is None else _pixels(plan, maps, pixel_threshold)
    run = Run.of(config, plan)
    with run.lock():
        run.start(config, plan)
        try:
            results = _scored(run, plan, tables, pixels, config["val_quantile"])
        except Exception as error:
            run.fail(config, plan, error, traceback.format_exc())
            raise
        run.finish(config, plan, results | {"imported": True})
    return run


def _scored(
    run: Run,
    plan: DataPlan,
    tables: Mapping[str, ScoreTable],
    pixels: tuple[dict[str, Any], dict[str, str]],
    quantile: float,
) -> dict[str, Any]:
    """The results for metrics.json; scores.csv, leakage.json and the figures are written on the way."""
    from anomaly_lab.metrics.image import image_metrics
    from anomaly_lab.reporting.figures import draw_all
    from anomaly_lab.score import describe_split

    about = describe_split(plan, run.splits)
    metrics, reasons = image_metrics(tables["test"], val=tables.get("val"), tune=tables.get("tune"), quantile=quantile)
    if "val" not in tables and plan.split.lists.get("val"):
        reasons["threshold"] = reasons["threshold_interval"] = (
            "the file has no scores for val's held-out normal images, which are listed in split.json"
        )
    metrics, reasons = metrics | pixels[0] | about["metrics"], reasons | pixels[1] | about["reasons"]
    tables["test"].to_csv(run.scores_file)
    write_json(run.leakage_file, about["leakage"])
    draw_all(run.path, metrics)
    return {"metrics": metrics, "reasons": reasons, "seconds": {}}


def _read(file: Path) -> tuple[dict[str, list[float]], list[str]]:
    """Path -> the score that counts and the named ones, and the names of these."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            content = list(reader)
            header = list(reader.fieldnames or [])
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}") from None
    if missing := [name for name in ("path", "score") if name not in header]:
        raise DataError(f"{file} has no column {' and '.join(missing)}; its columns are {', '.join(header) or 'none'}.")
    names = [name for name in header if name and name not in _NO_SCORES]
    names = [name for name in names if all(_number(row[name]) is not None for row in content)]
    rows: dict[str, list[float]] = {}
    for line, row in enumerate(content, start=2):
        path = str(row["path"]).replace("\\", "/").removeprefix("./")
        score = _number(row["score"])
        if score is None:
            raise DataError(f"{file}, line {line}: the score is {row['score']!r}, not a finite number.")
        if path in rows:
            raise DataError(f"{file}, line {line}: {path} stands twice.")
        rows[path] = [score, *(float(row[name]) for name in names)]
    return rows, names


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _table(plan: DataPlan, part: str, rows: Mapping[str, list[float]], names: Sequence[str]) -> ScoreTable | None:
    """The scores of a list's images; None where one has none and it is not the test's."""
    # painted copies are made here, and nobody else has them
    records = [record for record in plan.split.lists.get(part, ()) if record.painted is None]
    by_name: dict[str, list[str]] = {}
    for path in rows:
        by_name.setdefault(path.rpartition("/")[2], []).append(path)
    found = [_row_of(record.path, rows, by_name) for record in records]
    lacking = [record.path for record, row in zip(records, found, strict=True) if row is None]
    if lacking or not records:
        if part != "test":
            return None
        shown = ", ".join(lacking[:_LISTED])
        raise DataError(
            f"{len(lacking)} of {len(records)} test images have no score, such as {shown}. Paths are those below the "
            "dataset's folder; the split has to be the one that the scores are of (dataset.split_seed)."
        )
    matrix = np.array([row for row in found if row is not None], np.float64)
    return ScoreTable(
        index=np.arange(len(records)),
        path=[record.path for record in records],
        label=np.array([int(bool(record.label)) for record in records]),
        defect=[record.defect for record in records],
        group=[record.part_of for record in records],
        scores={name: matrix[:, column] for column, name in enumerate((_PRIMARY, *names))},
        primary=_PRIMARY,
    )


def _row_of(path: str, rows: Mapping[str, list[float]], by_name: Mapping[str, Sequence[str]]) -> list[float] | None:
    if path in rows:
        return rows[path]
    ending = [other for other in by_name.get(path.rpartition("/")[2], ()) if other.endswith(f"/{path}")]
    if len(ending) > 1:
        raise DataError(f"{path} has two scores: {ending[0]} and {ending[1]}.")
    return rows[ending[0]] if ending else None


def _pixels(plan: DataPlan, maps: Path, threshold: float | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Pixel metrics of maps, each brought to the size that the masks have here."""
    import torch
    from torch.nn import functional as F

    from anomaly_lab.metrics.pixel import pixel_metrics
    from anomaly_lab.metrics.pixel_tally import PixelTally

    if plan.load.resize != "squash":
        raise ConfigError(f"dataset.resize={plan.load.resize}: maps are of whole images, which squash keeps whole.")
    store = plan.store(plan.full_size)
    tally = PixelTally(threshold)
    for record in plan.split.lists["test"]:
        mask = store.load(record)[1]
        found = torch.from_numpy(_map(maps, record.path))[None, None]
        resized = F.interpolate(found, mask.shape, mode="bilinear", antialias=True)
        tally.update(resized, torch.from_numpy(mask)[None, None])
    reason = "no pixel_threshold was given with the maps" if threshold is None else ""
    metrics, reasons = pixel_metrics(tally.compute(), no_threshold=reason)
    return metrics, reasons


def _map(folder: Path, path: str) -> npt.NDArray[np.float32]:
    base = folder / Path(path).with_suffix("")
    files = [base.with_name(base.name + ending) for ending in _MAPS]
    file = next((one for one in files if one.exists()), None)
    if file is None:
        raise DataError(f"{path} has no map: {base}.npy (or .tiff, .png) does not exist.")
    try:
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False)
        else:
            from PIL import Image

            with Image.open(file) as picture:
                values = np.asarray(picture)
        values = np.squeeze(np.asarray(values, np.float32))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a map: {error}") from None
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"{file} is no map of one finite number for each pixel: its shape is {values.shape}.")
    return values
