"""What the package says in a terminal: its own messages, each warning once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable


def log_to_console() -> None:
    """Let the package's messages through, each warning once."""
    console = logging.StreamHandler()
    console.addFilter(said_once())
    logging.basicConfig(format="%(message)s", handlers=[console])
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # no line of our code under a sentence
    logging.getLogger("anomaly_lab").setLevel(logging.INFO)


def said_once() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets each warning through once: both stages of a run, and all jobs of a sweep, read one folder."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        before = len(said)
        said.add(record.getMessage())
        return len(said) > before

    return is_new
