"""Data sets kept in memory from one run to the next of the same process.

Within `DataMemory.used` a data set is read once, however many runs ask for it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trainer.data import Dataset

_USED: ContextVar["DataMemory | None"] = ContextVar("data memory", default=None)


class DataMemory:
    """The data sets that were asked for last."""

    def __init__(self, count: int = 2):
        """Of at most so many."""
        self._count = count
        self._kept: OrderedDict[Hashable, Dataset] = OrderedDict()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it `remembered` looks here first."""
        token = _USED.set(self)
        try:
            yield
        finally:
            _USED.reset(token)

    def get(self, key: Hashable, read: Callable[[], Dataset]) -> Dataset:
        """The data set of a key, read if it is not there."""
        if key not in self._kept:
            while len(self._kept) >= self._count:  # first, so that there are never more in memory
                self._kept.popitem(last=False)
            self._kept[key] = read()
        self._kept.move_to_end(key)
        return self._kept[key]


def remembered(key: Hashable, read: Callable[[], Dataset]) -> Dataset:
    """The data set of a key: from the memory in use, or read where none is.

    Args:
        key: of everything that the data set is read from.
        read: reads it.
    """
    memory = _USED.get()
    return read() if memory is None else memory.get(key, read)
