"""`anomaly-lab data`: archives of any kind, hostile ones too, and a server that breaks connections."""

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from anomaly_lab import get_data
from anomaly_lab.cli import main
from anomaly_lab.data import road_patches
from anomaly_lab.data.archives import folder_beside, unpacked
from anomaly_lab.data.crackforest import CrackForest
from anomaly_lab.data.download import download
from anomaly_lab.data.images import read_image
from anomaly_lab.data.mt import MagneticTile
from anomaly_lab.data.plan import known_datasets
from anomaly_lab.data.rsd import RSD
from anomaly_lab.errors import DataError

TILES = {
    "tiles-master/MT_Free/Imgs/exp1_num_1.jpg": b"a",
    "tiles-master/MT_Crack/Imgs/exp1_num_200.jpg": b"b",
    "tiles-master/README.md": b"read",
}
CARPET = {"carpet/train/good/000.png": b"a", "carpet/test/cut/000.png": b"b"}


def pack(path, files):
    """A zip or tar file of these files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [".zip", ".gz", ".xz", ".bz2"])
def test_an_archive_is_found_its_place_whatever_it_lies_in(suffix, tmp_path, caplog):
    archive = pack(tmp_path / f"tiles{suffix}", TILES)
    assert main(["data", "prepare", "mt", str(archive), f"root={tmp_path / 'mt'}", "checked=false"]) == 0
    assert below(tmp_path / "mt") == {name.removeprefix("tiles-master/") for name in TILES}
    assert "research use" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "mt"}


def test_categories_come_one_by_one_or_together(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ANOMALY_LAB_DATA", str(tmp_path))
    grid = {name.replace("carpet", "grid"): content for name, content in CARPET.items()}
    assert main(["data", "prepare", "mvtec", str(pack(tmp_path / "carpet.xz", CARPET))]) == 0
    assert main(["data", "prepare", "mvtec", str(pack(tmp_path / "grid.xz", grid))]) == 0
    assert below(tmp_path / "mvtec_ad") == {*CARPET, *grid}
    assert main(["data", "prepare", "mvtec", str(tmp_path / "grid.xz")]) == 2
    assert "has grid already" in capsys.readouterr().err
    assert below(tmp_path / "mvtec_ad") == {*CARPET, *grid}


def test_files_are_compared_with_the_known_ones(tmp_path, capsys, monkeypatch):
    archive = pack(tmp_path / "tiles.zip", TILES)
    command = ["data", "prepare", "mt", str(archive), f"root={tmp_path / 'mt'}"]
    assert main(command) == 2
    assert "MT_Blowhole has 0 files, and not those that are known (230)" in capsys.readouterr().err
    assert not (tmp_path / "mt").exists()
    digest = hashlib.blake2b(b"b", digest_size=16).hexdigest()
    known = hashlib.sha256(f"MT_Crack/Imgs/exp1_num_200.jpg {digest}\n".encode()).hexdigest()
    monkeypatch.setattr(MagneticTile, "files", {"MT_Crack": (1, known)})
    assert main(command) == 0


@pytest.mark.skipif("ANOMALY_LAB_DATA" not in os.environ, reason="needs the real images")
@pytest.mark.parametrize("name", ["mt", "crackforest"])
def test_the_real_files_are_the_known_ones(name):
    dataset = known_datasets()[name]
    root = Path(os.environ["ANOMALY_LAB_DATA"]) / dataset.folder
    get_data._check(root, dataset.files, root)


def zip_link(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("MT_Free/Imgs/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")


def tar_of(**about):
    def write(path):
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("MT_Free/Imgs/link")
            for key, value in about.items():
                setattr(info, key, value)
            archive.addfile(info)

    return write


def named(name):
    return lambda path: pack(path, {"MT_Free/Imgs/a.jpg": b"a", name: b"gotcha"})


def _flipped(data):
    """The same bytes, with other ones in the middle."""
    half = len(data) // 2
    return data[:half] + bytes(255 - byte for byte in data[half : half + 64]) + data[half + 64 :]


HOSTILE = {
    "up.zip": named("../outside.txt"),
    "deep.zip": named("MT_Free/../../outside.txt"),
    "absolute.zip": named("/tmp/outside.txt"),
    "drive.zip": named("C:/outside.txt"),
    "backslash.zip": named("..\\outside.txt"),
    "up.gz": named("../outside.txt"),
    "absolute.gz": named("/tmp/outside.txt"),
    "link.zip": zip_link,
    "link.gz": tar_of(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard.gz": tar_of(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device.gz": tar_of(type=tarfile.CHRTYPE),
    "fifo.gz": tar_of(type=tarfile.FIFOTYPE),
    "bomb.zip": lambda path: pack(path, {"MT_Free/Imgs/a.jpg": bytes(300 * 2**20)}),
    "cut.zip": lambda path: path.write_bytes(pack(path, TILES).read_bytes()[:-30]),
    "cut.gz": lambda path: path.write_bytes(pack(path, {"a": os.urandom(5000)}).read_bytes()[:-300]),
    **{
        f"flipped.{kind}": lambda path: path.write_bytes(_flipped(pack(path, {"a": os.urandom(50_000)}).read_bytes()))
        for kind in ("zip", "gz", "xz", "bz2")
    },
    "none.zip": lambda path: path.write_bytes(b"PK nothing of the kind"),
    "other.zip": lambda path: pack(path, {"a.jpg": b"a"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing(name, tmp_path, capsys, tally):
    HOSTILE[name](tmp_path / name)
    before = below(tmp_path)
    assert main(["data", "prepare", "mt", str(tmp_path / name), f"root={tmp_path / 'in/mt'}", "checked=false"]) == 2
    assert name in capsys.readouterr().err
    assert below(tmp_path) == before
    assert not (tmp_path.parent / "outside.txt").exists()
    assert not Path("/tmp/outside.txt").exists()
    tally("attacks refused of as many", 1)


def test_a_zip_that_lies_about_sizes_is_stopped(tmp_path):
    pack(tmp_path / "a.zip", {"a": bytes(300 * 2**20)})
    data = (tmp_path / "a.zip").read_bytes()
    size = (300 * 2**20).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DataError), unpacked(tmp_path / "a.zip", tmp_path / "b"):
        pass
    assert below(tmp_path) == {"a.zip"}


@pytest.fixture
def server():
    """Serves `content`, breaking off after each of `pieces` bytes; knows ranges unless told not to."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.headers.get("Range"))
            if state.status:
                self.send_error(state.status)
                return
            start = 0
            if state.knows_ranges and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
                start = int(found[1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            stop = start + state.pieces.pop(0) if state.pieces else len(state.content)
            self.wfile.write(state.content[start:stop])

        def log_message(self, *_):
            pass

    state = SimpleNamespace(content=b"", pieces=[], knows_ranges=True, status=0, asked=[])
    http = HTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_port}/tiles.zip"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


def test_a_broken_download_goes_on(server, tmp_path):
    server.content, server.pieces = os.urandom(100_000), [30_000, 1, 0, 50_000]
    download(server.address, tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == server.content
    assert server.asked == [None, "bytes=30000-", "bytes=30001-", "bytes=30001-", "bytes=80001-"]
    assert below(tmp_path) == {"a"}


def test_a_server_without_ranges_is_asked_again(server, tmp_path):
    server.content, server.pieces, server.knows_ranges = os.urandom(100_000), [30_000], False
    download(server.address, tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == server.content


def test_it_gives_up_and_the_same_command_goes_on(server, tmp_path):
    server.content, server.pieces = os.urandom(10_000), [4_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match="goes on where it stopped"):
        download(server.address, tmp_path / "a", pause=0)
    assert (tmp_path / "a.part").stat().st_size == 4_000
    server.pieces.clear()
    download(server.address, tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == server.content
    server.status = 404
    with pytest.raises(DataError, match="refused \\(404"):
        download(server.address, tmp_path / "b", pause=0)


def test_get_brings_a_dataset_over_a_bad_line(server, tmp_path, capsys):
    server.content = pack(tmp_path / "tiles.zip", TILES).read_bytes()
    server.pieces = [100, 50]
    command = ["data", "get", "mt", f"root={tmp_path / 'mt'}", f"address={server.address}", "checked=false"]
    assert main(command) == 0
    assert "MT_Free/Imgs/exp1_num_1.jpg" in below(tmp_path / "mt")
    assert len(server.asked) == 3
    assert main(["data", "get", "mvtec", f"root={tmp_path / 'x'}"]) == 2
    assert "data prepare mvtec ARCHIVE" in capsys.readouterr().err


def test_a_download_that_is_not_the_dataset_says_how_to_get_it_anew(server, tmp_path, capsys):
    server.content = b"this is no archive"
    command = ["data", "get", "mt", f"root={tmp_path / 'mt'}", f"address={server.address}", "checked=false"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "without it the same command gets it anew" in told
    (kept,) = re.findall(r"error: (\S+): neither a zip nor a tar file", told)
    Path(kept).unlink()
    server.content = pack(tmp_path / "tiles.zip", TILES).read_bytes()
    assert main(command) == 0
    assert not Path(kept).exists()


def test_what_a_killed_command_left_goes_and_others_may_read_the_dataset(tmp_path, capsys):
    left = tmp_path / ".mt.unpacked/all/MT_Free"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"a")
    files = {name.removeprefix("tiles-master/"): content for name, content in TILES.items()}  # not wrapped in a folder
    command = ["data", "prepare", "mt", str(pack(tmp_path / "tiles.zip", files)), "checked=false"]
    before = os.umask(0o022)
    try:
        assert main([*command, f"root={tmp_path / 'mt'}"]) == 0
    finally:
        os.umask(before)
    assert below(tmp_path) == {"tiles.zip", *(f"mt/{name}" for name in files)}
    assert not (tmp_path / ".mt.unpacked").exists()
    assert stat.S_IMODE((tmp_path / "mt").stat().st_mode) == 0o755
    with folder_beside(tmp_path / "again"):
        assert main([*command, f"root={tmp_path / 'again'}"]) == 2
    assert "another process" in capsys.readouterr().err


def test_a_link_in_the_place_of_the_hidden_folder_leads_nowhere(tmp_path, capsys, tally):
    victim = tmp_path / "victim/all"
    victim.mkdir(parents=True)
    (victim / "precious").write_bytes(b"a")
    (tmp_path / ".mt.unpacked").symlink_to(victim.parent)
    command = ["data", "prepare", "mt", str(pack(tmp_path / "tiles.zip", TILES)), "checked=false"]
    assert main([*command, f"root={tmp_path / 'mt'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (victim / "precious").exists()
    tally("attacks refused of as many", 1)


def test_an_archive_with_the_separators_of_windows_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for name, content in TILES.items():
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", "\\")
            archive.writestr(info, content)
        folder = zipfile.ZipInfo("tiles-master/MT_Free/")
        folder.filename = "tiles-master\\MT_Free\\"
        archive.writestr(folder, b"")
    command = ["data", "prepare", "mt", str(tmp_path / "tiles.zip"), f"root={tmp_path / 'mt'}", "checked=false"]
    assert main(command) == 0
    assert below(tmp_path / "mt") == {name.removeprefix("tiles-master/") for name in TILES}


def test_what_is_asked_is_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ANOMALY_LAB_DATA", raising=False)
    (tmp_path / "a.zip").write_bytes(b"")
    for arguments, told in (
        ([], "an action and a dataset"),
        (["fetch", "mt"], "no action 'fetch'"),
        (["get", "mt", "address=nonsense", f"root={tmp_path / 'mt'}"], "'nonsense' is no address"),
        (["get", "mt", "address=file:///etc/passwd", f"root={tmp_path / 'mt'}"], "is no address"),
        (["get", "mt", "address=http://[x", f"root={tmp_path / 'mt'}"], "is no address"),
        (["prepare", "mt", str(tmp_path / "a.zip"), "root=/"], "root=/ cannot be"),
        (["make", "mvtec"], "dataset='mvtec' is unknown"),
        (["prepare", "mt", str(tmp_path / "a.zip"), f"root={tmp_path / 'a.zip'}"], "is a file"),
        (["prepare", "mt", str(tmp_path / "a.zip"), f"root={tmp_path / 'a.zip/mt'}"], "cannot be written"),
        (["prepare", "mt", str(tmp_path / "a.zip"), "root=/proc/mt"], "cannot be written"),
        (["get", "mtt"], "Did you mean 'mt'"),
        (["prepare", "mt"], "takes one archive"),
        (["prepare", "mt", "nowhere.zip", f"root={tmp_path}"], "nowhere.zip is no file"),
        (["get", "mt"], "Give root=DIR"),
        (["prepare", "mt", str(tmp_path / "a.zip"), "rot=x"], "Did you mean 'root'"),
    ):
        assert main(["data", *arguments]) == 2
        assert told in capsys.readouterr().err


@pytest.fixture
def roads(tmp_path):
    """A CrackForest of two roads, each with a crack down its middle."""
    root = tmp_path / "crackforest"
    for name in ("image", "groundTruth"):
        (root / name).mkdir(parents=True)
    segments = np.ones((320, 480), np.uint8)
    segments[:, 236:244] = 2
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 200, (320, 480, 3), np.uint8)
        pixels[segments == 2] = 255
        Image.fromarray(pixels).save(root / "image" / f"00{i}.jpg", quality=95)
        savemat(root / "groundTruth" / f"00{i}.mat", {"groundTruth": {"Segmentation": segments}})
    return root


def test_a_stand_in_for_rsd_is_made_of_crack_free_patches_and_whole_roads(roads, tmp_path, monkeypatch, capsys, caplog):
    command = ["data", "make", "rsd", f"crackforest={roads}", f"root={tmp_path / 'rsd'}"]
    assert main(command) == 2
    assert "16 patches of 112x112 pixels are free of cracks, and 650 are needed" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"crackforest"}
    monkeypatch.setattr(road_patches, "NORMAL_COUNT", 10)
    assert main(command) == 0
    assert "non-commercial research" in caplog.text
    records = RSD(tmp_path / "rsd").scan()
    assert [record.defect for record in records].count("good") == 10
    assert [record.path for record in records if record.label] == ["defect/001.png", "defect/002.png"]
    images = {record.path: read_image(tmp_path / "rsd" / record.path) for record in records}
    assert {image.shape for image in images.values()} == {(224, 224, 3)}
    for path, image in images.items():
        assert (image.min(2).max() > 230) == path.startswith("defect/")  # the crack is the only white there is
    first = {path.name: path.read_bytes() for path in (tmp_path / "rsd" / "normal").iterdir()}
    (tmp_path / "rsd").rename(tmp_path / "before")
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "rsd" / "normal").iterdir()} == first
    assert main(command) == 2
    assert "has defect, normal already" in capsys.readouterr().err
    assert main(["data", "make", "mt", f"root={tmp_path / 'mt'}"]) == 2
    assert "dataset='mt' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_free_squares_hold_nothing_marked_do_not_overlap_and_leave_no_room(seed):
    marked = np.random.default_rng(seed).random((40, 50)) < 0.01
    taken = marked.copy()
    for top, left in road_patches.free_squares(marked, 7):
        assert not taken[top : top + 7, left : left + 7].any()
        assert taken[top : top + 7, left : left + 7].size == 49
        taken[top : top + 7, left : left + 7] = True
    assert np.lib.stride_tricks.sliding_window_view(taken, (7, 7)).any((2, 3)).all()


@pytest.mark.skipif("ANOMALY_LAB_DATA" not in os.environ, reason="needs the real images")
def test_crackforest_has_enough_of_them(tmp_path):
    assert road_patches.make_rsd(CrackForest(), tmp_path / "rsd") == (650, 118)
