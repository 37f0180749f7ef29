"""What the kernels need to know of a network: a pure function and its two sets of arrays.

The kinds of kernel, each by the directions in which it looks at the logits.

From a kind and a number of classes to projections of the logits, one backward pass each
(docs/mathematics.md, 2).

Large matrix products on a CPU, tile by tile on all its cores.

From rows to the products of all pairs of them, added where they belong. Each tile is one
single-threaded BLAS call: a BLAS that divides one product between threads waits, spinning, for the
slowest of them, and on a machine with other work that is many times the product itself. Tiles are
written in place, so that no second matrix of the size of the kernel is needed.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree
from threadpoolctl import threadpool_limits

from kernel import x64  # noqa: F401
from kernel.errors import KernelError
from kernel.options import KINDS, PROBES, Precision

Params = PyTree[Float[Array, "..."]]
Frozen = PyTree[Array]
Function = Callable[[Params, Frozen, Array], Array]


class Model(NamedTuple):
    """A network as a function of its trainable parameters.

    `function(params, frozen, images)` maps a batch of images to logits of shape (batch, classes),
    each row depending on its own image only. It is the same object from one round to the next,
    so that what JAX compiled for it is kept; the arrays change.
    """

    function: Function
    params: Params
    frozen: Frozen


class Directions(NamedTuple):
    """How a kernel looks at the logits.

    Attributes:
        projections: (projections, classes), one v of v · f(x) a row.
        scale: factor of the summed products of gradients.
        square: every pair of projections has an entry of its own (`full`).
    """

    projections: Float[np.ndarray, "projections classes"]
    scale: float
    square: bool


def directions(
    kind: str, classes: int, probes: int = PROBES, rng: np.random.Generator | None = None
) -> Directions:
    """The directions of a kind.

    Args:
        kind: one of `KINDS`.
        classes: C.
        probes: m, how many projections `rademacher` takes.
        rng: where they come from.

    Raises:
        KernelError: unknown kind; no probes; no generator for random ones.
    """
    if kind not in KINDS:
        raise KernelError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}.")
    if probes < 1:
        raise KernelError(f"probes must be at least 1, not {probes}.")
    if kind == "single":
        return Directions(np.eye(1, classes), 1.0, False)
    if kind == "sum":
        return Directions(np.ones((1, classes)), 1.0 / classes, False)
    if kind == "rademacher":
        signs = given(rng, "the kind rademacher").choice((-1.0, 1.0), size=(probes, classes))
        return Directions(signs, 1.0 / (probes * classes), False)
    if kind == "trace":
        return Directions(np.eye(classes), 1.0 / classes, False)
    return Directions(np.eye(classes), 1.0, True)


def dtype_of(precision: Precision) -> Literal["float32", "float64"]:
    """Of the arrays that a kernel in this precision is made of."""
    return "float32" if precision == "tf32" else precision


def rounding_of(precision: Precision) -> float:
    """The relative distance of neighbouring numbers, of those that are multiplied."""
    return 2.0**-10 if precision == "tf32" else float(np.finfo(precision).eps)


def given(rng: np.random.Generator | None, what: str) -> np.random.Generator:
    """The generator, where one is needed.

    Raises:
        KernelError: there is none.
    """
    if rng is None:
        raise KernelError(f"{what} is random: give it a generator as rng.")
    return rng


def classes_of(model: Model, image: jax.ShapeDtypeStruct) -> int:
    """C, the number of logits of one image.

    Raises:
        KernelError: the model returns something else than one row of logits an image.
    """
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    logits = jax.eval_shape(model.function, model.params, model.frozen, one)
    if logits.ndim != 2:
        raise KernelError(
            f"the model maps one image to an array of shape {logits.shape}; a kernel needs logits "
            "of shape (1, classes)."
        )
    return logits.shape[1]


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
