import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from anomaly_lab.data import matlab
from anomaly_lab.data.matlab import read_field

REAL = Path(os.environ.get("ANOMALY_LAB_DATA", "/nonexistent")) / "crackforest"
VALUES = np.arange(6, dtype=np.uint8).reshape(2, 3)
TYPES = [*(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)), "f4", "f8"]


def saved(variables, compressed=False):
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@given(
    st.sampled_from(TYPES),
    st.lists(st.integers(0, 5), min_size=2, max_size=3),
    st.integers(0, 2**32),
    st.booleans(),
    st.text("abcdefg_", min_size=1, max_size=30).filter(lambda name: not name.startswith("_")),
)
def test_arrays_are_read_as_scipy_reads_them(kind, shape, seed, compressed, field):
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(kind)
    data = saved({"first": 1.0, "it": {"other": "text", field + "x": VALUES, field: values}}, compressed)
    expected = loadmat(io.BytesIO(data))["it"][field][0, 0]
    found = read_field(data, "it", field)
    assert np.array_equal(found, expected)
    assert np.array_equal(found, values)


@pytest.mark.skipif(not REAL.is_dir(), reason="ANOMALY_LAB_DATA has no CrackForest")
def test_the_real_files_are_read_as_scipy_reads_them():
    for path in sorted((REAL / "groundTruth").glob("*.mat")):
        truth = loadmat(path)["groundTruth"]
        for field in ("Segmentation", "Boundaries"):
            assert np.array_equal(read_field(path.read_bytes(), "groundTruth", field), truth[field][0, 0])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"other": VALUES}, "there is no it in it"),
        ({"it": VALUES}, "no struct of one element"),
        ({"it": [{"a": VALUES}, {"a": VALUES}]}, "no struct of one element"),
        ({"it": {"b": VALUES}}, "no field a"),
        ({"it": {"a": "text"}}, "no real numbers"),
        ({"it": {"a": {"b": VALUES}}}, "no real numbers"),
        ({"it": {"a": VALUES * 1j}}, "no real numbers"),
    ],
)
def test_what_is_not_there_is_said(variables, message):
    with pytest.raises(ValueError, match=message):
        read_field(saved(variables), "it", "a")


@pytest.mark.parametrize(
    "data", [b"", b"text" * 99, b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", bytes(124) + b"\x01\x00MI"]
)
def test_a_file_of_another_kind_is_refused(data):
    with pytest.raises(ValueError, match="not a little-endian MATLAB file of level 5"):
        read_field(data, "it", "a")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_ends_anywhere_is_refused(compressed):
    data = saved({"it": {"a": VALUES, "b": VALUES}}, compressed)
    for length in range(len(data)):
        with pytest.raises(ValueError):  # noqa: PT011  # each length has a text of its own
            read_field(data[:length], "it", "a")


@given(st.lists(st.tuples(st.integers(124, 600), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_damaged_file_gives_numbers_or_a_value_error(changes, compressed):
    data = bytearray(saved({"it": {"a": np.tile(VALUES, (9, 9)), "b": VALUES}}, compressed))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = read_field(bytes(data), "it", "a")
    except ValueError:
        return
    assert found.nbytes <= len(data) or compressed


def test_little_data_that_would_inflate_to_much_is_refused(monkeypatch):
    data = saved({"it": {"a": np.zeros((1000, 1000), np.uint8)}}, compressed=True)
    assert len(data) < 2000
    assert read_field(data, "it", "a").size == 1_000_000
    monkeypatch.setattr(matlab, "INFLATED_MAX", 1_000_000)
    with pytest.raises(ValueError, match="cut short or too large"):
        read_field(data, "it", "a")
