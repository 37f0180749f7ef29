"""What one pass keeps of the anchors on a CPU, and its products with itself and with others.

From chunks of rows and factors to blocks of the kernel. Rows are multiplied by BLAS, which does
half the work where both sides are the same; factors in tiles whose products stay in the cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel import products
from kernel.engine.scratch import Scratch
from kernel.layers.pairs import alone, pair
from kernel.layers.passes import Chunk, Factor, Part

_TILE_BYTES = 2**23


class Store:
    """Rows and factors of the anchors, filled chunk by chunk.

    Attributes:
        anchors: how many images it holds in the end.
        parts: of the pass.
        arrays: names of what it has in the scratch.
    """

    def __init__(
        self, anchors: int, parts: tuple[Part, ...], scratch: Scratch | None = None, name: str = ""
    ):
        """Nothing is allocated before the first chunk tells shapes and dtypes.

        Args:
            anchors: how many images it holds in the end.
            parts: of the pass.
            scratch: where arrays come from; plain memory if None.
            name: of this pass in it.
        """
        self.anchors = anchors
        self.parts = parts
        self._scratch, self._name = scratch or Scratch(), name
        self._factored = tuple(part for part in parts if part.form != "rows")
        self._rows: np.ndarray | None = None
        self.arrays: list[str] = []
        self._factors: list[Factor] = []
        self._tiles: list[int] = []

    def put(self, start: int, chunk: Chunk) -> None:
        """Keep a chunk whose first image is the anchor `start`; what lies past the end is left."""
        if self._rows is None:
            self._allocate(chunk)
        assert self._rows is not None
        count = min(len(chunk.rows), self.anchors - start)
        self._rows[start : start + count] = np.asarray(chunk.rows)[:count]
        for own, given in zip(self._factors, chunk.factors, strict=True):
            axis = _images_axis(given)
            place = (slice(None),) * axis + (slice(start, start + count),)
            own.inputs[place] = np.asarray(given.inputs)[(slice(None),) * axis + (slice(count),)]
            own.cotangents[:, start : start + count] = np.asarray(given.cotangents)[:, :count]

    def add_gram(self, values: Float[np.ndarray, "rows rows"]) -> None:
        """Add this pass's part of the kernel of the anchors with themselves to `values`."""
        rows = self._flat()
        if rows.shape[1]:
            products.add_gram(values, rows)
        for part, factor, tile in zip(self._factored, self._factors, self._tiles, strict=True):
            starts = range(0, self.anchors, tile)
            for i in starts:
                for j in range(i, self.anchors, tile):
                    block = self._pair(part, _slice(factor, i, tile), _slice(factor, j, tile))
                    _add(values, block, i, j)
                    if i != j:
                        _add(values, block.transpose(2, 3, 0, 1), j, i)

    def add_cross(
        self, values: Float[np.ndarray, "rows columns"], chunk: Chunk, count: int
    ) -> None:
        """Add the part of the kernel between the anchors and the first images of a chunk."""
        rows, others = self._flat(), np.asarray(chunk.rows)[:count]
        if rows.shape[1]:
            products.add_products(values, rows, others.reshape(-1, rows.shape[1]))
        own = zip(self._factored, self._factors, chunk.factors, self._tiles, strict=True)
        for part, factor, other, tile in own:
            for i in range(0, self.anchors, tile):
                _add(values, self._pair(part, _slice(factor, i, tile), other), i, 0)

    def diagonal(self, chunk: Chunk) -> Float[np.ndarray, "images rows rows"]:
        """The part of the kernel between each image of a chunk and itself, in float64."""
        rows = np.asarray(chunk.rows, np.float64)
        total = np.einsum("irp,isp->irs", rows, rows)
        for part, factor in zip(self._factored, chunk.factors, strict=True):
            assert part.unit.rule is not None
            total += np.asarray(alone(part.unit.rule, part.form, factor))
        return total

    def _allocate(self, chunk: Chunk) -> None:
        _, count, columns = chunk.rows.shape
        self._rows = self._array("rows", (self.anchors, count, columns), chunk.rows.dtype)
        for number, factor in enumerate(chunk.factors):
            tile = _tile(factor, self.anchors)
            length = -(-self.anchors // tile) * tile
            self._factors.append(
                Factor(
                    self._like(f"inputs-{number}", factor.inputs, _images_axis(factor), length),
                    self._like(f"cotangents-{number}", factor.cotangents, 1, length),
                )
            )
            self._tiles.append(tile)

    def _like(self, name: str, array: jax.Array | np.ndarray, axis: int, length: int) -> np.ndarray:
        shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
        return self._array(name, shape, array.dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        full = f"{self._name}-{name}"
        self.arrays.append(full)
        return self._scratch.array(full, shape, dtype)

    def _flat(self) -> np.ndarray:
        assert self._rows is not None
        anchors, count, columns = self._rows.shape
        return self._rows.reshape(anchors * count, columns)

    def _pair(self, part: Part, one: Factor, other: Factor) -> np.ndarray:
        assert part.unit.rule is not None
        return np.asarray(pair(part.unit.rule, part.form, one, other))


def _add(values: np.ndarray, block: np.ndarray, i: int, j: int) -> None:
    """Add a tile whose images begin at i and j; what it has past the ends is padding."""
    each = block.shape[1]
    flat = block.reshape(len(block) * each, -1)
    target = values[i * each : i * each + len(flat), j * each : j * each + flat.shape[1]]
    target += flat[: target.shape[0], : target.shape[1]]


def _slice(factor: Factor, start: int, tile: int) -> Factor:
    place = (slice(None),) * _images_axis(factor) + (slice(start, start + tile),)
    return Factor(
        jnp.asarray(factor.inputs[place]), jnp.asarray(factor.cotangents[:, start : start + tile])
    )


def _images_axis(factor: Factor) -> int:
    """Features come after images, but an embedding's entries have none."""
    return factor.inputs.ndim - (1 if jnp.issubdtype(factor.inputs.dtype, jnp.integer) else 2)


def _tile(factor: Factor, anchors: int) -> int:
    """Images on a side of a tile whose largest product takes a few MiB."""
    positions = int(np.prod(factor.inputs.shape[: _images_axis(factor)]))
    each = (
        positions * positions * factor.cotangents.shape[2] ** 2 * factor.cotangents.dtype.itemsize
    )
    # a power of two for few images, so that one more does not compile anew
    few = 1 << (anchors - 1).bit_length()
    return max(1, min(few, 512, int((_TILE_BYTES / each) ** 0.5)))
