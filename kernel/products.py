"""Large matrix products on a CPU, tile by tile on all its cores.

From rows to the products of all pairs of them, added where they belong. Each tile is one
single-threaded BLAS call: a BLAS that divides one product between threads waits, spinning, for the
slowest of them, and on a machine with other work that is many times the product itself. Tiles are
written in place, so that no second matrix of the size of the kernel is needed.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg
from jaxtyping import Float
from threadpoolctl import threadpool_limits

# Rows of a tile: a product large enough for BLAS, small enough to share out.
TILE = 512


def add_gram(
    values: Float[np.ndarray, "rows rows"], rows: Float[np.ndarray, "rows columns"]
) -> None:
    """Values += rows rowsᵀ: products in the dtype of the rows, half of them by symmetry."""
    count = len(rows)
    # at least some tiles a core, however few rows there are
    tile = max(1, min(TILE, -(-count // (2 * cores()))))

    def add(i: int, j: int) -> None:
        block = rows[i : i + tile] @ rows[j : j + tile].T
        values[i : i + tile, j : j + tile] += block
        if i != j:
            values[j : j + tile, i : i + tile] += block.T

    starts = range(0, count, tile)
    _shared_out([(i, j) for i in starts for j in starts if j >= i], add)


def add_products(
    values: Float[np.ndarray, "rows others"],
    rows: Float[np.ndarray, "rows columns"],
    others: Float[np.ndarray, "others columns"],
) -> None:
    """Values += rows othersᵀ, products in the dtype of the rows."""
    tile = max(1, min(TILE, -(-len(rows) // (2 * cores()))))

    def add(i: int) -> None:
        values[i : i + tile] += rows[i : i + tile] @ others.T

    _shared_out([(i,) for i in range(0, len(rows), tile)], add)


def subtract_gram(
    matrix: Float[np.ndarray, "rows rows"], a: Float[np.ndarray, "inner rows"]
) -> None:
    """Matrix −= AᵀA in place; `matrix` is symmetric and may be a part of a larger array."""
    tile = max(1, min(TILE, -(-len(matrix) // (2 * cores()))))

    def subtract(i: int, j: int) -> None:
        block = a[:, i : i + tile].T @ a[:, j : j + tile]
        matrix[i : i + tile, j : j + tile] -= block
        if i != j:
            matrix[j : j + tile, i : i + tile] -= block.T

    starts = range(0, len(matrix), tile)
    _shared_out([(i, j) for i in starts for j in starts if j >= i], subtract)


def solve_lower(
    factor: Float[np.ndarray, "inner inner"], right: Float[np.ndarray, "inner rows"]
) -> Float[np.ndarray, "inner rows"]:
    """C⁻¹B for a lower triangular C, some columns of B at a time, each column in one piece."""
    solved = np.empty(right.shape[::-1]).T  # as LAPACK returns them

    def solve(start: int) -> None:
        own = slice(start, start + TILE)
        solved[:, own] = scipy.linalg.solve_triangular(
            factor, right[:, own], lower=True, check_finite=False
        )

    _shared_out([(start,) for start in range(0, right.shape[1], TILE)], solve)
    return solved


def cores() -> int:
    """Of this machine, those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shared_out(tiles: list[tuple[int, ...]], work: Callable[..., None]) -> None:
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        for done in [pool.submit(work, *tile) for tile in tiles]:
            done.result()
