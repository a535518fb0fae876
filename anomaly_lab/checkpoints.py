"""Reading and writing checkpoints, which may be anybody's: tensors and plain values, no code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomaly_lab.callbacks import History
from anomaly_lab.errors import RunError
from anomaly_lab.trainer import WholeCheckpoints


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; one that carries code is refused, not run.

    Raises:
        RunError: if the file is missing, truncated, or holds anything else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()) or file.testzip():
                raise zipfile.BadZipFile("its content does not fit its checksums")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a stranger's file, about how it might be read after all
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: `last` is there once a run is trained, `best` if it was trained with checkpoint=best."
        ) from None
    except MemoryError:
        raise
    except pickle.UnpicklingError:  # whose advice is to run its code
        raise RunError(
            f"{path} is damaged or holds more than tensors and plain values. Delete it and train again."
        ) from None
    except Exception as error:  # whatever a stranger's file makes of the reader
        first = str(error).partition("\n")[0]
        raise RunError(f"{path} cannot be read ({first}): if it is damaged, delete it and train again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RunError(f"{path} is no checkpoint: it has no state_dict.")
    return content


def restore(model: nn.Module, path: Path) -> None:
    """Load the weights of a checkpoint.

    Raises:
        RunError: if it is missing or damaged, or of another configuration.
    """
    try:
        model.load_state_dict(load_checkpoint(path)["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RunError(f"{path} does not fit the run's configuration: {' '.join(str(error).split())}") from None


def save_weights(path: Path, checkpoint: dict[str, Any], history: History) -> None:
    """Write weights, epoch and curves; the file is replaced in one step."""
    slim = {"state_dict": checkpoint["state_dict"], "epoch": checkpoint["epoch"], "history": history.state_dict()}
    WholeCheckpoints().save_checkpoint(slim, path)
