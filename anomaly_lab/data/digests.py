"""What files hold, as digests: each is read once per machine, and again when its size or time of change is another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from anomaly_lab.data.store import WORKERS, cache_dir, stamp

NO_FILE = "absent"  # in place of a digest


def digests(root: Path, names: Sequence[str]) -> list[str]:
    """BLAKE2 of each file below `root`, 32 hex digits, in the order of the names; `NO_FILE` where there is none."""
    place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()
    kept = cache_dir() / "digests" / f"{place}.json"
    known: dict[str, list[object]] = {}
    with suppress(OSError, ValueError, AttributeError):  # missing or damaged: read anew
        stored = json.loads(kept.read_text(encoding="utf-8"))
        known = {name: entry for name, entry in stored.items() if isinstance(entry, list) and len(entry) == 3}
    stamps = {name: list(stamp(root / name)) for name in names}
    changed = [name for name, now in stamps.items() if known.get(name, [])[:-1] != now]
    if changed:
        with ThreadPoolExecutor(WORKERS) as pool:
            for name, digest in zip(changed, pool.map(lambda name: _digest(root, name), changed), strict=True):
                known[name] = [*stamps[name], digest]
        with suppress(OSError):  # a cache that cannot be written costs time only
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(known), encoding="utf-8")
            temporary.replace(kept)
    return [str(known[name][-1]) for name in names]


def digest(path: Path) -> str:
    """BLAKE2 of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest(root: Path, name: str) -> str:
    try:
        return digest(root / name)
    except OSError:
        return NO_FILE
