"""Files from somebody else: each attack is refused and has a harmless twin that works; damage is told, never a crash.

What the parts themselves are attacked with stands in their own tests; here are the ways in as a user meets them.
"""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anomaly_lab.cli import main
from anomaly_lab.data.images import MaskRule, read_image, read_mask
from anomaly_lab.data.manifest import Manifest
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.records import Record
from anomaly_lab.data.splits import Split
from anomaly_lab.errors import LabError
from anomaly_lab.metrics.scores import ScoreTable
from anomaly_lab.runs import Run


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def edited(path, change):
    """A JSON or YAML file with its content changed in place."""
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = load(path.read_text())
    change(content)
    path.write_text(dump(content))


def in_checkpoint(run, bomb):
    path = run / "checkpoints/last.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"more": bomb}, path)


def in_gallery(run, bomb):
    path = run / "predictions/gallery.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "index": np.array([bomb, None], object)})


def pickled_checkpoint(run, bomb):
    (run / "checkpoints/last.ckpt").write_bytes(pickle.dumps({"state_dict": bomb}))


def target(part, name):
    def change(run, bomb):
        def name_it(config):
            node = config["model"]["optimizer"] if part == "optimizer" else config[part]
            node["_target_"] = name
            config["allow"] = [name.partition(".")[0]]

        edited(run / "config.yaml", name_it)

    return change


def python_tag(run, bomb):
    (run / "config.yaml").write_text(f"model: !!python/object/apply:pathlib.Path.touch [{bomb.path}]\n")


CODE = {
    "code in a checkpoint": in_checkpoint,
    "a pickle for a checkpoint": pickled_checkpoint,
    "code in the gallery": in_gallery,
    "a Python object in config.yaml": python_tag,
    **{
        f"{part}._target_={name}": target(part, name)
        for part in ("model", "dataset", "optimizer")
        for name in ("os.system", "subprocess.Popen", "anomaly_lab.runs.shutil.rmtree", "builtins.eval")
    },
}


@pytest.mark.parametrize("attack", CODE)
@pytest.mark.parametrize(
    "verb", ["evaluate", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("predict", "export", "report"))]
)
def test_a_stranger_s_run_runs_no_code(attack, verb, finished, pictures, tmp_path, capsys, tally):
    went_off = tmp_path / "went-off"
    CODE[attack](finished, Bomb(went_off))
    command = {
        "evaluate": ["evaluate", str(finished)],
        "predict": ["predict", str(finished), f"input={pictures / 'spot'}", f"output={tmp_path / 'out'}"],
        "export": ["export", str(finished), "format=torch", f"output={tmp_path / 'x.pt2'}"],
        "report": ["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}"],
    }[verb]
    assert main(command) in (0, 2)  # what it does not read harms nobody
    assert not went_off.exists()
    assert "Traceback" not in capsys.readouterr().err
    tally("attacks refused of as many", 1)


def test_the_same_run_untouched_works(finished, pictures, tmp_path):
    assert main(["evaluate", str(finished)]) == 0
    assert main(["predict", str(finished), f"input={pictures / 'spot'}", f"output={tmp_path / 'out'}"]) == 0
    assert main(["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}"]) == 0


def at(*keys):
    """A change of the value at a place of a JSON file."""

    def change(value):
        def put(content):
            for key in keys[:-1]:
                content = content[key]
            content[keys[-1]] = value

        return put

    return change


MISSHAPEN = {
    "metrics is a list": at("metrics")([1]),
    "metrics is missing": lambda content: content.pop("metrics"),
    "an AUROC is text": at("metrics", "image_auroc")("high"),
    "an AUROC is a list": at("metrics", "image_auroc")([0.5]),
    "an AUROC is infinite": at("metrics", "image_auroc")(float("inf")),
    "an interval has one end": at("metrics", "image_auroc_ci")([0.5]),
    "an interval is a number": at("metrics", "image_auroc_ci")(0.5),
    "an interval is open": at("metrics", "image_auroc_ci")([0.5, None]),
    "a threshold is text": at("metrics", "threshold")("x"),
    "a defect's metrics are text": at("metrics", "per_defect")({"spot": {"image_auroc": "x"}}),
    "seconds are text": at("seconds")("x"),
    "a second is text": at("seconds", "train")("x"),
    "reasons are numbers": at("reasons")({"image_auroc": 1}),
    "a tag is a number": at("tags")([1]),
    "the hash of the data is a number": at("data_sha256")(1),
    "versions are a list": at("versions")(["torch"]),
    "an AUROC has 400 digits": at("metrics", "image_auroc")(10**400),
    "counts lack a class": at("metrics", "image_counts")({"normal": 3}),
    "a count is null": at("metrics", "image_counts")({"normal": None, "defective": 2}),
    "a defect's metrics are a number": at("metrics", "per_defect")({"spot": 0.5}),
    "regions are counted without more": at("metrics", "pixel_recall_by_area")({"1-15": {"count": 3}}),
    "regions are not marked": at("metrics", "pixel_recall_by_area")(
        {"1-15": {"count": 3, "found": 0, "pixel_recall": None}}
    ),
    "the seed is text": at("seed")("x"),
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_metrics_of_another_shape_are_told_and_hide_no_other_run(what, finished, tmp_path, capsys, tally):
    other = finished.with_name("ffffffff-s1")
    shutil.copytree(finished, other)
    edited(finished / "metrics.json", MISSHAPEN[what])
    runs = [f"runs_dir={tmp_path / 'runs'}"]
    for command, status in (
        (["runs", *runs], 0),
        (["report", *runs, f"output={tmp_path / 'r.html'}"], 0),
        (["compare", str(finished), str(other)], 2),
        (["threshold", str(finished), "false_alarms=0.1"], 2),
        (["predict", str(finished), f"input={tmp_path}", f"output={tmp_path / 'out'}"], 2),
        (["evaluate", str(finished)], 2),
    ):
        assert main(command) == status, command
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert status == 0 or "metrics.json is not the metrics of a run" in shown.err, command
        if command[0] == "runs":
            assert "unreadable" in shown.out
            assert "finished" in shown.out
    shutil.rmtree(other)
    assert main(["report", *runs, f"output={tmp_path / 'r.html'}"]) == 2
    assert "metrics.json is unreadable" in capsys.readouterr().err
    tally("attacks refused of as many", 1)


def test_a_damaged_threshold_or_table_is_told(finished, tmp_path, capsys, caplog):
    report = ["report", f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'r.html'}"]
    for text, told in (
        ("{}", "it has no threshold"),
        ('{"threshold": "x"}', "threshold is 'x'"),
        ('{"threshold": NaN}', "threshold is nan"),
        ('{"threshold": 0.5, "test": 3}', "test is 3"),
        ('{"threshold": 0.5, "asked": 1}', "it has no interval"),
    ):
        (finished / "threshold.json").write_text(text)
        assert main(report) == 0
        assert f"threshold.json cannot be read: {told}" in caplog.text
        caplog.clear()
    (finished / "threshold.json").unlink()
    assert main(["threshold", str(finished), "false_alarms=0.2"]) == 0
    caplog.clear()
    assert main(report) == 0
    assert "threshold.json" not in caplog.text
    head = (finished / "scores.csv").read_text().partition("\n")[0]
    (finished / "scores.csv").write_text(head + "\n")
    assert main(["compare", str(finished), str(finished)]) == 2
    assert "scores.csv has no row" in capsys.readouterr().err
    edited(finished / "config.yaml", at("model", "latent_dim")("banana"))
    assert main(["predict", str(finished), f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert f"(in {finished / 'config.yaml'}, unless it was given)" in capsys.readouterr().err


OUTSIDE = ["../secret.png", "good/../../secret.png", "{absolute}", "..\\secret.png", "good/\x00.png"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("cell", ["path", "mask"])
def test_a_manifest_leads_out_of_no_folder(path, cell, pictures, tmp_path, tally):
    root = tmp_path / "data"
    shutil.copytree(pictures, root)
    shutil.copy(pictures / "good/000.png", tmp_path / "secret.png")
    path = path.format(absolute=tmp_path / "secret.png")
    rows = {"path": "spot/040.png", "label": "spot", "mask": "masks/spot/040.png"} | {cell: path}
    (root / "manifest.csv").write_text(",".join(rows) + "\n" + ",".join(rows.values()) + "\n")
    with pytest.raises(LabError, match="manifest"):
        Manifest(root, root / "manifest.csv").scan()
    rows = {"path": "spot/040.png", "label": "spot", "mask": "masks/spot/040.png"}
    (root / "manifest.csv").write_text(",".join(rows) + "\n" + ",".join(rows.values()) + "\n")
    assert len(Manifest(root, root / "manifest.csv").scan()) == 1
    tally("attacks refused of as many", 1)


@pytest.mark.parametrize("path", [path for path in OUTSIDE if "\\" not in path])  # which here is a letter like others
@pytest.mark.parametrize("key", ["path", "mask"])
def test_a_split_leads_out_of_no_folder(path, key, finished, tmp_path, capsys, tally):
    record = {"path": "good/000.png", "defect": "good"} | {key: path.format(absolute=tmp_path / "secret.png")}
    with pytest.raises(LabError):
        Split({"test": (Record(**record),)}, SplitOptions(), ()).from_json(
            Split({"test": (Record(**record),)}, SplitOptions(), ()).to_json()
        )
    tally("attacks refused of as many", 1)


def laughs(levels):
    """A document that is small, and huge with its repetitions written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [laughs(9), "[" * 100_000, "{a: " * 5_000, "a: " + "[" * 3_000 + "]" * 3_000, "&a [*a]", "\0", "%YAML 9.9"]
)
def test_a_hostile_document_is_told_and_takes_no_time(text, finished, capsys, tally):
    for name in ("config.yaml", "split.json", "metrics.json", "threshold.json"):
        kept = (finished / name).read_bytes() if (finished / name).exists() else None
        (finished / name).write_text(text)
        for command in (["evaluate", str(finished)], ["threshold", str(finished)], ["runs", f"runs_dir={finished}"]):
            assert main(command) in (0, 1, 2)
            assert "Traceback" not in capsys.readouterr().err
        (finished / name).write_bytes(kept) if kept is not None else (finished / name).unlink()
        tally("attacks refused of as many", 1)


def test_an_image_that_unfolds_beyond_measure_is_refused(tmp_path, tally):
    """Small files that state, or hold, gigapixels."""
    header = io.BytesIO()
    Image.new("L", (1, 1)).save(header, "PNG")
    data = bytearray(header.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "stated.png").write_bytes(data)
    Image.new("1", (40_000, 40_000)).save(tmp_path / "held.tif", compression="group4")
    assert (tmp_path / "held.tif").stat().st_size < 100_000
    for name in ("stated.png", "held.tif"):
        with pytest.raises(LabError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(LabError, match=name):
            read_mask(tmp_path / name, size=(60_000, 60_000))
        tally("attacks refused of as many", 2)
    Image.new("L", (3000, 2000)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").shape == (2000, 3000, 3)


# ---- fuzz: valid files come back as they were, damaged ones are told -----------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
NAME = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damage(draw):
    """What is done to the bytes of a file: nothing, in more than half of all cases."""
    if draw(st.integers(0, 9)) < 6:
        return lambda content: content
    place, length = draw(st.floats(0, 1)), draw(st.integers(0, 20))
    signs = st.sampled_from([b"{", b"]", b",", b'"', b"\n", b"nan", b"-1", b"1e999", b"\xff"])
    new = draw(st.binary(max_size=20) | signs)

    def change(content):
        at = int(place * len(content))
        return content[:at] + new + content[at + length :]

    return change


class Fuzz:
    """A folder to write into, and counts."""

    def __init__(self, folder, tally):
        self.folder, self.tally = folder, tally

    def check(self, name, content, damage, read, expected=None):
        """Read the file as it is damaged: an error of ours, or a value; of an undamaged file the expected one."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged := damage(content))
        self.tally("inputs fuzzed", 1)
        try:
            found = read(path)
        except LabError:
            assert damaged != content, f"valid, and refused: {content!r}"
            self.tally("of them refused with a sentence", 1)
            return
        if damaged == content:
            self.tally("of them valid, read as they were", 1)
            if expected is not None:
                assert expected(found)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory, tally):
    return Fuzz(tmp_path_factory.mktemp("fuzz"), tally)


@given(st.dictionaries(NAME, VALUE, max_size=4), damage())
def test_any_config(fuzz, more, damage):
    config = {**more, "model": {"name": "ae"}, "dataset": {"name": "folder"}, "trainer": {}, "seed": 0}
    fuzz.check(
        "config.yaml",
        yaml.safe_dump(config, allow_unicode=True).encode(),
        damage,
        lambda path: Run(path.parent).config(),
        lambda found: found == config,
    )


@given(st.lists(st.tuples(NAME, NAME), max_size=6, unique_by=lambda pair: pair[0].casefold()), damage())
def test_any_split(fuzz, records, damage):
    records = tuple(Record(f"{name}.png", kind) for name, kind in sorted(records))
    split = Split({"test": records}, SplitOptions(), ())
    fuzz.check(
        "split.json",
        json.dumps(split.to_json()).encode(),
        damage,
        lambda path: Run(path.parent).split(),
        lambda found: found == split,
    )


@given(st.dictionaries(NAME, st.floats(0, 1) | st.none(), max_size=4), st.floats(0, 1), damage())
def test_any_metrics_and_threshold(fuzz, metrics, threshold, damage):
    content = {"status": "finished", "metrics": metrics, "reasons": {}, "seconds": {}}
    fuzz.check(
        "metrics.json", json.dumps(content).encode(), damage, lambda path: Run(path.parent).read(), content.__eq__
    )
    content = {"threshold": threshold}
    fuzz.check(
        "threshold.json",
        json.dumps(content).encode(),
        damage,
        lambda path: Run(path.parent).chosen_threshold(),
        content.__eq__,
    )


@given(st.lists(st.tuples(NAME, st.booleans(), st.floats(-1e6, 1e6)), max_size=6, unique_by=lambda r: r[0]), damage())
def test_any_scores(fuzz, rows, damage):
    paths, labels = [f"{name}.png" for name, _, _ in rows], np.array([int(bad) for _, bad, _ in rows], np.int64)
    scores = np.array([np.float32(score) for _, _, score in rows], np.float64)
    table = ScoreTable(
        np.arange(len(rows)), paths, labels, ["x"] * len(rows), [""] * len(rows), {"mean": scores}, "mean"
    )
    table.to_csv(fuzz.folder / "valid.csv")
    fuzz.check(
        "scores.csv",
        (fuzz.folder / "valid.csv").read_bytes(),
        damage,
        ScoreTable.from_csv,
        lambda found: found.path == paths and np.allclose(found.primary_scores, scores, rtol=1e-8),
    )


@given(st.lists(st.tuples(st.integers(0, 9), NAME, NAME), min_size=1, max_size=6, unique_by=lambda r: r[0]), damage())
def test_any_manifest(fuzz, rows, damage):
    for number, _, _ in rows:
        (fuzz.folder / f"{number}.png").touch()
    lines = [f"{number}.png,{label},,{group}," for number, label, group in rows]
    fuzz.check(
        "manifest.csv",
        "\n".join(["path,label,mask,group,split", *lines, ""]).encode(),
        damage,
        lambda path: Manifest(path.parent, path).scan(),
        lambda found: {record.path for record in found} == {f"{number}.png" for number, _, _ in rows},
    )


FORMATS = st.sampled_from(["png", "jpg", "bmp", "tif", "webp"])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 255), FORMATS, st.sampled_from(["L", "RGB"]), damage())
def test_any_image_and_mask(fuzz, high, wide, grey, suffix, mode, damage):
    buffer = io.BytesIO()
    colour = grey if mode == "L" else (grey,) * 3
    Image.new(mode, (wide, high), colour).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    fuzz.check(f"a.{suffix}", buffer.getvalue(), damage, read_image, lambda found: found.shape == (high, wide, 3))
    marked = grey >= 128
    rule = MaskRule(threshold=128)
    fuzz.check(
        f"m.{suffix}",
        buffer.getvalue(),
        damage,
        lambda path: read_mask(path, size=(high, wide), rule=rule),
        lambda found: suffix == "jpg" or suffix == "webp" or bool(found.all()) == marked,
    )


POINT = st.tuples(st.floats(-5, 15), st.floats(-5, 15)).map(list)


@given(st.lists(st.tuples(NAME, st.lists(POINT, min_size=3, max_size=6)), max_size=4), damage())
def test_any_polygons(fuzz, shapes, damage):
    shapes = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    content = {"shapes": shapes, "imageHeight": 10, "imageWidth": 12}
    fuzz.check(
        "m.json",
        json.dumps(content).encode(),
        damage,
        lambda path: read_mask(path, size=(10, 12)),
        lambda found: found.shape == (10, 12),
    )
