"""Outputs of finished trainings on disk, one safetensors file each, whole or not there at all.

From an array of logits and what is to be said of its training to a file, and back.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from bridge.weights import replace
from pipelines.errors import PipelineError

_FORMAT = "ntk-lookahead audit 1"


class Outputs(NamedTuple):
    """What a trained network answers.

    Attributes:
        logits: float32 (points, classes).
        notes: how its training ended, JSON-able.
    """

    logits: np.ndarray
    notes: dict[str, Any]


def path_of(folder: Path, name: str) -> Path:
    """The file of a training."""
    return folder / f"{name}.safetensors"


def put(folder: Path, name: str, outputs: Outputs) -> None:
    """Write the outputs of a training.

    Raises:
        OSError: the file cannot be written; one that was there is untouched.
    """
    # safetensors scrambles what is not C-contiguous
    arrays = {"logits": np.ascontiguousarray(outputs.logits, np.float32)}
    notes = {"format": _FORMAT, "notes": json.dumps(outputs.notes)}
    replace(path_of(folder, name), safetensors.numpy.save(arrays, notes))


def get(folder: Path, name: str) -> Outputs | None:
    """The outputs of a training, or None if it has not been done yet.

    Raises:
        PipelineError: a file that cannot be understood.
    """
    path = path_of(folder, name)
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
            logits = file.get_tensor("logits")
    except safetensors.SafetensorError as error:
        raise _changed(path, str(error)) from error
    if found.get("format") != _FORMAT:
        raise _changed(path, f"its format is {found.get('format')!r}, not {_FORMAT!r}")
    return Outputs(logits, json.loads(found["notes"]))


def _changed(path: Path, what: str) -> PipelineError:
    return PipelineError(
        f"{path} is not the outputs of a training ({what}). An audit writes it whole or not at "
        "all, so something else changed it: delete it and give the same command again."
    )
