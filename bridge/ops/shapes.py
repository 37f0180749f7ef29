"""Rows of the operator table that move and select values.

From arrays to arrays; sizes are Python numbers, the batch's among them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, register

Shape = Sequence[int]


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
