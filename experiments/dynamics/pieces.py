"""What has been measured, on disk: one JSON file a piece, whole or not there at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.atomic import replace
from pipelines.errors import PipelineError
from pipelines.findings import plain


def path_of(folder: Path, name: str) -> Path:
    """The file of a piece."""
    return folder / f"{name}.json"


def get(folder: Path, name: str) -> Any | None:
    """A piece, or None if it has not been measured yet.

    Raises:
        PipelineError: a file that cannot be understood.
    """
    path = path_of(folder, name)
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise PipelineError(
            f"{path} is not valid JSON ({error}). It is written whole or not at all, so something "
            "else changed it: delete it and give the same command again."
        ) from error


def put(folder: Path, name: str, value: Any) -> Any:
    """Write a piece, and give it back as it will be read.

    Raises:
        OSError: the file cannot be written; one that was there is untouched.
    """
    text = json.dumps(plain(value), allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    replace(path_of(folder, name), text.encode())
    return json.loads(text)


def once(folder: Path, name: str, measure: Callable[[], Any]) -> Any:
    """The piece as it is on disk, measured now if it is not there."""
    found = get(folder, name)
    return put(folder, name, measure()) if found is None else found
