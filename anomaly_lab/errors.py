"""Errors that are the user's to mend: each names the file or the option, and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def nearest(name: object, known: Iterable[str], *, listed: bool = True) -> str:
    """The end of an error about an unknown name: the nearest known one, then, if `listed`, all of them."""
    known = list(known)
    by_lower = {one.lower(): one for one in reversed(known)}  # MT is mt
    close = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = [f"Did you mean {by_lower[close[0]]!r}?"] if close else []
    return " ".join([*hint, f"Known: {', '.join(known)}."] if listed else hint)


class LabError(Exception):
    """What the command line prints as `error: ...`, without a traceback."""


class ConfigError(LabError):
    """An option that is unknown, contradicts another, or has a value that cannot work."""


class DataError(LabError):
    """A dataset, image or mask that is missing, unreadable or not what its folder says."""


class RunError(LabError):
    """A run directory that is locked, incomplete, or belongs to another configuration."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> RunError:
        """What the system says of a file that cannot be written."""
        return cls(
            f"{error.filename or path} cannot be written ({error.strerror}). What was there before is untouched: once "
            "there is room, the same command goes on."
        )


class TrainingError(LabError):
    """A training that cannot go on, such as one whose loss is no longer a number."""


def require(option: str, value: object, known: Iterable[str]) -> None:
    """Check that an option has one of its known values.

    Raises:
        ConfigError: if not, with the nearest known one.
    """
    known = list(known)
    if value not in known:
        raise ConfigError(f"{option}={value!r} is unknown. {nearest(value, known)}")
