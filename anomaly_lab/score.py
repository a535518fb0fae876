"""Scoring a trained model: every list of the split, the metrics, the floors, a gallery and the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer

from anomaly_lab.config import Config, hash_of
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.leakage import find_leaks, thumbnails
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
from anomaly_lab.files import read_json, write_json
from anomaly_lab.metrics.evaluation import Gathered
from anomaly_lab.metrics.floors import floors
from anomaly_lab.metrics.image import defective_floor, image_metrics
from anomaly_lab.metrics.pixel import at_largest_gap, missing_pixels, pixel_metrics
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.ranks import rank
from anomaly_lab.reporting.figures import draw_all, leakage_figure
from anomaly_lab.reporting.segmentations import best_median_worst
from anomaly_lab.single import pictures, seconds_per_image
from anomaly_lab.trainer import make_trainer

_FLOOR_VERSION = 2  # raised when the floors or the leakage report change
_FLOOR_SIZE = 112  # the floors look at grey images of this side, whatever the model's size
_FLOOR_IMAGES = 5000  # of training, and of test, that they compare, each with each
_PIXEL_SCALED = ("max", "top")  # scores that are a pixel's value, or a mean of a few
_GALLERY = 10  # images from each end of the normal and of the defective test images


def score(config: Config, data: DefectDataModule, model: AnomalyModel, output: Path, splits: Path) -> dict[str, Any]:
    """Score every list but the pool to train on; writes scores.csv (of the others scores-val.csv and so on),
    predictions/ and figures/ into `output`.

    Also leakage.json; what is known of the split is kept in the folder `splits`. Returns what metrics.json holds:
    `metrics`, `reasons` and `seconds`; of several processes that score together only the first one does all this.
    """
    plan = data.plan
    trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    names = [name for name in ("labelled", "val", "tune", "test") if plan.split.lists.get(name)]
    if plan.load.labels == "synthetic":  # as if nothing were labelled
        names = [name for name in names if name != "labelled"]
    threshold, reason, found = _pixel_threshold(trainer, model, data, names)
    found |= {name: _evaluate(trainer, model, data, name, threshold) for name in names if name not in found}
    if rank() > 0:
        return {}
    tables = {name: _table(plan.split.lists[name], model, gathered) for name, gathered in found.items()}
    test = tables["test"]
    metrics, reasons = image_metrics(
        test,
        val=tables.get("val"),
        tune=tables.get("tune"),
        quantile=config["val_quantile"],
        threshold=model.pixel_threshold if model.primary_score in _PIXEL_SCALED else None,
    )
    if model.has_map:
        metrics["pixel_threshold_rule"] = "largest_gap" if model.pixel_threshold is None else "method"
        for name, prefix in (("val", "val_"), ("tune", "tune_"), ("labelled", "train_"), ("test", "")):
            if name in found:
                of_set, why = pixel_metrics(found[name].pixels, where=name, no_threshold=reason)
                chosen_ones = of_set if name == "test" else [f"pixel_{end}" for end in ("miou", "iou_defect", "auroc")]
                metrics |= {f"{prefix}{key}": of_set[key] for key in chosen_ones}
                reasons |= {f"{prefix}{key}": why[key] for key in chosen_ones if key in why}
    model.to(trainer.strategy.root_device)  # from where the test brought it back
    about = describe_split(plan, splits)
    metrics, reasons = metrics | about["metrics"], reasons | about["reasons"]

    for name, table in tables.items():
        temporary = output / ".scores.csv"
        table.to_csv(temporary)
        temporary.replace(output / ("scores.csv" if name == "test" else f"scores-{name}.csv"))
    if config["predictions"] != "none":
        chosen = test.index if config["predictions"] == "all" else _gallery(test)
        folder = output / "predictions"
        folder.mkdir(exist_ok=True)
        with trainer.precision_plugin.forward_context():
            shown = pictures(model, data, chosen)
        _save_arrays(folder / "gallery.npz", shown)
        latents = {name: found["test"].columns[name].astype(np.float32) for name in model.latent_names}
        if latents:
            _save_arrays(folder / "latents.npz", {"index": test.index, "label": test.label, **latents})
    write_json(output / "leakage.json", about["leakage"])
    draw_all(output, metrics)
    _draw_leaks(about["leakage"]["pairs"], data.store, output / "figures" / "leakage.png")
    with trainer.precision_plugin.forward_context():
        seconds = {"per_image": seconds_per_image(model, data)}
    return {"metrics": metrics, "reasons": reasons, "seconds": seconds}


def _pixel_threshold(
    trainer: Trainer, model: AnomalyModel, data: DefectDataModule, names: Sequence[str]
) -> tuple[float | None, str, dict[str, Gathered]]:
    """Where a pixel is called defective, or why that is not known, and what was scored to find it.

    The method's own, or the one of largest TPR - FPR (P2 section 4.3) on the labelled training images, or where these
    have no defect on val's painted ones, of which `names` says what is to be scored; never on the test images.
    """
    if model.pixel_threshold is not None or not model.has_map:
        return model.pixel_threshold, "", {}
    reason = "no labelled images and no val to take a threshold from"
    for name in ("labelled", "val"):
        if name in names:
            found = _evaluate(trainer, model, data, name, None)
            if reason := missing_pixels(found.pixels, name) or "":
                continue
            pixels = at_largest_gap(found.pixels)
            # val may be long; the labelled images are few, and their rows are to have their counts
            return pixels.threshold, "", {"val": replace(found, pixels=pixels)} if name == "val" else {}
    return None, reason, {}


def describe_split(plan: DataPlan, folder: Path) -> dict[str, Any]:
    """The floors and the leakage report of a split, computed once and kept in `folder` beside its runs."""
    key = {
        "data": plan.sha256,
        "resize": plan.load.resize,
        "max_value": plan.load.max_value,
        "version": _FLOOR_VERSION,
        **({"roi": list(plan.load.roi)} if plan.load.roi else {}),
    }
    whole_train, whole_test = plan.pool("all"), plan.split.lists["test"]
    if is_large := max(len(whole_train), len(whole_test)) > _FLOOR_IMAGES:
        key["drawn"] = _FLOOR_IMAGES
    path = folder / f"{hash_of(key)[:8]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):  # missing or damaged: computed anew
        kept: dict[str, Any] = read_json(path)
        if kept["key"] == key:
            return kept
    store = plan.store(_FLOOR_SIZE)
    train, test = _some(whole_train), _some(whole_test)
    train_grey, test_grey = (_greys(store, records) for records in (train, test))
    unlabelled = {record.path for record in plan.pool("unlabelled")}
    pool = train_grey[[record.path in unlabelled for record in train]]
    metrics, reasons = floors(pool, test_grey, np.array([record.label for record in test]))
    knows_parts = plan.split.options.keeps_parts and any(record.group for record in (*train, *test))
    leaks = find_leaks(thumbnails(train_grey), thumbnails(test_grey), [r.path for r in train], [r.path for r in test])
    sentence = leaks.sentence(by_group=knows_parts)
    if is_large:
        drawn = f"{len(train):,} training and {len(test):,} test images drawn at random"
        sentence = f"For floors and near-duplicates only {drawn} were looked at; there may be others. {sentence}"
        if metrics["floor_all_f1"] is not None:
            metrics["floor_all_f1"] = defective_floor(np.array([record.label for record in whole_test]))
    found = {
        "key": key,
        "metrics": metrics,
        "reasons": reasons,
        "leakage": leaks.to_json() | {"sentence": sentence},
    }
    write_json(path, found)
    return found


def _some(records: tuple[Record, ...]) -> tuple[Record, ...]:
    """At most `_FLOOR_IMAGES` of the records, drawn with a fixed seed, in their order; as many as can be are defective,
    up to half of them."""
    if len(records) <= _FLOOR_IMAGES:
        return records
    shuffled = np.random.default_rng(0).permutation(len(records)).tolist()
    normal, defective = ([i for i in shuffled if records[i].label == label] for label in (0, 1))
    count = min(len(defective), max(_FLOOR_IMAGES // 2, _FLOOR_IMAGES - len(normal)))
    return tuple(records[i] for i in sorted(normal[: _FLOOR_IMAGES - count] + defective[:count]))


def _save_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _evaluate(
    trainer: Trainer, model: AnomalyModel, data: DefectDataModule, name: str, threshold: float | None
) -> Gathered:
    model.evaluation.start(data.tiling, data.frames(name), threshold, data.plan.is_quartered)
    trainer.test(model, data.loader(name), verbose=False)
    return model.evaluation.compute()


def _table(records: tuple[Record, ...], model: AnomalyModel, found: Gathered) -> ScoreTable:
    return ScoreTable(
        index=np.arange(len(records)),
        path=[record.path for record in records],
        label=np.array([record.label for record in records]),
        defect=[record.defect for record in records],
        group=[record.part_of for record in records],
        scores={name: found.columns[name] for name in model.score_names},
        primary=model.primary_score,
        counts=found.counts,
    )


def _gallery(test: ScoreTable) -> npt.NDArray[np.int64]:
    """Rows of the highest and lowest scores among the normal and the defective images, and of some segmentations."""
    order = np.argsort(test.primary_scores, kind="stable")
    chosen = [np.array(rows, np.int64) for rows in best_median_worst(test).values()]
    for label in (0, 1):
        rows = order[test.label[order] == label]
        chosen += [rows[:_GALLERY], rows[-_GALLERY:]]
    return np.unique(np.concatenate(chosen))


def _greys(store: ImageStore, records: tuple[Record, ...]) -> npt.NDArray[np.uint8]:
    store.prepare(records)
    return np.stack([store.load(record)[0].mean(-1).round().astype(np.uint8) for record in records])


def _draw_leaks(pairs: list[dict[str, Any]], store: ImageStore, path: Path) -> None:
    if not pairs:
        return

    def image(name: str) -> npt.NDArray[np.uint8]:
        return store.load(Record(name))[0]

    shown = [
        (image(p["train_path"]), image(p["test_path"]), p["correlation"], p["train_path"], p["test_path"])
        for p in pairs[:8]
    ]
    leakage_figure(shown).savefig(path, dpi=120)
