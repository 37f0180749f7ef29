"""Images that are read a few at a time: an array, or what makes some when they are asked for.

From indices or stored pixels and a function to something that a network goes through batch by
batch, with no more than a batch of normalised images in memory, however large the pool is.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Images(Protocol):
    """(examples, channels, height, width), as the network takes them; an array is one."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, places: slice, /) -> np.ndarray:
        """Some of them."""
        ...


class Piecewise:
    """Images that are made when they are read, and not kept."""

    def __init__(self, make: Callable[[np.ndarray], np.ndarray], of: np.ndarray):
        """Nothing is made yet.

        Args:
            make: some entries of `of` → as many images as the network takes them.
            of: data-set indices, or pixels as they are stored.
        """
        self._make, self._of = make, of

    def __len__(self) -> int:
        """How many."""
        return len(self._of)

    def __getitem__(self, places: slice, /) -> np.ndarray:
        """Some of them."""
        return self._make(self._of[places])
