"""JSON of measurements: plain values, a folder of cached results, records with their environments.

A slow result is cached under its name as soon as it is computed, and read by the same command after
it was killed.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from kernel.files import write_file
from pipelines.core import entries
from pipelines.core.errors import PipelineError
from pipelines.core.record import environment


def plain(value: Any) -> Any:
    """Lists, objects and null in place of arrays, named tuples and NaN, which JSON lacks."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(key: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that name a folder by everything that its results depend on."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Sixteen hexadecimal digits of the names, shapes, dtypes and values of arrays."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def path_of(folder: Path, name: str) -> Path:
    """The file of a cached result."""
    return folder / f"{name}.json"


def get(folder: Path, name: str) -> Any | None:
    """A cached result, or None if it has not been computed yet.

    Raises:
        PipelineError: the file is damaged, was changed, or is of another folder or name.
    """
    path = path_of(folder, name)
    if not path.is_file():
        return None
    try:
        cached = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _changed(path, f"is not valid JSON ({error})") from error
    if not isinstance(cached, dict) or cached.keys() != {"of", "sha256", "value"}:
        raise _changed(path, "is no cached result")
    if cached["of"] != _label(folder, name):
        raise _changed(path, f"is the result {cached['of']!r}, not {_label(folder, name)!r}")
    if cached["sha256"] != _digest(cached["value"]):
        raise _changed(path, "does not have the values that were written")
    return cached["value"]


def put(folder: Path, name: str, value: Any) -> Any:
    """Write a result atomically, and return it as it will be read.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    value = json.loads(json.dumps(plain(value), allow_nan=False))
    cached = {"of": _label(folder, name), "sha256": _digest(value), "value": value}
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path_of(folder, name), json.dumps(cached).encode())
    return value


def _label(folder: Path, name: str) -> str:
    return f"{folder.name}/{name}"


def _digest(value: Any) -> str:
    return entries.digest(json.dumps(value).encode())


def _changed(path: Path, what: str) -> PipelineError:
    return PipelineError(
        f"{path} {what}. It is written whole or not at all, so something else changed it: delete "
        "it and give the same command again."
    )


def get_or_compute(folder: Path, name: str, compute: Callable[[], Any]) -> Any:
    """The cached result, computed and written if it is not there."""
    cached = get(folder, name)
    return put(folder, name, compute()) if cached is None else cached


def write_record(path: Path, content: dict[str, Any], seconds: dict[str, float]) -> None:
    """Write the record of a measurement, with the environments of earlier ones kept in it.

    Seconds are wall time by stage, in this process.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    earlier = []
    if path.is_file():
        with suppress(ValueError, KeyError):  # damaged: nothing is computed from it
            earlier = json.loads(path.read_text("utf-8"))["environment"]
    record = plain(content | {"environment": [*earlier, environment() | {"seconds": seconds}]})
    write_file(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
