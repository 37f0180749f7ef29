"""Exceptions of the trainer, and look-up by name that suggests the nearest known one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar


class TrainerError(ValueError):
    """A wrong value given to the trainer."""


class UnknownNameError(TrainerError):
    """A name that is in none of the tables."""


class DataError(TrainerError):
    """Images, labels or files that cannot be used."""


class NetworkError(TrainerError):
    """A network that cannot be built or does not map images to logits."""


class FitError(TrainerError):
    """Training that cannot go on, such as a loss that is no longer finite."""


def some(values: Iterable[object], shown: int = 10) -> str:
    """The first of a list of values, and how many more there are."""
    listed = [str(value) for value in values]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The row of a table.

    Args:
        table: names and what they stand for.
        name: the name asked for.
        what: what the table lists, in the singular, such as `data set`.

    Raises:
        UnknownNameError: the name is not in the table; the message gives the nearest and all.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else "."
    raise UnknownNameError(f"unknown {what} {name!r}{hint} Known: {', '.join(table)}.")
