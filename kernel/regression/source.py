"""What S is streamed from: features of the candidates and A, which grows by a row for every label.

From Φ_U and A = C⁻¹K_LU to rows S[x, :] = φ_x Φ_Uᵀ − a_xᵀA, in the dtype of the features, by NumPy
on a CPU and by JAX, padded, elsewhere (docs/mathematics.md, 1).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from kernel.products import add_gram, subtract_gram
from kernel.regression.linalg import (
    CANDIDATES,
    LABELLED,
    Matrix,
    padded,
    row_blocks,
    tile_rows,
    to_device,
)


class Source(NamedTuple):
    """What S follows from when it is not kept.

    Attributes:
        features: Φ_U, (candidates, dimensions); rows padded on a device.
        a: A, (capacity, candidates), in the dtype of the features: `used` rows, then zeros.
        used: L, and one more for every label absorbed.
    """

    features: Matrix
    a: Matrix
    used: int

    @property
    def host(self) -> bool:
        """Whether it lies in NumPy arrays."""
        return isinstance(self.features, np.ndarray)


def capacity(labelled: int) -> int:
    """Rows of memory for A: some to spare, so that labels are absorbed without moving it."""
    return padded(labelled + 1, LABELLED)


def host_rows(
    source: Source, places: Int64[np.ndarray, " chosen"]
) -> Float[np.ndarray, "chosen candidates"]:
    """S[places, :] in the dtype of the features, on a CPU."""
    features, a = np.asarray(source.features), np.asarray(source.a)[: source.used]
    rows = features[places] @ features.T
    rows -= a[:, places].T @ a
    return rows


@jax.jit
def device_rows(
    features: Float[Array, "width dimensions"],
    a: Float[Array, "capacity width"],
    places: Int64[Array, " chosen"],
) -> Float[Array, "chosen width"]:
    """S[places, :] in float64, on a device: products in the dtype of the features."""
    rows = features[places] @ features.T - a[:, places].T @ a
    return rows.astype(jnp.float64)


def kept_rows(source: Source, sample: Int64[np.ndarray, " sample"]) -> Matrix:
    """S[sample, :] whole, in float64; rows padded on a device."""
    if source.host:
        return _host_kept(source, sample)
    places = np.zeros(padded(len(sample), CANDIDATES), np.int64)
    places[: len(sample)] = sample
    return device_rows(source.features, source.a, places)


def _host_kept(source: Source, sample: np.ndarray) -> np.ndarray:
    features, a = np.asarray(source.features), np.asarray(source.a)[: source.used]
    candidates = len(features)
    kept = np.zeros((len(sample), candidates))
    if np.array_equal(sample, np.arange(candidates)):  # half of the work
        add_gram(kept, features)
        subtract_gram(kept, a)
        return kept
    for start, stop in row_blocks(len(sample), tile_rows(candidates)):
        kept[start:stop] = host_rows(source, sample[start:stop])
    return kept


def appended(source: Source, v: Float[np.ndarray, "candidates rank"]) -> Source:
    """With Vᵀ below A, written into the spare rows of its memory while there are any."""
    features, a, used = source
    after = used + v.shape[1]
    if after > len(a):
        grown = capacity(after) - len(a)
        if isinstance(a, np.ndarray):
            a = np.concatenate([a.T, np.zeros((a.shape[1], grown), a.dtype)], axis=1).T
        else:
            a = jnp.pad(a, ((0, grown), (0, 0)))
    if isinstance(a, np.ndarray):
        a[used:after] = v.T
    else:
        rows = to_device(v.T, (v.shape[1], a.shape[1]), str(a.dtype))
        a = _rows_set(a, rows, used)
    return Source(features, a, after)


@partial(jax.jit, donate_argnums=0)
def _rows_set(a, rows, start):
    return jax.lax.dynamic_update_slice_in_dim(a, rows, start, 0)
