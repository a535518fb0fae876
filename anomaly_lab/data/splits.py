"""Which records train, validate, tune and test: drawn by a seed, written to the run as split.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any, cast

from anomaly_lab.data.few_labelled import split_few_labelled
from anomaly_lab.data.normal_only import split_normal_only
from anomaly_lab.data.options import SplitOptions
from anomaly_lab.data.painting import KINDS
from anomaly_lab.data.records import PARTS, Record
from anomaly_lab.errors import ConfigError, DataError, nearest, require

PROTOCOLS = {"normal_only": split_normal_only, "few_labelled": split_few_labelled}
LISTS = ("train_normal", "unlabelled", "labelled", "val", "tune", "test")
MAY_SHARE = ("unlabelled", "labelled")  # both train: an image may be in the two of them


@dataclass(frozen=True)
class Split:
    """Named lists of records (`LISTS`, those of the protocol), each sorted by path, some perhaps empty.

    Attributes:
        notes: sentences for a person, on what the split could not do or left out.
    """

    lists: dict[str, tuple[Record, ...]]
    options: SplitOptions
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of what the lists hold; empty lists, notes and options do not count."""
        held = {name: records for name, records in self._lists_json().items() if records}
        return hashlib.sha256(json.dumps(held, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values for split.json."""
        return {
            "sha256": self.sha256,
            "options": asdict(self.options),
            "notes": list(self.notes),
            "lists": self._lists_json(),
        }

    def _lists_json(self) -> dict[str, list[dict[str, str]]]:
        defaults = asdict(Record(""))
        return {
            name: [
                {key: value for key, default in defaults.items() if (value := getattr(record, key)) != default}
                for record in records
            ]
            for name, records in self.lists.items()
        }

    @classmethod
    def from_json(cls, value: object, source: str = "split.json") -> Split:
        """A split read back, possibly from a stranger's file.

        Raises:
            DataError: if anything is malformed, points outside of the dataset's folder, overlaps, or does not
                fit the hash.
        """
        parts = _checked(value, {"sha256": str, "options": dict, "notes": list, "lists": dict}, source)
        try:
            options = SplitOptions(**parts["options"])
        except (ConfigError, TypeError) as error:
            raise DataError(f"{source}: options that cannot work: {error}") from None
        lists = {}
        for name, records in parts["lists"].items():
            if name not in LISTS or not isinstance(records, list):
                raise DataError(f"{source}: {name!r} is no list of a split. Known: {', '.join(LISTS)}.")
            lists[name] = tuple(_record(r, f"{source}: {name}[{i}]") for i, r in enumerate(records))
        if not all(isinstance(note, str) for note in parts["notes"]):
            raise DataError(f"{source}: notes have to be texts.")
        split = cls(lists, options, tuple(parts["notes"]))
        shared = overlap(lists, options.keeps_parts)
        if shared:
            raise DataError(f"{source}: {shared}.")
        if split.sha256 != parts["sha256"]:
            raise DataError(f"{source}: its lists do not fit its sha256; it was changed or damaged. Split again.")
        return split


def make_split(records: list[Record], options: SplitOptions) -> Split:
    """Draw a dataset's records into lists; equal for equal records and options, in whatever order they come.

    Raises:
        ConfigError: if there are fewer images than an option asks for, or none that could be labelled.
        DataError: if there is no normal image, or the publisher's division is incomplete.
    """
    require("dataset.protocol", options.protocol, PROTOCOLS)
    parts = {record.part for record in records}
    if parts - set(PARTS) and parts != {None}:
        raise DataError(f"The records' parts have to be of {', '.join(PARTS)}, for all or for none, not {parts}.")
    lists, notes = PROTOCOLS[options.protocol](records, options)
    shared = overlap(lists, options.keeps_parts)
    if shared:
        raise RuntimeError(f"{options.protocol} drew lists that overlap: {shared}")
    ordered = {name: tuple(sorted(drawn, key=_order)) for name, drawn in lists.items()}
    return Split(ordered, options, tuple(notes))


def overlap(lists: Mapping[str, Iterable[Record]], keeps_parts: bool) -> str:
    """What stands on two sides, in words: an image, or with `keeps_parts` a physical part; empty if nothing does.

    Each list is a side, but for `MAY_SHARE`, which are one.
    """
    seen: dict[str, str] = {}
    for name, records in lists.items():
        for record in records:
            key = record.part_of if keeps_parts else record.path
            first = seen.setdefault(key, name)
            if first != name and not {first, name} <= set(MAY_SHARE):
                return f"{key!r} is in {first} and in {name}"
    return ""


def _order(record: Record) -> tuple[bool, str]:
    return record.painted is not None, record.path  # copies after the originals


def _record(value: object, where: str) -> Record:
    if not isinstance(value, dict) or "path" not in value:
        raise DataError(f"{where}: a record has to be a mapping with a path.")
    unknown = set(value) - {field.name for field in fields(Record)}
    if unknown or not all(isinstance(text, str) for text in value.values()):
        raise DataError(f"{where}: a record holds texts only, and no {sorted(map(str, unknown)) or 'other values'}.")
    for path in (value["path"], value.get("mask", "x")):
        if not path or "\0" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DataError(f"{where}: {path!r} is no path below the dataset's folder.")
    for field, known in (("part", PARTS), ("painted", KINDS)):
        if value.get(field, known[0]) not in known:
            raise DataError(f"{where}: {field}={value[field]!r} is unknown. {nearest(value[field], known)}")
    return Record(**value)


def _checked(value: object, kinds: Mapping[str, type], source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: a split has to be a mapping of {', '.join(kinds)}.")
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):
            raise DataError(f"{source}: {name!r} is missing, or is no {kind.__name__}.")
    return cast("dict[str, Any]", value)
