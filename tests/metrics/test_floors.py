import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from anomaly_lab.data.leakage import thumbnails
from anomaly_lab.metrics import floors as module
from anomaly_lab.metrics.floors import floors, knn_scores, pca_scores


def standard(images):
    flat = images.reshape(len(images), -1).astype(np.float64)
    return (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)


def pictures(count, seed, spot=False):
    """Grey images of a shared pattern, with noise; with a bright spot if asked for."""
    pattern = np.random.default_rng(99).normal(size=(112, 112)).cumsum(0).cumsum(1)
    rng = np.random.default_rng(seed)
    images = 120 + 40 * pattern / pattern.std() + rng.normal(0, 4, (count, 112, 112))
    if spot:
        images[:, 40:60, 40:60] += 60
    return images.clip(0, 255).astype(np.uint8)


def test_nearest_neighbour_is_that_of_scipy():
    rng = np.random.default_rng(0)
    train, test = rng.random((9, 32, 32)), rng.random((5, 32, 32))
    np.testing.assert_allclose(knn_scores(train, test), cdist(standard(test), standard(train)).min(1), rtol=1e-5)


def test_nearest_neighbour_sees_no_exposure_and_finds_itself():
    rng = np.random.default_rng(0)
    train = rng.random((9, 32, 32))
    assert knn_scores(train, 0.3 * train[:2] + 7) == pytest.approx([0, 0], abs=0.05)  # 45 between random images


@pytest.mark.parametrize("components", [3, 200])
def test_pca_residual_is_that_of_a_plain_svd(components):
    rng = np.random.default_rng(0)
    train, test = rng.random((12, 300)), rng.random((600, 300))
    a, b = standard(train), standard(test)
    mean = a.mean(0)
    basis = np.linalg.svd(a - mean, full_matrices=False)[2][: min(components, 11)]
    residual = (b - mean) - (b - mean) @ basis.T @ basis
    np.testing.assert_allclose(pca_scores(train, test, components), np.linalg.norm(residual, axis=1), rtol=1e-4)


def test_a_randomised_decomposition_repeats_and_comes_near(monkeypatch):
    train, test = pictures(30, 0).reshape(30, -1), pictures(10, 1).reshape(10, -1)
    exact = pca_scores(train, test, 5)
    monkeypatch.setattr(module, "_FULL_SVD", 10)
    first = pca_scores(train, test, 5)
    np.testing.assert_array_equal(first, pca_scores(train, test, 5))
    np.testing.assert_allclose(first, exact, rtol=0.02)
    assert (first != exact).any()


def test_floors_of_visible_defects_are_high_and_those_of_none_are_chance():
    labels = np.repeat([0, 1], [30, 40])
    spots = np.concatenate([pictures(30, 1), pictures(40, 2, spot=True)])
    metrics, reasons = floors(pictures(25, 0), spots, labels)
    assert reasons == {}
    assert metrics["floor_knn_auroc"] == metrics["floor_pca_auroc"] == 1
    assert metrics["floor_all_f1"] == pytest.approx(80 / 110)
    metrics, _ = floors(pictures(25, 0), pictures(70, 1), labels)
    assert abs(metrics["floor_knn_auroc"] - 0.5) < 0.2
    assert abs(metrics["floor_pca_auroc"] - 0.5) < 0.2


def test_floors_are_the_aurocs_of_their_scores():
    train, test, labels = pictures(6, 0), pictures(20, 1), np.arange(20) % 2
    metrics, _ = floors(train, test, labels)
    assert metrics["floor_knn_auroc"] == roc_auc_score(labels, knn_scores(thumbnails(train), thumbnails(test)))
    assert metrics["floor_pca_auroc"] == roc_auc_score(labels, pca_scores(train.reshape(6, -1), test.reshape(20, -1)))


@pytest.mark.parametrize(("label", "missing"), [(0, "defective"), (1, "normal")])
def test_a_test_set_of_one_class_has_no_floors(label, missing):
    metrics, reasons = floors(pictures(3, 0), pictures(4, 1), np.full(4, label))
    assert [*metrics.values()] == [None] * 3
    assert reasons == dict.fromkeys(metrics, f"no {missing} images in test")


@pytest.mark.parametrize(("count", "missing"), [(0, ["floor_knn_auroc", "floor_pca_auroc"]), (1, ["floor_pca_auroc"])])
def test_few_training_images_leave_reasons(count, missing):
    metrics, reasons = floors(pictures(count, 0), pictures(4, 1), np.array([0, 1, 0, 1]))
    assert sorted(reasons) == missing == sorted(name for name, value in metrics.items() if value is None)


def test_equal_and_constant_images_do_not_crash():
    labels = np.array([0, 0, 1, 1])
    test = np.concatenate([np.full((2, 112, 112), 9, np.uint8), pictures(2, 1)])
    for train in (np.full((3, 112, 112), 200, np.uint8), np.repeat(pictures(1, 0), 3, axis=0)):
        metrics, reasons = floors(train, test, labels)
        assert reasons == {}
        assert all(0 <= value <= 1 for value in metrics.values())
    assert floors(np.full((3, 112, 112), 200, np.uint8), test, labels)[0]["floor_pca_auroc"] == 1
