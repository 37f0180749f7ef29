"""Dense linear algebra where the arrays are: NumPy and SciPy on a CPU, JAX elsewhere.

On a CPU nothing compiles, and large products go tile by tile, a single-threaded BLAS call each, on
all cores: a BLAS that divides one product between threads waits, spinning, for the slowest of them
(4.3 times the processor time of a whole kernel on a busy machine). On other devices arrays are
padded with zeros to multiples of a block (a factor with the identity), so that few shapes are
compiled. Which of the two is decided where arrays are placed; from then on their type says it.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from threadpoolctl import ThreadpoolController

from kernel import x64  # noqa: F401

# Labelled rows and candidates are padded to multiples of these.
LABELLED = 256
CANDIDATES = 512
# A tile of rows of S has at most this many entries: 128 MiB of float64.
_TILE_ENTRIES = 2**24
# Rows of S that are updated, or summed up, at a time on a CPU.
_CACHED_ROWS = 32

Matrix = np.ndarray | Array


def on_host() -> bool:
    """Whether matrices stay in NumPy: the default device is a CPU."""
    return jax.default_backend() == "cpu"


def padded(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def tile_rows(width: int) -> int:
    """Rows of a tile of this padded width: a power of two, 64 to 512."""
    rows = 512
    while rows > 64 and rows * width > _TILE_ENTRIES:
        rows //= 2
    return rows


def to_device(array: Matrix, shape: tuple[int, ...], dtype: str = "float64") -> Array:
    """On JAX's default device, with zeros appended up to `shape`."""
    if isinstance(array, Array):
        widths = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
        return jnp.pad(array.astype(dtype), widths)
    whole = np.zeros(shape, dtype)
    whole[tuple(slice(size) for size in array.shape)] = array
    return jnp.asarray(whole)


class Lower(NamedTuple):
    """A lower Cholesky factor.

    Attributes:
        values: on a CPU (rows, rows); on a device padded with the identity.
        rows: without the padding.
    """

    values: Matrix
    rows: int

    @property
    def pivots(self) -> Float[np.ndarray, " rows"]:
        """Squares of the diagonal: what was left of each row when its turn came."""
        return np.asarray(self.values.diagonal())[: self.rows] ** 2


def lower_factor(matrix: Float[np.ndarray, "rows rows"], shift: float, host: bool) -> Lower | None:
    """The factor of matrix + shift·I; None where there is none."""
    rows = len(matrix)
    if host:
        shifted = np.array(matrix, np.float64)
        shifted.flat[:: rows + 1] += shift
        try:
            return Lower(np.linalg.cholesky(shifted), rows)
        except np.linalg.LinAlgError:
            return None
    size = padded(rows, LABELLED)
    whole = np.eye(size)
    whole[:rows, :rows] = matrix
    whole.flat[: rows * (size + 1) : size + 1] += shift
    factor = jnp.linalg.cholesky(jnp.asarray(whole))
    return Lower(factor, rows) if bool(jnp.isfinite(factor).all()) else None


def solve_lower(factor: Lower, right: Matrix) -> Matrix:
    """C⁻¹B. On a device `right` has the rows of the padded factor, and so has the result."""
    if isinstance(factor.values, np.ndarray):
        if factor.rows == 1:  # BLAS would wake its threads for it
            return right / factor.values[0, 0]
        return _solve_columns(factor.values, np.asarray(right, np.float64))
    return _solve(factor.values, jnp.asarray(right, jnp.float64))


def row_blocks(rows: int, size: int) -> list[tuple[int, int]]:
    """Start and stop of consecutive blocks of at most `size` rows."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def subtract_outer(
    matrix: Matrix,
    left: Float[np.ndarray, "rows rank"],
    right: Float[np.ndarray, "columns rank"],
    then: Callable[[np.ndarray, np.ndarray], None] = lambda rows, room: None,
) -> Matrix:
    """Matrix − left rightᵀ, in the memory of `matrix`, which is gone afterwards.

    Args:
        matrix: is consumed.
        left: its rows' factors.
        right: its columns' factors.
        then: on the host, called with some rows of the result after another, while they are in a
            cache, and with room for as many.
    """
    if not isinstance(matrix, np.ndarray):
        rank = padded(left.shape[1], 8)
        return _subtract_outer(
            matrix,
            to_device(left, (matrix.shape[0], rank)),
            to_device(right, (matrix.shape[1], rank)),
        )
    left, right = left.astype(matrix.dtype, copy=False), right.astype(matrix.dtype, copy=False)
    across = np.ascontiguousarray(right.T)
    multiply = np.multiply if left.shape[1] == 1 else np.matmul
    for some, room in cached_rows(matrix):
        own = matrix[some]
        own -= multiply(left[some], across, out=room)
        then(own, room)
    return matrix


def cached_rows(matrix: Float[np.ndarray, "rows columns"]) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows after another, each with room for what becomes of them, which stays in a cache."""
    room = np.empty((min(_CACHED_ROWS, len(matrix)), matrix.shape[1]), matrix.dtype)
    for start, stop in row_blocks(len(matrix), _CACHED_ROWS):
        yield slice(start, stop), room[: stop - start]


@jax.jit
def _solve(factor, right):
    return jax.scipy.linalg.solve_triangular(factor, right, lower=True)


@partial(jax.jit, donate_argnums=0)
def _subtract_outer(matrix, left, right):
    return matrix - left @ right.T


# Rows of a tile: a product large enough for BLAS, small enough to share out.
TILE = 512


def add_gram(
    values: Float[np.ndarray, "rows rows"],
    rows: Float[np.ndarray, "rows columns"],
    *,
    subtract: bool = False,
) -> None:
    """Values ± rows rowsᵀ in place: products in the dtype of the rows, half of them by symmetry."""
    count, update = len(rows), np.subtract if subtract else np.add
    # at least some tiles a core, however few rows there are
    tile = max(1, min(TILE, -(-count // (2 * cores()))))

    def add(i: int, j: int) -> None:
        block = rows[i : i + tile] @ rows[j : j + tile].T
        ones, others = slice(i, i + tile), slice(j, j + tile)
        update(values[ones, others], block, out=values[ones, others])
        if i != j:
            update(values[others, ones], block.T, out=values[others, ones])

    starts = range(0, count, tile)
    in_threads([(i, j) for i in starts for j in starts if j >= i], add)


def add_products(
    values: Float[np.ndarray, "rows others"],
    rows: Float[np.ndarray, "rows columns"],
    others: Float[np.ndarray, "others columns"],
) -> None:
    """Values += rows othersᵀ, products in the dtype of the rows."""
    tile = max(1, min(TILE, -(-len(rows) // (2 * cores()))))

    def add(i: int) -> None:
        values[i : i + tile] += rows[i : i + tile] @ others.T

    in_threads([(i,) for i in range(0, len(rows), tile)], add)


def _solve_columns(
    factor: Float[np.ndarray, "inner inner"], right: Float[np.ndarray, "inner rows"]
) -> Float[np.ndarray, "inner rows"]:
    """C⁻¹B for a lower triangular C, some columns of B at a time, each column in one piece."""
    solved = np.empty(right.shape[::-1]).T  # as LAPACK returns them

    def solve(start: int) -> None:
        own = slice(start, start + TILE)
        solved[:, own] = scipy.linalg.solve_triangular(
            factor, right[:, own], lower=True, check_finite=False
        )

    in_threads([(start,) for start in range(0, right.shape[1], TILE)], solve)
    return solved


def cores() -> int:
    """Cores of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(tiles: list[tuple[int, ...]], work: Callable[..., None]) -> None:
    """Work on every tile, on all cores, each product of matrices on one of them."""
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(cores()) as pool:
        for done in [pool.submit(work, *tile) for tile in tiles]:
            done.result()


@cache
def _libraries() -> ThreadpoolController:
    """NumPy's and SciPy's BLAS, which are loaded by now; looking for them takes milliseconds."""
    return ThreadpoolController()
