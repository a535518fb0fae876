"""What a command line says: its options, the paths among them, and the values that it sweeps over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_lab.errors import ConfigError, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_PATHS = (
    "dataset.root",
    "dataset.manifest",
    "annotations",
    "runs_dir",
    "run",
    "input",
    "output",
    "maps",
    "model.autoencoder",
)  # options that are a path


def with_plain_paths(arguments: Sequence[str]) -> list[str]:
    """The command line with its paths as one types them: `~` is the home folder, and no sign means anything to Hydra
    but `${...}`, another option.

    With `-m` a comma divides the values of a sweep, and `glob(...)` and `choice(...)` are Hydra's, as elsewhere.
    """
    sweeps = not {"-m", "--multirun"}.isdisjoint(arguments)
    texts = []
    for text in arguments:
        key, _, value = text.partition("=")
        if key in _PATHS and not re.match("['\"]" + (r"|\w+\(.*\)$" if sweeps else ""), value):
            text = f"{key}={','.join(map(plain_path, value.split(',') if sweeps else [value]))}"
        texts.append(text)
    return texts


def option_of(text: str) -> str:
    """The option that an override is of: `model.width` of `+model.width=8`."""
    return text.lstrip("+~").partition("=")[0]


def given_value(text: str) -> str:
    """The value of an override `key=value` as it was meant: without the quotes of `plain_path`."""
    value = text.partition("=")[2]
    return str(_parsed([text])[0].value()) if value[:1] in ("'", '"') else value


def own_options(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The options of a verb that are none of `train`, as they were meant; of several of a name the last."""
    return {option_of(text): given_value(text) for text in arguments if "=" in text and option_of(text) in names}


def require_options(verb: str, arguments: Sequence[str], names: Sequence[str]) -> None:
    """Check that all arguments are options of a verb that has its own.

    Raises:
        ConfigError: naming the first that is none, with the nearest known one.
    """
    for text in arguments:
        if "=" not in text or option_of(text) not in names:
            raise ConfigError(f"{verb} has no option {text!r}. {nearest(option_of(text), names)}")


def with_run(arguments: Sequence[str]) -> list[str]:
    """The command line of a verb that works on a run, whose directory may stand alone: `predict RUN_DIR`."""
    return [text if "=" in text and not Path(text).is_dir() else f"run={plain_path(text)}" for text in arguments]


def run_dirs(arguments: Sequence[str]) -> list[str]:
    """The run directories of a command line that is not composed, `run=` before them or not."""
    return [given_value(t) if t.startswith("run=") else t for t in arguments if "=" not in t or t.startswith("run=")]


def plain_path(value: str) -> str:
    """A path in quotes, unless Hydra takes it for itself as it is; a name alone may look like a number."""
    value = str(Path(value).expanduser()) if value.partition("/")[0] == "~" else value
    if value in ("", "null") or re.fullmatch(r"[\w.+-]*/[\w./+-]*", value, re.ASCII):
        return value
    return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'") + "'"


def runs_hydra(option: str) -> bool:
    """Whether an option says how Hydra runs jobs, and not what is composed for them."""
    return option.startswith("hydra") and option != "hydra.searchpath"


def sweep_values(arguments: Sequence[str]) -> list[list[str]]:
    """Each override of a command line with its values written out: one, or several where it sweeps.

    Of an interval, in which a search such as Optuna's looks, its two ends.
    """
    texts = [text for text in arguments if text not in ("-m", "--multirun")]
    written = []
    for override, text in zip(_parsed(texts), texts, strict=True):
        key, value = text.partition("=")[0], override.value()
        if override.is_interval_sweep():
            written.append([f"{key}={value.start}", f"{key}={value.end}"])  # type: ignore[union-attr]
        elif override.is_sweep_override():
            written.append([f"{key}={each}" for each in override.sweep_string_iterator()])
        else:
            written.append([text])
    return written


def job_count(arguments: Sequence[str]) -> int | None:
    """How many jobs a sweep has: the product of its values, or what a search is given; None where it does not say."""
    search = own_options(arguments, ("hydra/sweeper", "hydra.sweeper.n_trials"))
    if "hydra/sweeper" not in search:
        return prod(len(texts) for texts in sweep_values(arguments))
    trials = search.get("hydra.sweeper.n_trials", "")
    return int(trials) if trials.isdigit() else None


def _parsed(texts: list[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return OverridesParser.create().parse_overrides(texts)
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override!r} is not understood: options are written key=value, and a value with brackets or other "
            "signs in quotes of its own: \"key='value'\"."
        ) from None
