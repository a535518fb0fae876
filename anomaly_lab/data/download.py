"""Downloading a file that is large, over connections that break: what has come is kept, and the rest is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from anomaly_lab.errors import DataError

log = logging.getLogger("anomaly_lab")

_PIECE = 2**18
_PATIENCE = 30  # seconds without a byte
TRIES = 5  # without any progress, before it gives up


def download(address: str, path: Path, *, pause: float = 1.0) -> None:
    """Bring a file here; `path` is there when it is whole. Cut off, the same call goes on where it stopped.

    Args:
        pause: seconds before the next try, twice as long each time.

    Raises:
        DataError: if the address is none, or nothing comes any more; what has come stays in `path`.part.
    """
    if not address.startswith(("http://", "https://")):
        raise DataError(f"{address!r} is no address of the web: http://... or https://... is.")
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, error = 0, "no answer"
    while failures < TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            with _ask(address, before) as answer:
                whole = _receive(answer, part, before)
            if whole:
                part.replace(path)
                return
            error = "the connection broke"
        except HTTPError as refusal:
            if refusal.code == 416:  # more is here than there is: another file than before
                part.unlink(missing_ok=True)
            elif refusal.code < 500:
                raise DataError(f"{address}: refused ({refusal.code} {refusal.reason}).") from None
            error = f"{refusal.code} {refusal.reason}"
        except ValueError as refused:
            raise DataError(f"{address!r} is no address of the web: {refused}.") from None
        except (URLError, HTTPException, OSError) as broken:
            error = str(getattr(broken, "reason", broken))
        came = (part.stat().st_size if part.exists() else 0) - before
        failures = 0 if came > 0 else failures + 1
        if failures < TRIES:
            time.sleep(pause * 2**failures)
    has_begun = part.exists() and part.stat().st_size > 0
    advice = "The same command goes on where it stopped." if has_begun else "Is there a network?"
    raise DataError(f"{address}: did not come ({error}). {advice}")


@contextmanager
def _ask(address: str, start: int) -> Iterator[HTTPResponse]:
    request = Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=_PATIENCE) as answer:
        yield answer


def _receive(answer: HTTPResponse, part: Path, start: int) -> bool:
    """Write what comes; whether that is all of it."""
    goes_on = answer.status == 206
    expected = answer.headers.get("Content-Length")
    written = 0
    with part.open("ab" if goes_on else "wb") as file:
        while piece := answer.read(_PIECE):
            file.write(piece)
            written += len(piece)
    log.info("%.1f MiB", ((start if goes_on else 0) + written) / 2**20)
    return expected is None or written == int(expected)
