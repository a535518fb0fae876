"""Figures that show images of datasets: an experiment's, beside what its runs left, and what a run is taught."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.data.plan import DataPlan
from anomaly_lab.experiment import Cell, Figure
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.reporting.paper_figures import Tile, grid_figure, latents_figure, lines_figure, roc_figure
from anomaly_lab.reporting.reproduction import IMPORTED, Reproduction
from anomaly_lab.runs import Run
from anomaly_lab.types import DEFECTIVE

if TYPE_CHECKING:
    from matplotlib import figure

    from anomaly_lab.data.datamodule import DefectDataModule

Runs = Mapping[tuple[str, str], Sequence[Run]]  # (dataset, method) -> its finished runs by seed
Plans = Mapping[str, DataPlan]  # dataset -> its split of the first seed

_EACH = 4  # images in a row of examples or of augmentations
_TAUGHT = 4  # images in a row of synthesised defects, each without its line and with it
_TINT = (255, 220, 0)  # of what is marked
_SHOWN = 224  # their side in pixels


def draw(found: Reproduction, runs: Runs, plans: Plans) -> figure.Figure | None:
    """The figure that the experiment asks for, of the datasets that are there; None where none is."""
    drawers: dict[Figure, Callable[[], figure.Figure | None]] = {
        "roc": lambda: _roc(found, runs),
        "lines": lambda: _lines(found),
        "latents": lambda: _latents(found, runs),
        "examples": lambda: _examples(found, plans),
        "reconstructions": lambda: _reconstructions(found, runs),
        "augmentations": lambda: _augmentations(found, plans),
        "segmentations": lambda: _segmentations(found, runs),
    }
    asked = found.experiment.figure
    return None if asked is None else drawers[asked]()


def draw_synthesised(data: DefectDataModule) -> figure.Figure:
    """What a run is taught to be defects, as it comes in training: a row of images for each kind that is synthesised.

    The images are spread over the training's, their contrast stretched, and what is marked is tinted too: a large part
    may have its line along the border. An image may lack both: nothing was visibly changed, and nothing is marked.
    """
    dataset = data.training_dataset("labelled")
    assert dataset.synthesis is not None, "asked for of a plan that synthesises"
    kinds = dataset.synthesis.kinds
    normal = [index for index, record in enumerate(dataset.records) if not record.label]
    rows: dict[str, Sequence[Tile | None]] = {}
    for kind in kinds:
        dataset.synthesis = replace(dataset.synthesis, kinds=(kind,), share=1.0)
        samples = [dataset[0, normal[turn * len(normal) // _TAUGHT], turn] for turn in range(_TAUGHT)]
        rows[kind] = [tile for s in samples for tile in _with_and_without(s["image"], s["mask"])]
    note = (
        "tinted, within the line: what is taught to be a defect; neither: the change is too faint to be seen or marked"
    )
    return grid_figure(rows, ["image", "marked"] * _TAUGHT, "Synthesised defects", note)


def _with_and_without(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> Iterator[Tile]:
    low, high = np.percentile(image, (0.5, 99.5))
    stretched = np.clip((image - low) / max(high - low, 1) * 255, 0, 255)
    yield Tile(stretched.astype(np.uint8))
    tinted = np.where((mask == DEFECTIVE)[..., None], 0.75 * stretched + 0.25 * np.array(_TINT), stretched)
    yield Tile(tinted.astype(np.uint8), mask)


def _title(found: Reproduction) -> str:
    return f"{found.experiment.title} ({found.experiment.source})"


def _roc(found: Reproduction, runs: Runs) -> figure.Figure | None:
    tables: dict[str, dict[str, list[ScoreTable]]] = {}
    for (dataset, method), of_seeds in runs.items():
        read = [ScoreTable.from_csv(run.scores_file) for run in of_seeds]
        tables.setdefault(dataset, {})[method] = [table for table in read if len(np.unique(table.label)) == 2]
    return roc_figure(tables, _title(found)) if tables else None


def _lines(found: Reproduction) -> figure.Figure | None:
    experiment = found.experiment
    metric, *_ = experiment.metrics
    methods = [name for name in experiment.methods if not name.endswith(IMPORTED)]  # which have no place on the axis
    cells = {d: {m: Cell(d, m, metric) for m in methods} for d in experiment.datasets}
    spreads = {d: {m: found.spread(cell) for m, cell in of.items()} for d, of in cells.items()}
    printed = {
        d: {m: next(iter(values.values())) for m, cell in of.items() if (values := experiment.printed_at(cell))}
        for d, of in cells.items()
    }
    floors = {d: found.spread(Cell(d, "floor: nearest thumbnail", metric)) for d in experiment.datasets}
    known = {d: floor.mean for d, floor in floors.items() if floor is not None}
    if not any(spread for of in spreads.values() for spread in of.values()):
        return None
    return lines_figure(spreads, printed, known, _title(found), f"{metric}, mean ± standard deviation over seeds")


def _latents(found: Reproduction, runs: Runs) -> figure.Figure | None:
    for of_seeds in runs.values():
        for run in of_seeds:
            path = run.path / "predictions" / "latents.npz"
            if path.exists():
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    z, z_hat, label = (stored[name] for name in ("z", "z_hat", "label"))
                return latents_figure(z, z_hat, label, _title(found))
    return None


def _examples(found: Reproduction, plans: Plans) -> figure.Figure | None:
    rows: dict[str, Sequence[Tile | None]] = {}
    for dataset, plan in plans.items():
        store = plan.store(_SHOWN)
        for kind, label in (("normal", 0), ("defective", 1)):
            records = [record for record in plan.split.lists["test"] if int(bool(record.label)) == label]
            of_type: dict[str, list[Any]] = {}
            for record in records:
                of_type.setdefault(record.defect, []).append(record)
            chosen = [group[rank] for rank in range(_EACH) for group in of_type.values() if rank < len(group)][:_EACH]
            rows[f"{dataset}, {kind}"] = [Tile(*store.load(record)) for record in chosen]
    return grid_figure(rows, [""] * _EACH, _title(found), "yellow line: the defect's mask") if rows else None


def _augmentations(found: Reproduction, plans: Plans) -> figure.Figure | None:
    from anomaly_lab.data.datamodule import DefectDataModule

    rows: dict[str, Sequence[Tile | None]] = {}
    for dataset, plan in plans.items():
        data = DefectDataModule(plan, 0)
        data.prepare()
        labelled = data.training_dataset("labelled")
        index = next((i for i, record in enumerate(labelled.records) if record.label), 0)
        drawn = [labelled[epoch, index, 0] for epoch in range(_EACH)]
        rows[dataset] = [
            Tile(*labelled.whole(index)),
            *(Tile(sample["image"], sample["mask"]) for sample in drawn),
        ]
    names = ["as it is", *(f"epoch {number + 1}" for number in range(_EACH))]
    return grid_figure(rows, names, _title(found), "yellow line: the defect's mask") if rows else None


def _reconstructions(found: Reproduction, runs: Runs) -> figure.Figure | None:
    rows: dict[str, Sequence[Tile | None]] = {}
    for (dataset, _), of_seeds in runs.items():
        if of_seeds and (gallery := _gallery(of_seeds[0])):
            place = _defective(gallery)
            rows[dataset] = [*_made(gallery, place), _truth(gallery, place)]
    return grid_figure(rows, ["image", "reconstruction", "difference", "truth"], _title(found)) if rows else None


def _segmentations(found: Reproduction, runs: Runs) -> figure.Figure | None:
    """The image of each dataset that most methods kept, and where each of them calls it defective."""
    experiment = found.experiment
    rows: dict[str, Sequence[Tile | None]] = {}
    for dataset in experiment.datasets:
        by_seed: dict[int, dict[str, Run]] = {}  # one seed's: another one tests other images
        for method in experiment.methods:
            for run in runs.get((dataset, method), ()):
                by_seed.setdefault(run.read()["seed"], {})[method] = run
        of_method = max(by_seed.values(), key=len, default={})
        galleries = {m: gallery for m, run in of_method.items() if (gallery := _gallery(run))}
        if not galleries:
            continue
        kept: dict[int, tuple[int, int]] = {}  # image -> how many methods kept it, and its defective pixels
        for gallery in galleries.values():
            for image, area in zip(gallery["index"].tolist(), (gallery["mask"] == 1).sum((1, 2)).tolist(), strict=True):
                if area:
                    kept[image] = (kept.get(image, (0, 0))[0] + 1, area)
        if not kept:
            continue
        index = max(kept, key=lambda image: (kept[image], image))
        places = {m: np.flatnonzero(g["index"] == index) for m, g in galleries.items()}
        here = {m: int(place[0]) for m, place in places.items() if len(place)}
        made = next((m for m in reversed(here) if "reconstruction" in galleries[m]), next(iter(here)))
        tiles: list[Tile | None] = [*_made(galleries[made], here[made]), _truth(galleries[made], here[made])]
        for method in experiment.methods:
            threshold = of_method[method].read()["metrics"].get("pixel_threshold") if method in here else None
            marked = None if threshold is None else galleries[method]["anomaly_map"][here[method]] >= threshold
            tiles.append(None if marked is None else _mask(marked))
        rows[dataset] = tiles
    columns = ["image", "reconstruction", "difference", "truth", *experiment.methods]
    return grid_figure(rows, columns, _title(found), "white: called defective") if rows else None


def _gallery(run: Run) -> dict[str, npt.NDArray[Any]]:
    from anomaly_lab.reporting.figures import read_gallery

    return read_gallery(run.path / "predictions" / "gallery.npz")


def _defective(gallery: Mapping[str, npt.NDArray[Any]]) -> int:
    """The place of the image with the largest defect, or the first one where none is known."""
    return int((gallery["mask"] == 1).sum((1, 2)).argmax()) if "mask" in gallery else 0


def _made(gallery: Mapping[str, npt.NDArray[Any]], place: int) -> list[Tile | None]:
    image = gallery["image"][place]
    if "reconstruction" not in gallery:
        return [Tile(image), None, None]
    made = gallery["reconstruction"][place]
    difference = np.abs(image.astype(np.int16) - made).mean(-1)
    look = {"cmap": "magma", "vmin": 0, "vmax": max(float(np.percentile(difference, 99.8)), 1.0)}
    return [Tile(image), Tile(made), Tile(difference, look=look)]


def _truth(gallery: Mapping[str, npt.NDArray[Any]], place: int) -> Tile | None:
    return _mask(gallery["mask"][place] == 1) if "mask" in gallery else None


def _mask(marked: npt.NDArray[np.bool_]) -> Tile:
    return Tile(np.where(marked, 255, 0), look={"cmap": "gray", "vmin": 0, "vmax": 255})
