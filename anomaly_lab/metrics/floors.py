"""What needs no method: the scores of trivial ones, for every number to stand beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_lab.data.leakage import standardised, thumbnails
from anomaly_lab.metrics.image import defective_floor, missing_class

_FULL_SVD = 1000  # training images up to which the exact decomposition takes seconds
_BLOCK = 256


def knn_scores(train: npt.NDArray[Any], test: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Euclidean distance (M,) of each test thumbnail (M, 32, 32) to the nearest of training (N, 32, 32).

    Each thumbnail is standardised first, since exposures differ.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    flat = [standardised(images).reshape(len(images), -1) for images in (test, train)]
    distances: npt.NDArray[np.float64] = pairwise_distances_argmin_min(*flat)[1].astype(np.float64)
    return distances


def pca_scores(train: npt.NDArray[Any], test: npt.NDArray[Any], components: int = 200) -> npt.NDArray[np.float64]:
    """Norm (M,) of what the first principal components of training (N, D) leave of each test image (M, D).

    Each image is standardised. There are at most N - 1 components; repeated calls give equal scores, also
    for more than 1000 training images, where the decomposition is a randomised one of fixed seed.
    """
    from sklearn.decomposition import PCA

    train, test = standardised(train), standardised(test)
    if not (train != train[0]).any():  # equal images have a mean and no components
        distance: npt.NDArray[np.float64] = np.linalg.norm(test - train[0], axis=1).astype(np.float64)
        return distance
    solver = "full" if len(train) <= _FULL_SVD else "randomized"
    pca = PCA(n_components=min(components, len(train) - 1), svd_solver=solver, random_state=0).fit(train)
    scores = np.empty(len(test), np.float64)
    for start in range(0, len(test), _BLOCK):
        block = test[start : start + _BLOCK]
        scores[start : start + _BLOCK] = np.linalg.norm(block - pca.inverse_transform(pca.transform(block)), axis=1)
    return scores


def floors(
    train_images: npt.NDArray[np.uint8], test_images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The floors of a split, as (metrics, reasons): `floor_knn_auroc`, `floor_pca_auroc`, `floor_all_f1`.

    Takes grey images (N, 112, 112) of training and (M, 112, 112) of test with labels (M,), 1 = defective. A floor
    that cannot be computed is None, with its reason.
    """
    from sklearn.metrics import roc_auc_score

    metrics: dict[str, float | None] = {"floor_knn_auroc": None, "floor_pca_auroc": None, "floor_all_f1": None}
    if reason := missing_class(labels):
        return metrics, dict.fromkeys(metrics, reason)
    metrics["floor_all_f1"] = defective_floor(labels)
    reasons = {}
    if len(train_images) < 1:
        reasons["floor_knn_auroc"] = "there are no training images to be near to"
    else:
        metrics["floor_knn_auroc"] = float(
            roc_auc_score(labels, knn_scores(thumbnails(train_images), thumbnails(test_images)))
        )
    if len(train_images) < 2:
        reasons["floor_pca_auroc"] = "fewer than two training images have no principal component"
    else:
        train, test = (images.reshape(len(images), -1) for images in (train_images, test_images))
        metrics["floor_pca_auroc"] = float(roc_auc_score(labels, pca_scores(train, test)))
    return metrics, reasons
