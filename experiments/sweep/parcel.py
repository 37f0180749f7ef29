"""A trial's record as bytes, for machines that have no folder in common.

From a directory to its files, and from files to a directory that can be resumed at any moment.
"""

from pathlib import Path

from bridge.weights import replace
from pipelines import record
from pipelines.sequential.config import ANSWERS

Files = dict[str, bytes]
"""Content by path below the directory, with slashes."""

# What says how far a record has come is written after what it speaks of.
_LAST = (ANSWERS, record.ROUNDS, record.NOTE)


def pack(folder: Path) -> Files:
    """The record in a directory; empty where there is none.

    Hidden files are left out: locks, files half written, and the pieces of an unfinished query,
    which are large and are computed again.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path.read_bytes()
    return found


def unpack(folder: Path, files: Files, stale: frozenset[str] = frozenset()) -> None:
    """Put a record in place, over an earlier state of the same.

    Each file is replaced whole, and those that say how far the record has come are the last, so
    that a process killed in between leaves a record that the trial goes on from.

    Args:
        folder: the directory, made if it is not there.
        files: the record.
        stale: files of the earlier state; those that the record has no more are removed.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=_turn):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, files[name])
    for name in stale - set(files):
        (folder / name).unlink(missing_ok=True)
    record.clear(folder)  # of a round that has been completed elsewhere


def _turn(name: str) -> int:
    return 1 + _LAST.index(name) if name in _LAST else 0
