"""`anomaly-lab manifest DIR`: write down what a folder holds, as a CSV file to train on, and to change by hand."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomaly_lab.arguments import given_value, own_options, require_options
from anomaly_lab.data.known_layouts import LAYOUTS, Row, coco, guess
from anomaly_lab.data.manifest import COLUMNS
from anomaly_lab.data.records import GOOD
from anomaly_lab.errors import ConfigError, DataError, require
from anomaly_lab.files import csv_text, write_text

log = logging.getLogger("anomaly_lab")

_OPTIONS = ("layout", "annotations", "category", "group_regex", "output", "force")


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab manifest DIR [OPTIONS]`."""
    folders = [text for text in arguments if "=" not in text or Path(text).is_dir()]
    options = [text for text in arguments if text not in folders]
    require_options("manifest", options, _OPTIONS)
    if len(folders) != 1:
        raise ConfigError("manifest takes one folder: manifest DIR [layout=NAME] [output=FILE.csv].")
    asked = own_options(options, _OPTIONS)
    root = Path(given_value(f"x={folders[0]}")).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is no folder.")
    output = Path(asked.get("output", root / "manifest.csv"))
    if output.exists() and asked.get("force") != "true":
        raise ConfigError(f"{output} is there already, perhaps changed by hand: give another output, or force=true.")
    rows = find_rows(root, asked)
    write_text(output, csv_text([{name: row[name] for name in COLUMNS} for row in rows]))
    counts = Counter(row["label"] for row in rows)
    told = ", ".join(f"{count} {label}" for label, count in sorted(counts.items(), key=lambda pair: pair[0] != GOOD))
    log.info("%d pictures (%s): %s", len(rows), told, output)
    where = "" if output.resolve().parent == root.resolve() else f" dataset.root={root}"
    masks = " dataset.mask_threshold=1" if asked.get("layout") == "visa" else ""
    log.info("Train on them: anomaly-lab train dataset=manifest dataset.manifest=%s%s%s", output, where, masks)
    return 0


def find_rows(root: Path, asked: dict[str, str]) -> list[Row]:
    """The rows for a folder, by `layout`, or what it is recognised as, or an `annotations` file of COCO.

    Raises:
        DataError: if it is not recognised, or holds no picture.
        ConfigError: if an option is unknown or finds nothing.
    """
    if "annotations" in asked:
        rows = list(coco(root, Path(asked["annotations"])))
    else:
        asked["layout"] = asked.get("layout") or guess(root) or ""
        if not asked["layout"]:
            raise DataError(
                f"{root}: no layout is recognised. layout=NAME says which ({', '.join(LAYOUTS)}), "
                "annotations=FILE.json names a COCO file. Folders good/ and one for each kind of defect need no "
                "manifest (dataset=folder)."
            )
        require("layout", asked["layout"], LAYOUTS)
        rows = list(LAYOUTS[asked["layout"]](root))
    if "category" in asked:
        rows = [row for row in rows if asked["category"] in (row["folder"], Path(row["path"]).parts[0])]
    if not rows:
        raise DataError(f"{root} holds no picture{' of ' + asked['category'] if 'category' in asked else ''}.")
    if "group_regex" in asked:
        try:
            pattern = re.compile(asked["group_regex"])
        except re.error as error:
            raise ConfigError(f"group_regex={asked['group_regex']} is not a regular expression: {error}.") from None
        for row in rows:
            if match := pattern.search(row["path"]):
                row["group"] = (match[1] if pattern.groups else match[0]) or ""
        if not any(row["group"] for row in rows):
            raise ConfigError(f"group_regex={asked['group_regex']} is found in no path, such as {rows[0]['path']}.")
    return sorted(rows, key=lambda row: row["path"])
