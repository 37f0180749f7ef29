"""Rows that are used up, for later chunks to write over.

From the parts of a pass to arrays of one shape, taken and given back by several threads. New memory
costs a CPU more than what is written to it: the system hands it over page by page, filled with
zeros, and XLA fills it with zeros again.
"""

from queue import Empty, SimpleQueue

import jax
import jax.numpy as jnp
import numpy as np

from kernel.layers.passes import Part


class Spare:
    """Arrays for the rows of a chunk: as many as were ever held at a time.

    Attributes:
        like: shape and dtype of each.
    """

    def __init__(
        self, parts: tuple[Part, ...], images: int, projections: int, square: bool, dtype: np.dtype
    ):
        """Nothing is allocated yet.

        Args:
            parts: of the pass.
            images: of a chunk.
            projections: of the pass.
            square: a row for each projection; else one for all.
            dtype: of the rows.
        """
        columns = sum(part.columns for part in parts)
        rows = (projections, columns) if square else (1, projections * columns)
        self.like = jax.ShapeDtypeStruct((images, *rows), dtype)
        self._spare: SimpleQueue[jax.Array] = SimpleQueue()

    def take(self) -> jax.Array:
        """An array whose values mean nothing."""
        try:
            return self._spare.get_nowait()
        except Empty:
            return jnp.zeros(self.like.shape, self.like.dtype)

    def give(self, rows: jax.Array) -> None:
        """Back, by a caller who looks at it no more."""
        self._spare.put(rows)
