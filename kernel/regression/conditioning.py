"""Conditioning on the labelled set: A, what it explains of the candidates, D and S.

From a kernel's blocks and the Cholesky factor of K_LL to A = C⁻¹K_LU, the diagonal of AᵀA,
D = AᵀC⁻¹(Y − f_L) and S = K_UU − AᵀA, by NumPy on a CPU and by JAX, padded, elsewhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64

from kernel.kinds import dtype_of
from kernel.ntk import Kernel
from kernel.products import subtract_gram
from kernel.regression.covariance import Covariance
from kernel.regression.inputs import Blocks, Features
from kernel.regression.linalg import (
    CANDIDATES,
    Lower,
    Matrix,
    padded,
    row_blocks,
    solve_lower,
    tile_rows,
    to_device,
)
from kernel.regression.source import Source, capacity

# Columns of A solved for at a time on a CPU.
SOLVED = 4096


class Conditioned(NamedTuple):
    """What the labelled set says about the candidates.

    Attributes:
        a: A, padded on a device; with features in their dtype and with room to grow.
        explained: diagonal of AᵀA, what the labelled set explains of each candidate's variance.
        drift: D, by rows of the kernel.
    """

    a: Matrix
    explained: Float[np.ndarray, " candidates"]
    drift: Float[np.ndarray, "candidates _"]


def condition(
    blocks: Blocks, factor: Lower, residual: Float[np.ndarray, "labelled _"]
) -> Conditioned:
    """Solve for all candidates with the factor of K_LL + λI, where the factor is.

    Args:
        blocks: the kernel.
        factor: C.
        residual: Y − f_L by rows of the kernel.
    """
    if isinstance(factor.values, np.ndarray):
        return _condition(blocks, factor, residual)
    size, candidates = factor.values.shape[0], blocks.candidates
    width = padded(candidates, CANDIDATES)
    a = solve_lower(factor, to_device(blocks.cross(0, candidates), (size, width)))
    solved = solve_lower(factor, to_device(residual, (size, residual.shape[1])))
    explained, drift = _explained(a, solved)
    if isinstance(blocks.given, Features):
        a = to_device(a, (capacity(blocks.labelled), width), _dtype(blocks))
    return Conditioned(a, np.asarray(explained)[:candidates], np.array(drift)[:candidates])


def _condition(blocks: Blocks, factor: Lower, residual: np.ndarray) -> Conditioned:
    """Some columns at a time: with features there is no (L,U) array in float64."""
    with_features = isinstance(blocks.given, Features)
    rows = capacity(blocks.labelled) if with_features else blocks.labelled
    a = np.zeros((blocks.candidates, rows), _dtype(blocks)).T  # in the order of solutions
    explained = np.empty(blocks.candidates)
    drift = np.empty((blocks.candidates, residual.shape[1]))
    solved = np.asarray(solve_lower(factor, residual))
    for start, stop in row_blocks(blocks.candidates, SOLVED):
        columns = np.asarray(solve_lower(factor, blocks.cross(start, stop)))
        a[: blocks.labelled, start:stop] = columns
        explained[start:stop] = np.einsum("ij,ij->j", columns, columns)
        drift[start:stop] = columns.T @ solved
    return Conditioned(a, explained, drift)


def _dtype(blocks: Blocks) -> str:
    """Of A: with features it is multiplied beside them; else S is made of it in float64."""
    return dtype_of(blocks.given.precision) if isinstance(blocks.given, Features) else "float64"


def covariance(
    blocks: Blocks, a: Matrix, sample: Int64[np.ndarray, " sample"], *, keep: bool, in_place: bool
) -> Covariance:
    """S between the sample's rows and all candidates, where A is.

    Args:
        blocks: the kernel.
        a: A, of `condition`.
        sample: rows of candidates.
        keep: hold S; only features can do without.
        in_place: let S take the memory of a dense kernel, if it is in float64 and on the CPU.
    """
    candidates = blocks.candidates
    if not isinstance(blocks.given, Features):
        if isinstance(a, np.ndarray):
            kept = _kept(blocks, a, sample, in_place)
        else:
            kept = _device_kept(blocks, a, sample)
        return Covariance(sample, candidates, kept, None)
    features = blocks.matrix[blocks.labelled :]
    if isinstance(a, np.ndarray):
        features = np.asarray(features)
    else:
        features = to_device(features, (a.shape[1], features.shape[1]), _dtype(blocks))
    streamed = Covariance(sample, candidates, None, Source(features, a, blocks.labelled))
    return streamed.made_kept() if keep else streamed


def _kept(blocks: Blocks, a: np.ndarray, rows: np.ndarray, in_place: bool) -> np.ndarray:
    matrix = np.asarray(blocks.matrix)
    every = isinstance(blocks.given, Kernel) and np.array_equal(rows, np.arange(len(a.T)))
    if every and in_place and matrix.dtype == np.float64 and matrix.flags.writeable:
        own = matrix[blocks.labelled :, blocks.labelled :]
        subtract_gram(own, a)
        return own
    if every:
        kept = np.array(matrix[blocks.labelled :, blocks.labelled :], np.float64)
        subtract_gram(kept, a)
        return kept
    kept = a[:, rows].T @ a
    for start, stop in row_blocks(len(rows), tile_rows(blocks.candidates)):
        own = blocks.candidate_rows(rows, start, stop)
        np.subtract(own, kept[start:stop], out=kept[start:stop])
    return kept


def _device_kept(blocks: Blocks, a: jax.Array, rows: np.ndarray) -> jax.Array:
    size = padded(len(rows), CANDIDATES)
    k_mu = to_device(blocks.candidate_rows(rows, 0, len(rows)), (size, a.shape[1]))
    places = np.concatenate([rows, np.zeros(size - len(rows), np.int64)])
    return _schur(k_mu, a, places)


@jax.jit
def _explained(a, solved):
    return jnp.sum(a**2, axis=0), a.T @ solved


@jax.jit
def _schur(k_mu, a, places):
    return k_mu - a[:, places].T @ a
