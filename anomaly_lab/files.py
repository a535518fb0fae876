"""Files that are written whole or not at all, and read as if a stranger had made them."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_lab.errors import RunError

_DEPTH = 100  # of a YAML file's nesting
_NODES = 100_000  # of a YAML file, its repetitions written out


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary one beside it, then renamed over it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError.of(path, error) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; not-a-number has no place in it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as CSV, with their names above; nothing without any row."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, plain values only.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML, or would be large beyond reason with its repetitions written out.
    """
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it was built so: ten times as fast
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:  # C knows no limit to its recursion but the end of the stack
                raise ValueError("it is nested too deeply")
        content = yaml.load(text, loader)
        left = [content]
        for _ in range(_NODES):
            if not left:
                return content
            node = left.pop()
            left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    raise ValueError("it repeats itself too often")
