"""Names of strategies or of what a study compares → colour, marker and dashes of their lines.

A strategy looks the same in every figure, whichever others are shown.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipelines.strategies import STRATEGIES

# Okabe and Ito's colours, then Tol's: apart for the common forms of colour blindness.
COLOURS = ("#56b4e9", "#d55e00", "#332288", "#44aa99", "#882255", "#999933")
_MARKERS = ("v", "X", "<", ">", "p", "h", "*")
_DASHES = ("-", (0, (6, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.5, 1)))


class Look(NamedTuple):
    """How a strategy is drawn; markers and dashes tell it from others where there is no colour."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]] = "-"


_LOOKS = {
    "random": Look("#777777", "o", _DASHES[1]),
    "entropy": Look("#e69f00", "s", _DASHES[3]),
    "margin": Look("#009e73", "^", _DASHES[2]),
    "least_confident": Look("#cc79a7", "D", _DASHES[1]),
    "mlmoc": Look("#0072b2", "P"),
}


# No two of the strategies' table look alike: there are as many pairs as colours times markers.
_PLACES = {name: place for place, name in enumerate(n for n in STRATEGIES if n not in _LOOKS)}


def look(strategy: str) -> Look:
    """Look of a strategy: by its place in the table, or by its name if it has none."""
    if strategy in _LOOKS:
        return _LOOKS[strategy]
    return _numbered(_PLACES.get(strategy, zlib.crc32(strategy.encode())))


def _numbered(number: int) -> Look:
    colour, marker, dash = (table[number % len(table)] for table in (COLOURS, _MARKERS, _DASHES))
    return Look(str(colour), str(marker), dash)


def looks(names: Iterable[str]) -> Callable[[str], Look]:
    """Looks of what one study compares: of strategies their own, of others ones not taken."""
    names = list(dict.fromkeys(names))
    taken = {name: look(name) for name in names if name in _LOOKS or name in _PLACES}
    free = (
        one
        for one in map(_numbered, itertools.count())
        if one[:2] not in {own[:2] for own in taken.values()}
    )
    found = taken | {name: next(free) for name in names if name not in taken}
    return lambda name: found.get(name) or look(name)
