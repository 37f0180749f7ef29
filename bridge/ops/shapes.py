"""Operator rows: reshape, index, gather, scatter, sort, and constructors of batch-sized arrays.

Sizes are Python numbers, the batch's among them; arrays whose shape is independent of the batch are
folded by torch when the network is mirrored. Devices and memory layouts have no meaning in JAX.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, Value, enter, register

Shape = Sequence[int]
Indices = Sequence[Array | None]


def _with_slices(indices: Indices) -> tuple[Array | slice, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


@register("aten.index.Tensor")
def index(x: Array, indices: Indices) -> Array:
    """x[indices]; None takes a whole axis. The graph refuses masks, which give no fixed size."""
    return x[_with_slices(indices)]


@register("aten.index_put.default")
def index_put(x: Array, indices: Indices, values: Array, accumulate: bool = False) -> Array:
    """The array with values put, or added, at indices, or wherever one mask is true."""
    last = indices[-1]
    if last is not None and last.dtype == jnp.bool_:
        behind = x.ndim - (len(indices) - 1) - last.ndim
        mask = last.reshape(last.shape + (1,) * behind)
        return jnp.where(mask, x + values if accumulate else values, x)
    x = x.astype(jnp.result_type(x, values))
    target = x.at[_with_slices(indices)]
    return target.add(values) if accumulate else target.set(values)


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


def _grid(dim: int, indices: Array) -> tuple[Array, ...]:
    """Open mesh that applies `indices` along one axis."""
    grid = list(jnp.indices(indices.shape, sparse=True))
    grid[dim] = indices
    return tuple(grid)


@register("aten.gather.default")
def gather(x: Array, dim: int, indices: Array, *, sparse_grad: bool = False) -> Array:
    """Values looked up along one axis; other axes may be longer than those of the indices."""
    del sparse_grad
    return x[_grid(dim, indices)]


@register("aten.scatter.src", "aten.scatter.value")
def scatter(x: Array, dim: int, indices: Array, source: Value) -> Array:
    """The array with values put at indices along one axis."""
    return x.at[_grid(dim, indices)].set(_cropped(source, indices))


@register("aten.scatter_add.default")
def scatter_add(x: Array, dim: int, indices: Array, source: Array) -> Array:
    """The array with values added at indices along one axis."""
    return x.at[_grid(dim, indices)].add(_cropped(source, indices))


def _cropped(source: Value, indices: Array) -> Value:
    if not isinstance(source, Array):
        return source
    return source[tuple(slice(n) for n in indices.shape)]


@register("aten.sort.default")
def sort(x: Array, dim: int = -1, descending: bool = False) -> tuple[Array, Array]:
    """Values in order along an axis, and where they were; ties stay in their order."""
    order = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, order, dim), order


@register("aten.topk.default")
def topk(
    x: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Array, Array]:
    """The k largest, or smallest, values along an axis in order, and where they were."""
    del sorted
    values, order = sort(x, dim, largest)
    return jax.lax.slice_in_dim(values, 0, k, axis=dim), jax.lax.slice_in_dim(order, 0, k, axis=dim)


@register("aten.full.default")
def full(size: Shape, value: Value, *, dtype: Any = None, **_layout: Any) -> Array:
    """One value everywhere."""
    return jnp.full(tuple(size), value, dtype or _default_dtype(value))


def _filled(function: Callable[..., Array]) -> Callable[..., Array]:
    """A constructor whose default dtype is torch's, float32."""
    return lambda value, *, dtype=None, **_layout: function(value, dtype=dtype or jnp.float32)


def _like(function: Callable[..., Array]) -> Callable[..., Array]:
    """A constructor whose default dtype is that of its argument."""
    return lambda *args, dtype=None, **_layout: function(*args, dtype=dtype)


@register("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(*bounds: Scalar, dtype: Any = None, **_layout: Any) -> Array:
    """Numbers at equal steps; whole bounds give int64."""
    whole = all(isinstance(b, int) for b in bounds)
    return jnp.arange(*bounds, dtype=dtype or (jnp.int64 if whole else jnp.float32))


def _default_dtype(value: Value) -> Any:
    if isinstance(value, bool):
        return jnp.bool_
    if isinstance(value, (int, float)):
        return jnp.int64 if isinstance(value, int) else jnp.float32
    return value.dtype


@register("aten.expand.default")
def expand(x: Array, sizes: Shape, **_implicit: Any) -> Array:
    """Axes of size 1 repeated; −1 keeps a size."""
    old = (1,) * (len(sizes) - x.ndim) + x.shape
    return jnp.broadcast_to(x, tuple(o if n == -1 else n for n, o in zip(sizes, old, strict=True)))


def _slice(x: Array, dim: int, start: int | None, end: int | None, step: int) -> tuple[Any, ...]:
    return (*[slice(None)] * (dim % x.ndim), slice(start, end, step))


@register("aten.slice.Tensor")
def slice_(
    x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    """Part of an axis."""
    return x[_slice(x, dim, start, end, step)]


@register("aten.slice_scatter.default")
def slice_scatter(
    x: Array,
    source: Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    """An array with part of an axis replaced."""
    return x.at[_slice(x, dim, start, end, step)].set(source)


@register("aten.select_scatter.default")
def select_scatter(x: Array, source: Array, dim: int, index: int) -> Array:
    """An array with one slice of an axis replaced."""
    return x.at[(*[slice(None)] * (dim % x.ndim), index)].set(source)


@register("aten.copy.default")
def copy(x: Array, source: Array, _non_blocking: bool = False) -> Array:
    """The source in the shape and dtype of x."""
    return jnp.broadcast_to(source, x.shape).astype(x.dtype)


@register("aten.cat.default")
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Arrays one after another along an axis; torch lets empty vectors through."""
    rank = max(t.ndim for t in tensors)
    return jnp.concatenate([t for t in tensors if t.ndim == rank], dim)


@register("aten.split.Tensor", "aten.split_with_sizes.default")
def split(x: Array, size: int | Shape, dim: int = 0) -> tuple[Array, ...]:
    """Parts of one size, the last one smaller, or of given sizes."""
    total = x.shape[dim]
    if isinstance(size, int):
        edges = list(range(size, total, size))
    else:
        edges = [sum(size[: i + 1]) for i in range(len(size) - 1)]
    return tuple(jnp.split(x, edges, dim))


@register("aten.unfold.default")
def unfold(x: Array, dim: int, size: int, step: int) -> Array:
    """Windows along an axis, each along a new last one."""
    count = (x.shape[dim] - size) // step + 1
    starts = [_slice(x, dim, i, i + (count - 1) * step + 1, step) for i in range(size)]
    return jnp.stack([x[start] for start in starts], -1)


@register("aten.roll.default")
def roll(x: Array, shifts: Shape, dims: Shape = ()) -> Array:
    """Values moved along axes, from the end to the beginning; of all values where none is named."""
    return jnp.roll(x, tuple(shifts), tuple(dims)) if dims else jnp.roll(x, shifts[0])


@register("aten.pad.default")
def pad(x: Array, widths: Shape, mode: str = "constant", value: Scalar | None = None) -> Array:
    """Last axes padded, or cropped where a width is negative; widths from the last axis on."""
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -2, -2)]
    if mode == "constant":
        fill = jnp.asarray(value or 0, x.dtype)
        return jax.lax.pad(x, fill, [(low, high, 0) for low, high in pairs])
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return jnp.pad(x, pairs, names[mode])


def _to(x: Array, *, dtype: Any = None, **_layout: Any) -> Array:
    return x if dtype is None else x.astype(dtype)


def _select(x: Array, dim: int, index: int) -> Array:
    return jax.lax.index_in_dim(x, index, dim % x.ndim, keepdims=False)


# Operators that JAX has under other names or with other arguments.
enter(
    {
        "aten.argmax.default": lambda x, dim=None, keep=False: jnp.argmax(x, dim, keepdims=keep),
        "aten.argmin.default": lambda x, dim=None, keep=False: jnp.argmin(x, dim, keepdims=keep),
        "aten.clone.default": lambda x, **_layout: x,
        "aten.detach.default": jax.lax.stop_gradient,
        "aten.diagonal.default": jnp.diagonal,
        "aten.flip.default": jnp.flip,
        "aten.full_like.default": _like(jnp.full_like),
        "aten.index_select.default": lambda x, dim, indices: jnp.take(x, indices.reshape(-1), dim),
        "aten.ones.default": _filled(jnp.ones),
        "aten.ones_like.default": _like(jnp.ones_like),
        "aten.permute.default": jnp.transpose,
        "aten.repeat.default": jnp.tile,
        "aten.scalar_tensor.default": _filled(jnp.asarray),
        "aten.select.int": _select,
        # `sort` is stable.
        "aten.sort.stable": lambda x, *, stable=None, dim=-1, descending=False: sort(
            x, dim, descending
        ),
        # Never the axis of the batch: `bridge.graph` leaves it out.
        "aten.squeeze.dims": jnp.squeeze,
        "aten.stack.default": jnp.stack,
        "aten.sym_size.int": lambda x, dim: x.shape[dim],
        "aten.t.default": jnp.transpose,
        "aten.transpose.int": jnp.swapaxes,
        "aten._to_copy.default": _to,
        "aten.unbind.int": lambda x, dim=0: tuple(_select(x, dim, i) for i in range(x.shape[dim])),
        "aten.unsqueeze.default": jnp.expand_dims,
        "aten.view.default": jnp.reshape,
        # Memory that the network writes before it reads it.
        "aten.zeros.default aten.empty.memory_format": _filled(jnp.zeros),
        "aten.zeros_like.default": _like(jnp.zeros_like),
        "operator.getitem": operator.getitem,
    }
)
