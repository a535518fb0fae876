"""The file that `anomaly-lab predict` writes: a row for each picture, added as they are scored."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_lab.errors import RunError

if TYPE_CHECKING:
    from anomaly_lab.detector import Result

_BROKEN_LINES = 20  # at the end of a table, that a kill may leave


class PredictionTable:
    """predictions.csv or .jsonl: what is complete in it stays, rows are added at its end."""

    def __init__(self, path: Path, score_names: Sequence[str], *, as_json: bool) -> None:
        self.path, self.as_json = path, as_json
        self.columns = ["path", "verdict", "score", *score_names]

    def read(self) -> dict[str, bool | None]:
        """The pictures that have a row, and whether they were called defective; a line cut off by a kill is removed."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        whole = content[: content.rfind(b"\n") + 1]
        for _ in range(_BROKEN_LINES):  # a name may hold line breaks, and be cut off within
            try:
                found = self._parsed(whole)
                break
            except (json.JSONDecodeError, csv.Error) as error:
                cause, whole = error, whole[: whole.rfind(b"\n", 0, -1) + 1]
            except (ValueError, KeyError, TypeError) as error:  # nothing that a kill leaves
                raise RunError(f"{self.path} was changed ({error!r}): delete it, or give force=true.") from None
        else:
            raise RunError(f"{self.path} is damaged ({cause}): delete it, or give force=true.")
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return found

    def _parsed(self, content: bytes) -> dict[str, bool | None]:
        text = io.StringIO(content.decode("utf-8", errors="surrogateescape"), newline="")
        if self.as_json:
            rows = [json.loads(line) for line in text]
        else:
            reader = csv.DictReader(text, strict=True)
            if content and reader.fieldnames != self.columns:
                raise ValueError(f"its columns are {reader.fieldnames}")
            rows = list(reader)
        verdicts = {"defective": True, "normal": False, "": None, None: None}
        return {row["path"]: verdicts[row["verdict"]] for row in rows}

    def write(self, rows: Sequence[tuple[str, Result]]) -> None:
        """Add rows, and let them reach the disk's cache: a kill takes no whole row back."""
        text = io.StringIO()
        plain = csv.writer(text, lineterminator="\n")
        quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        if not self.as_json and not (self.path.exists() and self.path.stat().st_size):
            plain.writerow(self.columns)
        for name, result in rows:
            verdict = None if result.is_defective is None else "defective" if result.is_defective else "normal"
            if self.as_json:
                row = {"path": name, "verdict": verdict, "score": result.score, "scores": result.scores}
                text.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                scores = (f"{value:.9g}" for value in (result.score, *result.scores.values()))
                writer = quoting if "\r" in name else plain  # csv quotes it only as a part of the line terminator
                writer.writerow([name, verdict or "", *scores])
        with self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text.getvalue())
