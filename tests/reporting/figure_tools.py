"""Small score tables and galleries, and what a figure says."""

import numpy as np

from anomaly_lab.metrics.scores import ScoreTable

METRICS = {"threshold": 1.0, "image_auroc_ci": [0.594, 0.688], "floor_knn_auroc": 0.65}


def make_table(normal=30, defects=None, scores=None):
    defects = {"dent": 12, "scratch": 8} if defects is None else defects
    rng = np.random.default_rng(0)
    defect = ["good"] * normal + [name for name, count in defects.items() for _ in range(count)]
    label = np.array([int(name != "good") for name in defect], np.int64)
    drawn = rng.normal(size=len(defect)) + label if scores is None else np.asarray(scores, np.float64)
    return ScoreTable(
        index=np.arange(len(defect)),
        path=[f"{name}/{row}.png" for row, name in enumerate(defect)],
        label=label,
        defect=defect,
        group=[""] * len(defect),
        scores={"RLX": drawn, "RLZ": rng.normal(size=len(defect))},
        primary="RLX",
    )


def make_gallery(index, side=(16, 16), **parts):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (len(index), *side, 3), np.uint8)
    return {"index": np.asarray(index), "image": pictures, **parts}


def full_gallery(table):
    gallery = make_gallery(table.index)
    mask = np.zeros(gallery["image"].shape[:3], np.uint8)
    mask[table.label == 1, 4:9, 5:12] = 1
    return gallery | {"reconstruction": gallery["image"] // 2, "mask": mask}


def drawn(figure):
    """Laid out and rendered: what warns or fails only when it is drawn does so here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
