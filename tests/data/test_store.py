import errno
import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_lab.data import store as store_module
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore, cache_dir
from anomaly_lab.errors import ConfigError, DataError

GOOD, HOLE = Record("good/a.png"), Record("hole/b.png", "hole", "masks/b.png")


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def later(path):
    """As if the file had been written a second later: file systems' clocks are coarse."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    save(root / "good/a.png", np.full((20, 30, 3), 50, np.uint8))
    save(root / "hole/b.png", np.full((20, 30, 3), 80, np.uint8))
    mask = np.zeros((20, 30), np.uint8)
    mask[:10] = 255
    save(root / "masks/b.png", mask)
    return root


@pytest.fixture
def store(root, tmp_path):
    return ImageStore(root, 10, cache=tmp_path / "cache")


@pytest.fixture
def no_decoding(monkeypatch):
    def switch(on):
        def fail(*_, **__):
            raise AssertionError("decoded again")

        monkeypatch.setattr(store_module, "read_image", fail) if on else monkeypatch.undo()

    return switch


def test_image_and_mask(store):
    image, mask = store.load(GOOD)
    assert image.shape == (10, 10, 3)
    assert (image == 50).all()
    assert not mask.any()
    image, mask = store.load(HOLE)
    assert (image == 80).all()
    assert mask[:, 0].tolist() == [1] * 5 + [0] * 5


@pytest.mark.parametrize("policy", ["squash", "pad"])
def test_the_mask_follows_the_label(store, root, tmp_path, policy):
    store = ImageStore(root, 30, policy, cache=tmp_path / "cache")
    save(root / "masks/empty.png", np.zeros((20, 30), np.uint8))
    border = 300 if policy == "pad" else 0

    def counts(record):
        return [int((store.load(record)[1] == value).sum()) for value in (0, 1, 255)]

    assert counts(GOOD) == [900 - border, 0, border]
    assert counts(Record("hole/b.png", "good", "masks/b.png")) == [900 - border, 0, border]
    for mask in (None, "masks/empty.png", "masks/nowhere.png", "good/a.png/x.png"):
        assert counts(Record("hole/b.png", "hole", mask)) == [0, 0, 900]
    assert counts(HOLE)[1] == 450 - border // 2


def test_a_defect_too_small_for_the_size_is_unknown_and_not_normal(store, root):
    mask = np.zeros((20, 30), np.uint8)
    mask[0, 0] = 255
    save(root / "masks/b.png", mask)
    assert (store.load(HOLE)[1] == 255).all()


def test_an_image_to_be_painted_is_loaded_as_the_normal_one_that_it_is(store):
    assert not store.load(Record("good/a.png", "painted", painted="scratch"))[1].any()


def test_a_mask_of_another_size_is_named(store, root):
    save(root / "masks/b.png", np.zeros((21, 30), np.uint8))
    with pytest.raises(DataError, match=r"masks/b\.png.*30x21.*30x20"):
        store.load(HOLE)


def test_the_second_load_decodes_nothing(store, no_decoding):
    first = [store.load(record) for record in (GOOD, HOLE)]
    no_decoding(True)
    for record, (image, mask) in zip((GOOD, HOLE), first, strict=True):
        again, marked = store.load(record)
        assert np.array_equal(again, image)
        assert np.array_equal(marked, mask)
        for array in (again, marked):
            assert array.flags.c_contiguous
            assert array.flags.writeable


def test_a_changed_source_is_noticed(store, root):
    store.load(HOLE)
    save(root / "hole/b.png", np.full((20, 30, 3), 81, np.uint8))
    later(root / "hole/b.png")
    assert (store.load(HOLE)[0] == 81).all()
    save(root / "masks/b.png", np.full((20, 30), 255, np.uint8))
    later(root / "masks/b.png")
    assert (store.load(HOLE)[1] == 1).all()
    (root / "masks/b.png").unlink()
    assert (store.load(HOLE)[1] == 255).all()
    save(root / "masks/b.png", np.full((20, 30), 255, np.uint8))
    assert (store.load(HOLE)[1] == 1).all()
    (root / "hole/b.png").unlink()
    with pytest.raises(DataError, match=r"hole/b\.png: cannot be opened"):
        store.load(HOLE)


def test_other_settings_have_entries_of_their_own(root, tmp_path):
    save(root / "deep.png", np.full((20, 30), 1000, np.uint16))
    deep, cache = Record("deep.png"), tmp_path / "cache"
    values = [ImageStore(root, 10, max_value=top, cache=cache).load(deep)[0].max() for top in (1000, 2000)]
    assert values == [255, 128]
    assert ImageStore(root, 12, max_value=1000, cache=cache).load(deep)[0].shape == (12, 12, 3)
    assert ImageStore(root, 12, "pad", 1000, cache=cache).load(deep)[0].min() == 0
    assert len(list(cache.iterdir())) == 4
    with pytest.raises(ConfigError, match=r"dataset\.resize='fold'"):
        ImageStore(root, 10, "fold")
    with pytest.raises(ConfigError, match=r"dataset\.image_size=0"):
        ImageStore(root, 0)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("an entry was unpickled",))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "zeros", "one bit", "pickle", "folder"])
def test_a_bad_entry_is_not_trusted(store, no_decoding, damage):
    expected = store.load(HOLE)
    (entry,) = store.cache.iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "one bit":
        data[-200] ^= 4
    bad = {
        "truncated": data[:-1],
        "empty": b"",
        "text": b"something else " * 100,
        "zeros": bytes(len(data)),
        "pickle": pickle.dumps(Trap()) + bytes(len(data)),
        "one bit": data,
    }
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_bytes(bad[damage])
    for _ in range(2):
        assert all(np.array_equal(a, b) for a, b in zip(store.load(HOLE), expected, strict=True))
        no_decoding(damage != "folder")  # the second time it comes from the rebuilt entry


def test_a_cache_that_cannot_be_written_is_said_once(root, tmp_path, caplog):
    (tmp_path / "file").touch()
    blocked = ImageStore(root, 10, cache=tmp_path / "file" / "cache")
    blocked.prepare([GOOD, HOLE])
    for _ in range(2):
        assert (blocked.load(HOLE)[0] == 80).all()
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "file/cache" in warning.getMessage()
    assert "ANOMALY_LAB_CACHE" in warning.getMessage()


def test_a_full_disk_leaves_no_litter(store, monkeypatch, caplog):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert (store.load(HOLE)[0] == 80).all()
    assert "No space left on device" in caplog.text
    assert list(store.cache.iterdir()) == []


@pytest.mark.parametrize("at_once", [5, 14, 100])
def test_prepare_lists_all_that_is_bad_and_keeps_the_rest(at_once, store, root, no_decoding, monkeypatch):
    monkeypatch.setattr(store_module, "AT_ONCE", at_once)
    bad = [Record(f"bad/{number:02}.png") for number in range(12)]
    (root / "bad").mkdir()
    for record in bad:
        (root / record.path).write_text("no image")
    with pytest.raises(DataError) as caught:
        store.prepare([*bad, GOOD, HOLE], workers=3)
    text = str(caught.value)
    assert text.startswith("12 of 14 images")
    assert [f"bad/{number:02}.png" in text for number in range(12)] == [True] * 10 + [False] * 2
    assert "and 2 more" in text
    no_decoding(True)
    assert (store.load(GOOD)[0] == 50).all()
    assert (store.load(HOLE)[0] == 80).all()


def test_prepare_shows_progress_on_stderr_only_if_asked(store, capsys):
    store.prepare([GOOD, HOLE])
    assert capsys.readouterr() == ("", "")
    store.prepare([GOOD, HOLE], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Decoding images" in shown.err
    store.prepare([])


def test_prepare_stops_at_once_when_interrupted(root, tmp_path, monkeypatch):
    calls = []

    def interrupted(path, **_):
        calls.append(path)
        time.sleep(0.01)  # or it may be through before the other thread has a turn
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "read_image", interrupted)
    records = [Record(f"good/{number}.png") for number in range(200)]
    for record in records:
        (root / record.path).touch()
    with pytest.raises(KeyboardInterrupt):
        ImageStore(root, 10, cache=tmp_path / "cache").prepare(records, workers=1)
    assert len(calls) < 200


def test_a_pickled_store_loads_the_same(store):
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.load(HOLE)[1], store.load(HOLE)[1])
    assert len(list(store.cache.iterdir())) == 1


HAMMER = """
import sys
from pathlib import Path
from anomaly_lab.data.records import Record
from anomaly_lab.data.store import ImageStore
heavy = {"torch", "lightning", "torchmetrics", "albumentations"} & set(sys.modules)
assert not heavy, heavy
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
records = [Record(f"many/{number}.png") for number in range(40)]
for round in range(4):
    store = ImageStore(root, 96, cache=cache)
    store.prepare(records, workers=2)
    for number, record in enumerate(records):
        image, mask = store.load(record)
        assert (image == number).all() and not mask.any(), (number, image)
    for entry in sorted(cache.glob("*.bin"))[round::4]:
        entry.unlink(missing_ok=True)
"""


def test_several_processes_fill_one_cache_at_once(root, tmp_path):
    for number in range(40):
        save(root / f"many/{number}.png", np.full((64, 64, 3), number, np.uint8))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", HAMMER, str(root), str(cache)]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(job.communicate()[1], job.returncode) for job in jobs] == [("", 0)] * 4
    assert {path.suffix for path in cache.iterdir()} == {".bin"}


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_LAB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert ImageStore(tmp_path, 8).cache == tmp_path / "images"
    monkeypatch.delenv("ANOMALY_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/anomaly_lab"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_dir() == tmp_path / ".cache/anomaly_lab"


def test_the_four_empty_masks_of_the_real_tiles_are_unknown(tmp_path):
    if "ANOMALY_LAB_DATA" not in os.environ:
        pytest.skip("ANOMALY_LAB_DATA is not set")
    root = Path(os.environ["ANOMALY_LAB_DATA"]) / "magnetic_tile"
    paths = sorted(path.relative_to(root) for path in root.glob("MT_Uneven/Imgs/*.jpg"))
    records = [Record(path.as_posix(), "uneven", path.with_suffix(".png").as_posix()) for path in paths]
    store = ImageStore(root, 256, cache=tmp_path)
    store.prepare(records)
    unknown = [record.path for record in records if (store.load(record)[1] == 255).all()]
    names = ["exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"]
    assert unknown == [f"MT_Uneven/Imgs/{name}.jpg" for name in names]
