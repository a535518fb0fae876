"""`anomaly-lab data get|prepare|make NAME`: a public dataset, brought into the folder that its layout wants."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from anomaly_lab.arguments import own_options, require_options
from anomaly_lab.data.archives import move_into, require_free, unpacked
from anomaly_lab.data.crackforest import CrackForest
from anomaly_lab.data.digests import digest
from anomaly_lab.data.download import download
from anomaly_lab.data.plan import known_datasets
from anomaly_lab.data.records import DATA_VARIABLE, DefectDataset, files_below
from anomaly_lab.data.road_patches import make_rsd
from anomaly_lab.data.store import cache_dir
from anomaly_lab.errors import ConfigError, DataError, RunError, nearest, require

log = logging.getLogger("anomaly_lab")

_OPTIONS = {"get": ("root", "address", "checked"), "prepare": ("root", "checked"), "make": ("root", "crackforest")}


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab data ACTION NAME [ARCHIVE] [root=DIR]`."""
    words = [text for text in arguments if "=" not in text or Path(text).is_file()]
    options = [text for text in arguments if text not in words]
    if len(words) < 2:
        raise ConfigError(
            "data takes an action and a dataset: data get mt, data prepare mvtec ARCHIVE, or data make rsd."
        )
    action, name, *archives = words
    if action not in _OPTIONS:
        raise ConfigError(f"data has no action {action!r}. {nearest(action, _OPTIONS)}")
    require_options(f"data {action}", options, _OPTIONS[action])
    asked = own_options(options, _OPTIONS[action])
    known = {each: dataset for each, dataset in known_datasets().items() if dataset.marker}
    require("dataset", name, known)
    dataset = known[name]
    if len(archives) != (action == "prepare"):
        raise ConfigError(
            f"data prepare takes one archive: data prepare {name} FILE. {dataset.how_to_get}"
            if action == "prepare"
            else f"data {action} takes a dataset and no file: data {action} {name}."
        )
    require("checked", asked.get("checked", "true"), ("true", "false"))
    if action == "make":
        require("dataset", name, ("rsd",))
    target = _target(dataset, asked)
    if not target.name:
        raise ConfigError(f"root={target} cannot be a dataset's own folder.")
    require_free(target, ())
    checked = asked.get("checked", "true") == "true"
    if action != "make":
        log.info("Terms of %s: %s.", name, dataset.licence)
    try:
        if action == "make":
            _make(asked, target)
        elif action == "get":
            _get(dataset, asked.get("address"), target, checked=checked)
        else:
            _prepare(dataset, Path(archives[0]).expanduser(), target, checked=checked)
    except OSError as error:
        raise RunError.of(target, error) from None
    return 0


def _make(asked: Mapping[str, str], target: Path) -> None:
    normal, defective = make_rsd(_crackforest(asked), target)
    counts = f"{normal} crack-free patches and {defective} cracked roads"
    log.info("%s of CrackForest are in %s, to stand in for rsd. Terms: %s.", counts, target, CrackForest.licence)


def _get(dataset: type[DefectDataset], address: str | None, target: Path, *, checked: bool) -> None:
    archive = _downloaded(dataset, address)
    try:
        _prepare(dataset, archive, target, checked=checked)
    except DataError as error:
        if not str(error).startswith(str(archive)):  # it is not the archive's fault
            raise
        raise DataError(f"{error} What came is kept there: without it the same command gets it anew.") from None
    archive.unlink()


def _prepare(dataset: type[DefectDataset], archive: Path, target: Path, *, checked: bool) -> None:
    if not archive.is_file():
        raise ConfigError(f"{archive} is no file.")
    prepare(dataset, archive, target, checked=checked)
    compared = "its files are those that are known" if checked and dataset.files else "its files were not compared"
    log.info("%s is in %s; %s.", dataset.name, target, compared)


def _crackforest(asked: Mapping[str, str]) -> CrackForest:
    roads = CrackForest(asked.get("crackforest"))
    try:
        roads.root  # noqa: B018  # looks for it
    except DataError:
        where = asked.get("crackforest", f"none below {DATA_VARIABLE}")
        raise ConfigError(
            f"data make rsd takes CrackForest's photographs: crackforest=DIR (now {where}). anomaly-lab data get "
            "crackforest brings them."
        ) from None
    return roads


def prepare(dataset: type[DefectDataset], archive: Path, target: Path, *, checked: bool) -> None:
    """Unpack an archive, find the dataset in it, see that it is what it should be, and bring it to its folder.

    Raises:
        DataError: if the archive is damaged or hostile, holds no such dataset, or other files than known; nothing is
            left then.
    """
    with unpacked(archive, target) as folder:
        places = sorted(folder.rglob(dataset.marker), key=lambda path: (len(path.parts), path))
        if not places:
            raise DataError(f"{archive}: nothing in it lies at {dataset.marker}. {dataset.how_to_get}")
        found = places[0]
        for _ in Path(dataset.marker).parts:
            found = found.parent
        if checked and dataset.files:
            _check(found, dataset.files, archive)
        move_into(found, target)


def _check(root: Path, known: Mapping[str, tuple[int, str]], archive: Path) -> None:
    """Compare each folder's files with what is known of them."""
    for folder, (count, expected) in known.items():
        there = root / folder
        names = sorted(path.relative_to(root).as_posix() for path in files_below(there)) if there.is_dir() else []
        text = "".join(f"{name} {digest(root / name)}\n" for name in names)
        if hashlib.sha256(text.encode()).hexdigest() != expected:
            raise DataError(
                f"{archive}: {folder} has {len(names)} files, and not those that are known ({count}). Get it again, or "
                "take it as it is: checked=false."
            )


def _downloaded(dataset: type[DefectDataset], given: str | None) -> Path:
    """The dataset's archive, got now or before."""
    address, name = given or dataset.address, dataset.name
    if address is None:
        raise ConfigError(f"{name} has no address to get it from: data prepare {name} ARCHIVE. {dataset.how_to_get}")
    archive = cache_dir() / "downloads" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    if not archive.exists():
        log.info("From %s%s", address, "" if given else " (an address that was not tried yet)")
        download(address, archive)
    return archive


def _target(dataset: type[DefectDataset], asked: Mapping[str, str]) -> Path:
    if "root" in asked:
        return Path(asked["root"]).expanduser().absolute()
    if parent := os.environ.get(DATA_VARIABLE):
        return Path(parent).expanduser().absolute() / dataset.folder
    raise ConfigError(f"Where to? Give root=DIR, or set {DATA_VARIABLE} to the folder that holds all datasets.")
