"""Validation of the entries of a record: their presence, types and ranges.

A record is written whole or not at all, so that an entry of another type was changed by something
else: it is refused in words, and never computed with.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.core.errors import PipelineError


class Kind(NamedTuple):
    """A kind of JSON value.

    Attributes:
        words: for messages.
        holds: whether a value is of it.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


COUNT = Kind("a whole number from 0", lambda value: _is_whole(value) and value >= 0)
NUMBER = Kind("a number", _is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
ANY_OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def below(bound: int, what: str) -> Kind:
    """Whole numbers from 0 to bound − 1."""
    words = f"{what} from 0 to {bound - 1}"
    return Kind(words, lambda value: COUNT.holds(value) and value < bound)


def optional(kind: Kind) -> Kind:
    """The kind, or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def list_of(kind: Kind) -> Kind:
    """Lists of the kind."""
    return Kind(
        f"a list, each element {kind.words}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def object_of(kind: Kind) -> Kind:
    """Objects whose values are all of the kind."""
    return Kind(
        f"an object, each value {kind.words}",
        lambda value: isinstance(value, dict) and all(map(kind.holds, value.values())),
    )


def check_entries(where: str, entries: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse an entry that is missing or of another kind.

    Raises:
        PipelineError: the first of them.
    """
    for name, kind in kinds.items():
        if name not in entries:
            raise changed(f"{where} has no {name!r}, which must be {kind.words}")
        if not kind.holds(entries[name]):
            raise changed(f"{where} has {name!r} {entries[name]!r:.80}, which must be {kind.words}")


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def check_file(path: Path, expected: str, recorded: Path) -> None:
    """Refuse a file whose digest is not the one recorded.

    Raises:
        PipelineError: it is missing or was changed; the message names both files.
    """
    if not path.is_file():
        raise changed(f"{path} is missing, and {recorded} was written after it")
    found = digest(path.read_bytes())
    if found != expected:
        raise changed(f"{path} has the SHA-256 {found}… and {recorded} says {expected}…")


def changed(what: str) -> PipelineError:
    """The error of a file that was changed after it was written."""
    return PipelineError(
        f"{what}. The run writes it whole or not at all, so something else changed it: restore "
        "it, or start the run in a new directory."
    )
