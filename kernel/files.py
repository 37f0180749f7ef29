"""Atomic replacement of files.

A reader, and whoever starts after a process was killed, finds a file's old contents or its new.
Data go to a temporary file in the target's folder, are flushed to the disk and renamed over the
target. The temporary file is opened with O_EXCL | O_NOFOLLOW under a name that cannot be predicted,
so that a link planted in a shared folder leads nowhere. Standard library only.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

_SUFFIX = ".new"
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(_SUFFIX)}")
_FLAGS = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file, or make it.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    write_files({path: data})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Replace several files together, in their order.

    All are on the disk before the first is renamed; where a rename fails, those before it are
    undone. Only a process killed between two renames leaves some of them new and some old.

    Raises:
        OSError: one of them cannot be written; the old files are untouched.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            staged[path] = _stage(path, data)
        _rename(staged)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    if os.name == "posix":
        for parent in dict.fromkeys(path.parent for path in contents):
            folder = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files of killed processes; nobody may be writing to the folder."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _stage(path: Path, data: bytes) -> Path:
    """Write a temporary file beside the path and flush it to the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    descriptor = os.open(temporary, _FLAGS, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _rename(staged: Mapping[Path, Path]) -> None:
    """Rename each temporary file over its target, or none."""
    together, old = len(staged) > 1, {}
    try:
        for path, temporary in staged.items():
            before = path.read_bytes() if together and path.is_file() else None
            os.replace(temporary, path)
            old[path] = before
    except BaseException:
        for path, before in old.items():
            if before is None:
                path.unlink(missing_ok=True)
            else:
                os.replace(_stage(path, before), path)
        raise
