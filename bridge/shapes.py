"""Rows of the operator table that move and select values.

From arrays to arrays; sizes are Python numbers, the batch's among them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops import Scalar, register

Shape = Sequence[int]


@register("aten.contiguous.default", "aten.clone.default", "aten.alias.default")
@register("aten.lift_fresh_copy.default", "aten.positive.default")
def identity(x: Array, **_layout: Any) -> Array:
    """The same values; memory layout means nothing here."""
    return x


@register("aten.detach.default")
def detach(x: Array) -> Array:
    """The same values, through which no gradient passes."""
    return jax.lax.stop_gradient(x)


@register("aten.to.dtype", "aten._to_copy.default", "aten.to.dtype_layout", "aten.to.device")
def to(x: Array, *placement: Any, dtype: Any = None, **_layout: Any) -> Array:
    """Another dtype; the device means nothing here."""
    for value in placement:
        dtype = value if isinstance(value, jnp.dtype) else dtype
    return x if dtype is None else jnp.asarray(x, dtype)


@register("aten.type_as.default")
def type_as(x: Array, other: Array) -> Array:
    """The dtype of another array."""
    return x.astype(other.dtype)


@register("aten.sym_size.int")
def sym_size(x: Array, dim: int) -> int:
    """Size of one axis."""
    return x.shape[dim]


@register("operator.getitem")
def getitem(values: Sequence[Any], index: int) -> Any:
    """One of several outputs."""
    return values[index]


@register("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(x: Array, shape: Shape) -> Array:
    """The same values in another shape."""
    return jnp.reshape(x, tuple(shape))


@register("aten.flatten.using_ints")
def flatten(x: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    """Several axes made one."""
    start, end = start_dim % max(x.ndim, 1), end_dim % max(x.ndim, 1)
    return x.reshape((*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


@register("aten.unflatten.int")
def unflatten(x: Array, dim: int, sizes: Shape) -> Array:
    """One axis made several."""
    dim %= x.ndim
    return x.reshape((*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


@register("aten.permute.default")
def permute(x: Array, dims: Shape) -> Array:
    """Axes in another order."""
    return jnp.transpose(x, tuple(dims))


@register("aten.transpose.int")
def transpose(x: Array, dim0: int, dim1: int) -> Array:
    """Two axes swapped."""
    return jnp.swapaxes(x, dim0, dim1)


@register("aten.t.default", "aten.numpy_T.default")
def reverse_axes(x: Array) -> Array:
    """Axes in reverse order."""
    return x.T


@register("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(x: Array, dims: int | Shape) -> Array:
    """Axes of size 1 left out; others that are named stay."""
    dims = (dims,) if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(d for d in dims if x.shape[d] == 1))


@register("aten.unsqueeze.default")
def unsqueeze(x: Array, dim: int) -> Array:
    """A new axis of size 1."""
    return jnp.expand_dims(x, dim)


@register("aten.expand.default")
def expand(x: Array, sizes: Shape, **_implicit: Any) -> Array:
    """Axes of size 1 repeated; −1 keeps a size."""
    old = (1,) * (len(sizes) - x.ndim) + x.shape
    return jnp.broadcast_to(x, tuple(o if n == -1 else n for n, o in zip(sizes, old, strict=True)))


@register("aten.expand_as.default")
def expand_as(x: Array, other: Array) -> Array:
    """Repeated to the shape of another array."""
    return jnp.broadcast_to(x, other.shape)


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


@register("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default")
def split(x: Array, size: int | Shape, dim: int = 0) -> tuple[Array, ...]:
    """Parts of one size, the last one smaller, or of given sizes."""
    total = x.shape[dim]
    if isinstance(size, int):
        edges = list(range(size, total, size))
    else:
        edges = [sum(size[: i + 1]) for i in range(len(size) - 1)]
    return tuple(jnp.split(x, edges, dim))


@register("aten.chunk.default")
def chunk(x: Array, chunks: int, dim: int = 0) -> tuple[Array, ...]:
    """At most so many parts of one size, the last one smaller."""
    return split(x, -(-x.shape[dim] // chunks), dim)


@register("aten.unbind.int")
def unbind(x: Array, dim: int = 0) -> tuple[Array, ...]:
    """The slices of an axis."""
    return tuple(select(x, dim, i) for i in range(x.shape[dim]))


@register("aten.flip.default")
def flip(x: Array, dims: Shape) -> Array:
    """Axes reversed."""
    return jnp.flip(x, tuple(dims))


@register("aten.pad.default", "aten.constant_pad_nd.default")
def pad(x: Array, widths: Shape, mode: Any = "constant", value: Scalar | None = None) -> Array:
    """Last axes padded, or cropped where a width is negative; widths from the last axis on."""
    if not isinstance(mode, str):  # constant_pad_nd has the value in this place
        mode, value = "constant", mode
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2)
    pairs += [(widths[i], widths[i + 1]) for i in range(len(widths) - 2, -2, -2)]
    if mode == "constant":
        fill = jnp.asarray(value or 0, x.dtype)
        return jax.lax.pad(x, fill, [(low, high, 0) for low, high in pairs])
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return jnp.pad(x, pairs, names[mode])
