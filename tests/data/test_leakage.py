import json

import cv2
import numpy as np
import pytest

from anomaly_lab.data import leakage
from anomaly_lab.data.leakage import find_leaks, standardised, thumbnails


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 32, 32))


def names(prefix, count):
    return [f"{prefix}/{row}.png" for row in range(count)]


def test_thumbnails_are_area_averages():
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 80), dtype=np.uint8)
    small = np.stack([cv2.resize(i.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA) for i in images])
    flat = small.reshape(3, -1)
    expected = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    np.testing.assert_allclose(thumbnails(images).reshape(3, -1), expected, atol=1e-5)


def test_a_constant_image_becomes_zeros():
    images = np.stack([np.full((112, 112), value, np.uint8) for value in (0, 1, 100, 255)])
    assert not thumbnails(images).any()
    images[1, 50, 50] = 2  # the least that a pixel can differ
    assert thumbnails(images)[1].std() == pytest.approx(1, abs=1e-3)


def test_standardising_twice_changes_nothing_and_no_images_stay_none():
    once = standardised(noise(4) * 50 + 1000)
    np.testing.assert_allclose(standardised(once), once, atol=1e-5)
    np.testing.assert_allclose(once.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(once.std((1, 2)), 1, atol=1e-5)
    assert thumbnails(np.zeros((0, 112, 112), np.uint8)).shape == (0, 32, 32)


@pytest.mark.parametrize("block", [3, 1024])
def test_leaks_are_those_of_the_full_correlation_matrix(monkeypatch, block):
    monkeypatch.setattr(leakage, "_BLOCK", block)
    train, test = noise(20), noise(11, seed=1)
    test[4] = train[17] * 3 + 5 + noise(1, seed=2)[0]  # another exposure
    test[9] = train[2] + 0.1 * noise(1, seed=3)[0]
    full = np.corrcoef(test.reshape(11, -1), train.reshape(20, -1))[:11, 11:]
    report = find_leaks(train, test, names("train", 20), names("test", 11), threshold=0.9)
    assert (report.test_count, report.leaked_test_count, report.identical_test_count) == (11, 2, 0)
    assert [(pair.train_path, pair.test_path) for pair in report.pairs] == [
        ("train/2.png", "test/9.png"),
        ("train/17.png", "test/4.png"),
    ]
    assert [pair.correlation for pair in report.pairs] == pytest.approx([full[9, 2], full[4, 17]], abs=1e-5)


def test_the_threshold_decides():
    train = noise(1)
    test = train + 0.3 * noise(1, seed=1)
    truth = np.corrcoef(train.ravel(), test.ravel())[0, 1]
    for threshold, count in ((truth - 0.001, 1), (truth + 0.001, 0)):
        assert find_leaks(train, test, ["a"], ["b"], threshold).leaked_test_count == count


def test_identical_images_are_called_so_and_stand_first():
    train = thumbnails(np.random.default_rng(0).integers(0, 256, (5, 112, 112), dtype=np.uint8))
    test = np.stack([train[3] + np.float32(1e-4) * noise(1)[0].astype(np.float32), train[1]])
    report = find_leaks(train, test, names("train", 5), names("test", 2))
    assert [pair.identical for pair in report.pairs] == [True, False]
    assert report.pairs[0].test_path == "test/1.png"
    assert all(pair.correlation <= 1 for pair in report.pairs)
    sentence = report.sentence()
    assert sentence.startswith("2 of 2 test images have a near-duplicate in training")
    assert "1 of them identical" in sentence
    assert "dataset.group_regex" in sentence
    assert "dataset.split=by_group" in sentence
    assert "train/1.png and test/1.png" in sentence
    known = report.sentence(by_group=True)
    assert "by this split's groups" in known
    assert "dataset.split" not in known, "no advice that changes nothing"


def test_one_pair_for_each_test_image_and_fifty_at_most():
    train = noise(1)
    test = np.repeat(train, 60, axis=0)
    report = find_leaks(np.repeat(train, 2, axis=0), test, names("train", 2), names("test", 60))
    assert (report.leaked_test_count, report.identical_test_count, len(report.pairs)) == (60, 60, 50)
    assert len({pair.test_path for pair in report.pairs}) == 50


@pytest.mark.parametrize(("trained", "tested"), [(0, 3), (3, 0), (0, 0), (3, 3)])
def test_nothing_alike_is_said_in_a_sentence(trained, tested):
    report = find_leaks(noise(trained), noise(tested, 1), names("train", trained), names("test", tested))
    assert report.leaked_test_count == 0
    assert report.sentence() == "No test image has a near-duplicate in training (thumbnail correlation over 0.95)."


def test_blank_images_are_no_duplicates():
    blank = np.zeros((2, 32, 32))
    assert find_leaks(blank, blank, names("train", 2), names("test", 2)).leaked_test_count == 0


def test_the_report_is_plain_json():
    report = find_leaks(noise(2), noise(2)[:1], names("train", 2), names("test", 1))
    read = json.loads(json.dumps(report.to_json()))
    assert read == report.to_json()
    assert read["pairs"][0] == {
        "train_path": "train/0.png", "test_path": "test/0.png", "correlation": pytest.approx(1), "identical": True
    }  # fmt: skip
