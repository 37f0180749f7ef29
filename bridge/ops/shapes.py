"""Operator rows: reshape, index, gather, scatter, sort, and constructors of batch-sized arrays.

Sizes are Python numbers, the batch's among them; arrays that no batch size decides are folded by
torch when the network is mirrored.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, Value, register

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


Shape = Sequence[int]


@register("aten.full.default")
def full(size: Shape, value: Value, *, dtype: Any = None, **_layout: Any) -> Array:
    """One value everywhere."""
    return jnp.full(tuple(size), value, dtype or _default_dtype(value))


@register("aten.scalar_tensor.default")
def scalar_tensor(value: Value, *, dtype: Any = None, **_layout: Any) -> Array:
    """One value, in float32 unless said."""
    return jnp.asarray(value, dtype or jnp.float32)


@register("aten.zeros.default", "aten.empty.memory_format")
def zeros(size: Shape, *, dtype: Any = None, **_layout: Any) -> Array:
    """Zeros, in float32 unless said; also for memory that the network is yet to write."""
    return jnp.zeros(tuple(size), dtype or jnp.float32)


@register("aten.ones.default")
def ones(size: Shape, *, dtype: Any = None, **_layout: Any) -> Array:
    """Ones, in float32 unless said."""
    return jnp.ones(tuple(size), dtype or jnp.float32)


@register("aten.full_like.default")
def full_like(x: Array, value: Value, *, dtype: Any = None, **_layout: Any) -> Array:
    """One value in the shape of x."""
    return jnp.full_like(x, value, dtype)


@register("aten.zeros_like.default")
def zeros_like(x: Array, *, dtype: Any = None, **_layout: Any) -> Array:
    """Zeros in the shape of x."""
    return jnp.zeros_like(x, dtype)


@register("aten.ones_like.default")
def ones_like(x: Array, *, dtype: Any = None, **_layout: Any) -> Array:
    """Ones in the shape of x."""
    return jnp.ones_like(x, dtype)


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


@register("aten.clone.default")
def identity(x: Array, **_layout: Any) -> Array:
    """The same values; memory layout means nothing here."""
    return x


@register("aten.detach.default")
def detach(x: Array) -> Array:
    """The same values, through which no gradient passes."""
    return jax.lax.stop_gradient(x)


@register("aten._to_copy.default")
def to(x: Array, *, dtype: Any = None, **_layout: Any) -> Array:
    """Another dtype; the device means nothing here."""
    return x if dtype is None else x.astype(dtype)


@register("aten.sym_size.int")
def sym_size(x: Array, dim: int) -> int:
    """Size of one axis."""
    return x.shape[dim]


@register("operator.getitem")
def getitem(values: Sequence[Any], index: int) -> Any:
    """One of several outputs."""
    return values[index]


@register("aten.view.default")
def view(x: Array, shape: Shape) -> Array:
    """The same values in another shape."""
    return jnp.reshape(x, tuple(shape))


@register("aten.permute.default")
def permute(x: Array, dims: Shape) -> Array:
    """Axes in another order."""
    return jnp.transpose(x, tuple(dims))


@register("aten.transpose.int")
def transpose(x: Array, dim0: int, dim1: int) -> Array:
    """Two axes swapped."""
    return jnp.swapaxes(x, dim0, dim1)


@register("aten.t.default")
def reverse_axes(x: Array) -> Array:
    """Axes in reverse order."""
    return x.T


@register("aten.squeeze.dims")
def squeeze(x: Array, dims: Shape) -> Array:
    """Axes of size 1 left out; the graph has taken the batch from those that are named."""
    return jnp.squeeze(x, tuple(dims))


@register("aten.unsqueeze.default")
def unsqueeze(x: Array, dim: int) -> Array:
    """A new axis of size 1."""
    return jnp.expand_dims(x, dim)


@register("aten.expand.default")
def expand(x: Array, sizes: Shape, **_implicit: Any) -> Array:
    """Axes of size 1 repeated; −1 keeps a size."""
    old = (1,) * (len(sizes) - x.ndim) + x.shape
    return jnp.broadcast_to(x, tuple(o if n == -1 else n for n, o in zip(sizes, old, strict=True)))


@register("aten.repeat.default")
def repeat(x: Array, repeats: Shape) -> Array:
    """The array tiled."""
    return jnp.tile(x, tuple(repeats))


@register("aten.select.int")
def select(x: Array, dim: int, index: int) -> Array:
    """One slice of an axis, which goes."""
    return jax.lax.index_in_dim(x, index, dim % x.ndim, keepdims=False)


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
    """The source in x's shape and dtype."""
    return jnp.broadcast_to(source, x.shape).astype(x.dtype)


@register("aten.cat.default")
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Arrays one after another along an axis; torch lets empty vectors through."""
    rank = max(t.ndim for t in tensors)
    return jnp.concatenate([t for t in tensors if t.ndim == rank], dim)


@register("aten.stack.default")
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Arrays side by side along a new axis."""
    return jnp.stack(tuple(tensors), dim)


@register("aten.split.Tensor", "aten.split_with_sizes.default")
def split(x: Array, size: int | Shape, dim: int = 0) -> tuple[Array, ...]:
    """Parts of one size, the last one smaller, or of given sizes."""
    total = x.shape[dim]
    if isinstance(size, int):
        edges = list(range(size, total, size))
    else:
        edges = [sum(size[: i + 1]) for i in range(len(size) - 1)]
    return tuple(jnp.split(x, edges, dim))


@register("aten.unbind.int")
def unbind(x: Array, dim: int = 0) -> tuple[Array, ...]:
    """The slices of an axis."""
    return tuple(select(x, dim, i) for i in range(x.shape[dim]))


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


@register("aten.diagonal.default")
def diagonal(x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """Values at equal places of two axes, which go; the diagonal comes last."""
    return jnp.diagonal(x, offset, dim1, dim2)


@register("aten.flip.default")
def flip(x: Array, dims: Shape) -> Array:
    """Axes reversed."""
    return jnp.flip(x, tuple(dims))


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
