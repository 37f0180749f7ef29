"""Replace a file whole or not at all, whatever happens while it is written."""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write beside the target, force it to the disk, then put it in the target's place.

    The file beside it has one name, so that one left by a killed process is written over.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
