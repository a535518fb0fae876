"""Find and segment defects on industrial surfaces.

`from anomaly_lab import load; load(RUN_DIR).predict("image.png")` scores a picture by a trained run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_lab.detector import Detector, Result, load

__all__ = ["Detector", "Result", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for (PEP 562): the command line starts in a moment."""
    if name in __all__:
        from anomaly_lab import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
