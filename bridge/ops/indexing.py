"""Rows of the operator table that look values up by place, put them there, or order them.

From arrays and places, which are whole numbers, to arrays.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Value, register

Places = Sequence[Array | None]


def _where(indices: Places) -> tuple[Array | slice, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


@register("aten.index.Tensor")
def index(x: Array, indices: Places) -> Array:
    """x[indices]; None takes a whole axis. The graph refuses masks, which give no fixed size."""
    return x[_where(indices)]


@register("aten.index_put.default")
def index_put(x: Array, indices: Places, values: Array, accumulate: bool = False) -> Array:
    """The array with values put, or added, at places, or wherever one mask is true."""
    places, last = _where(indices), indices[-1]
    if last is not None and last.dtype == jnp.bool_:
        behind = x.ndim - (len(indices) - 1) - last.ndim
        mask = last.reshape(last.shape + (1,) * behind)
        return jnp.where(mask, x + values if accumulate else values, x)
    x = x.astype(jnp.result_type(x, values))
    return x.at[places].add(values) if accumulate else x.at[places].set(values)


@register("aten.index_select.default")
def index_select(x: Array, dim: int, places: Array) -> Array:
    """Slices of an axis, in the order of their places."""
    return jnp.take(x, places.reshape(-1), dim)


@register("aten.embedding.default")
def embedding(
    weight: Array,
    indices: Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    """Rows of a table; the row of the padding has no gradient."""
    del scale_grad_by_freq, sparse  # of training alone
    rows = jnp.take(weight, indices, 0)
    padding = (indices == padding_idx)[..., None]
    return jnp.where(padding, jax.lax.stop_gradient(rows), rows)


def _grid(x: Array, dim: int, places: Array) -> tuple[Array, ...]:
    """The index of every value that `places` speaks of, which says where along one axis."""
    grid = list(jnp.indices(places.shape, sparse=True))
    grid[dim] = places
    return tuple(grid)


@register("aten.gather.default")
def gather(x: Array, dim: int, places: Array, *, sparse_grad: bool = False) -> Array:
    """Values looked up along one axis; the others may be longer than those of the places."""
    del sparse_grad
    return x[_grid(x, dim, places)]


@register("aten.scatter.src", "aten.scatter.value")
def scatter(x: Array, dim: int, places: Array, source: Value) -> Array:
    """The array with values put at places along one axis."""
    return x.at[_grid(x, dim, places)].set(_reached(source, places))


@register("aten.scatter_add.default")
def scatter_add(x: Array, dim: int, places: Array, source: Array) -> Array:
    """The array with values added at places along one axis."""
    return x.at[_grid(x, dim, places)].add(_reached(source, places))


def _reached(source: Value, places: Array) -> Value:
    if not isinstance(source, Array):
        return source
    return source[tuple(slice(n) for n in places.shape)]


@register("aten.sort.default")
def sort(x: Array, dim: int = -1, descending: bool = False) -> tuple[Array, Array]:
    """Values in order along an axis, and where they were; ties stay in their order."""
    order = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


@register("aten.sort.stable")
def sort_stable(
    x: Array, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Array, Array]:
    """The same; ours is always stable."""
    del stable
    return sort(x, dim, descending)


@register("aten.topk.default")
def topk(
    x: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Array, Array]:
    """The k largest, or smallest, values along an axis in order, and where they were."""
    del sorted
    values, order = sort(x, dim, largest)
    return jax.lax.slice_in_dim(values, 0, k, axis=dim), jax.lax.slice_in_dim(order, 0, k, axis=dim)


@register("aten.argmax.default")
def argmax(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Where the first maximum is."""
    return jnp.argmax(x, dim, keepdims=keepdim)


@register("aten.argmin.default")
def argmin(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Where the first minimum is."""
    return jnp.argmin(x, dim, keepdims=keepdim)
