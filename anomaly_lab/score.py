"""Scoring a trained model: every list of the split, the metrics, the floors, a gallery and the figures."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Trainer

from anomaly_lab.config import Config, hash_of
from anomaly_lab.data.datamodule import DefectDataModule, SplitDataset, collate
from anomaly_lab.data.leakage import find_leaks, thumbnails
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
from anomaly_lab.metrics.floors import floors
from anomaly_lab.metrics.image import image_metrics
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.models.base import AnomalyModel
from anomaly_lab.reporting.figures import draw_all, leakage_figure
from anomaly_lab.runs import write_json
from anomaly_lab.trainer import make_trainer

_FLOOR_VERSION = 1  # raised when the floors or the leakage report change
_FLOOR_SIZE = 112  # the floors look at grey images of this side, whatever the model's size
_GALLERY = 10  # images from each end of the normal and of the defective test images


def score(config: Config, data: DefectDataModule, model: AnomalyModel, output: Path, splits: Path) -> dict[str, Any]:
    """Score every list but the training one; writes scores.csv (of val and tune: scores-val.csv, scores-tune.csv),
    predictions/ and figures/ into `output`.

    Also leakage.json; what is known of the split is kept in the folder `splits`. Returns what metrics.json holds:
    `metrics`, `reasons` and `seconds`.
    """
    plan = data.plan
    trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    columns = {name: _evaluate(trainer, model, data, name) for name in ("val", "tune", "test") if _has(plan, name)}
    tables = {name: _table(plan.split.lists[name], model, found) for name, found in columns.items()}
    test = tables["test"]
    metrics, reasons = image_metrics(
        test, val=tables.get("val"), tune=tables.get("tune"), quantile=config["val_quantile"]
    )
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
        _save_arrays(folder / "gallery.npz", _pictures(model, data, chosen))
        latents = {name: columns["test"][name].astype(np.float32) for name in model.latent_names}
        if latents:
            _save_arrays(folder / "latents.npz", {"index": test.index, "label": test.label, **latents})
    write_json(output / "leakage.json", about["leakage"])
    draw_all(output, metrics)
    _draw_leaks(about["leakage"]["pairs"], data.store, output / "figures" / "leakage.png")
    return {"metrics": metrics, "reasons": reasons, "seconds": {}}


def describe_split(plan: DataPlan, folder: Path) -> dict[str, Any]:
    """The floors and the leakage report of a split, computed once and kept in `folder` beside its runs."""
    key = {"data": plan.sha256, "resize": plan.load.resize, "max_value": plan.load.max_value, "version": _FLOOR_VERSION}
    path = folder / f"{hash_of(key)[:8]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):  # missing or damaged: computed anew
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept
    store = ImageStore(plan.dataset.root, _FLOOR_SIZE, plan.load.resize, plan.load.max_value)
    train, test = (plan.split.lists[name] for name in ("train_normal", "test"))
    train_grey, test_grey = (_greys(store, records) for records in (train, test))
    metrics, reasons = floors(train_grey, test_grey, np.array([record.label for record in test]))
    leaks = find_leaks(thumbnails(train_grey), thumbnails(test_grey), [r.path for r in train], [r.path for r in test])
    found = {
        "key": key,
        "metrics": metrics,
        "reasons": reasons,
        "leakage": leaks.to_json() | {"sentence": leaks.sentence()},
    }
    write_json(path, found)
    return found


def _save_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _has(plan: DataPlan, name: str) -> bool:
    return bool(plan.split.lists.get(name))


def _evaluate(
    trainer: Trainer, model: AnomalyModel, data: DefectDataModule, name: str
) -> dict[str, npt.NDArray[np.float64]]:
    trainer.test(model, data.loader(name), verbose=False)
    _, _, columns = model.gathered()
    return columns


def _table(records: tuple[Record, ...], model: AnomalyModel, columns: dict[str, npt.NDArray[np.float64]]) -> ScoreTable:
    return ScoreTable(
        index=np.arange(len(records)),
        path=[record.path for record in records],
        label=np.array([record.label for record in records]),
        defect=[record.defect for record in records],
        group=[record.part_of for record in records],
        scores={name: columns[name] for name in model.score_names},
        primary=model.primary_score,
    )


def _gallery(test: ScoreTable) -> npt.NDArray[np.int64]:
    """Rows of the highest and lowest scores among the normal and among the defective images."""
    order = np.argsort(test.primary_scores, kind="stable")
    chosen = []
    for label in (0, 1):
        rows = order[test.label[order] == label]
        chosen += [rows[:_GALLERY], rows[-_GALLERY:]]
    return np.unique(np.concatenate(chosen))


@torch.inference_mode()
def _pictures(
    model: AnomalyModel, data: DefectDataModule, chosen: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """What the model made of the chosen test images, as the figures and the report want it."""
    dataset = data.loader("test").dataset
    assert isinstance(dataset, SplitDataset)
    weight = next(model.parameters())
    model.eval()
    found: dict[str, list[npt.NDArray[Any]]] = {"index": [], "image": [], "mask": []}
    for start in range(0, len(chosen), data.plan.load.batch_size):
        samples = [dataset[0, int(index)] for index in chosen[start : start + data.plan.load.batch_size]]
        prediction = model.predict(collate(samples)["image"].to(weight.device, weight.dtype))
        found["index"].append(chosen[start : start + len(samples)])
        found["image"].append(np.stack([sample["image"] for sample in samples]))
        found["mask"].append(np.stack([sample["mask"] for sample in samples]))
        if prediction.reconstruction is not None:
            pixels = prediction.reconstruction.float().clamp(0, 1).mul(255).round().byte()
            found.setdefault("reconstruction", []).append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        if prediction.anomaly_map is not None:
            found.setdefault("anomaly_map", []).append(prediction.anomaly_map[:, 0].float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


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
