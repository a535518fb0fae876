import json
import os

import pytest

from anomaly_lab.data import digests as module
from anomaly_lab.data.digests import NO_FILE, digests


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        (tmp_path / "pictures" / name).write_text(f"picture {name}")
    return tmp_path / "pictures"


def test_files_of_one_size_differ_by_what_they_hold(cache, root):
    a, b, c, none = digests(root, ["a", "b", "c", "d"])
    assert len({a, b, c}) == 3
    assert none == NO_FILE
    assert len(a) == 32
    (root / "e").write_text("picture a")
    assert digests(root, ["e", "a"]) == [a, a]


def test_a_file_is_read_again_only_if_it_changed(cache, root, monkeypatch):
    before, read = digests(root, ["a", "b"]), []
    plain = module._digest
    monkeypatch.setattr(module, "_digest", lambda root, name: read.append(name) or plain(root, name))
    assert digests(root, ["a", "b"]) == before
    assert read == []
    (root / "b").write_text("picture !")
    os.utime(root / "b", ns=(1, 1))
    assert digests(root, ["a", "b"]) != before
    assert read == ["b"]


@pytest.mark.parametrize("damage", ["", "[1, 2]", '{"a": 3, "b": [1]}', "\xff"])
def test_a_damaged_cache_is_read_anew(damage, cache, root):
    before = digests(root, ["a", "b"])
    (kept,) = (cache / "digests").iterdir()
    kept.write_bytes(damage.encode("latin-1"))
    assert digests(root, ["a", "b"]) == before
    assert set(json.loads(kept.read_text())) == {"a", "b"}


def test_a_cache_that_cannot_be_written_costs_time_only(cache, root):
    before = digests(root, ["a"])
    (cache / "digests").rename(cache / "moved")
    (cache / "digests").write_text("in the way")
    assert digests(root, ["a"]) == before
