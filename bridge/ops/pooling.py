"""Rows of the operator table for pooling.

From images (…, height, width) to smaller ones. Windows are visited offset by offset as shifted
slices, so that the first maximum of a window has its gradient, as in torch, and derivatives stay
slices under `vmap`.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.ops.table import Scalar, register

Sizes = int | Sequence[int]


def per_axis(value: Sizes, rank: int) -> tuple[int, ...]:
    """One number an axis, from one for all of them or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


class Windows(NamedTuple):
    """Where the windows of a layer lie, one entry an axis; `counts` is the size of its output."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    counts: tuple[int, ...]


def _pooling(
    x: Array, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Windows:
    rank = len(kernel) if isinstance(kernel, Sequence) else x.ndim - 2
    kernel = per_axis(kernel, rank)
    stride = per_axis(stride, rank) or kernel
    padding, dilation = per_axis(padding, rank), per_axis(dilation, rank)
    counts = []
    for size, k, s, p, d in zip(x.shape[-rank:], kernel, stride, padding, dilation, strict=True):
        span = size + 2 * p - d * (k - 1) - 1
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:  # a window must start inside the image
            count -= 1
        counts.append(count)
    return Windows(kernel, stride, padding, dilation, tuple(counts))


def visit(x: Array, windows: Windows, fill: Scalar) -> Iterator[Array]:
    """The values at each offset in the window, in the order in which torch visits them."""
    rank = len(windows.kernel)
    edges = [(0, 0, 0)] * (x.ndim - rank)
    for size, k, s, p, d, count in zip(x.shape[-rank:], *windows, strict=True):
        edges.append((p, (count - 1) * s + d * (k - 1) + 1 - size - p, 0))
    padded = jax.lax.pad(x, jnp.asarray(fill, x.dtype), edges)
    for offset in itertools.product(*(range(k) for k in windows.kernel)):
        spans = [
            slice(o * d, o * d + (count - 1) * s + 1, s)
            for o, d, s, count in zip(
                offset, windows.dilation, windows.stride, windows.counts, strict=True
            )
        ]
        yield padded[(..., *spans)]


def _places(x: Array, rank: int) -> Array:
    """Where each pixel lies in its image, counted row by row."""
    shape = x.shape[-rank:]
    return jnp.broadcast_to(jnp.arange(math.prod(shape)).reshape(shape), x.shape)


@register("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool_with_indices(
    x: Array,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """Maximum of each window and where it is; the first of ties has the gradient, a NaN wins."""
    pooling = _pooling(x, kernel, stride, padding, dilation, ceil_mode)
    values = visit(x, pooling, -math.inf)
    places = visit(_places(x, len(pooling.kernel)), pooling, 0)
    best, where = next(values), next(places)
    for value, place in zip(values, places, strict=True):
        better = (value > best) | jnp.isnan(value)
        best, where = jnp.where(better, value, best), jnp.where(better, place, where)
    return best, where


@register("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(
    x: Array,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Array:
    """Maximum of each window."""
    return max_pool_with_indices(x, kernel, stride, padding, dilation, ceil_mode)[0]


@register("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def avg_pool(
    x: Array,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Mean of each window; what `ceil_mode` adds past the padding is never counted."""
    pooling = _pooling(x, kernel, stride, padding, 1, ceil_mode)
    total = functools.reduce(jnp.add, visit(x, pooling, 0))
    if divisor_override is not None:
        return total / divisor_override
    ones = jnp.ones(x.shape[-len(pooling.kernel) :], x.dtype)
    if count_include_pad:
        ones = jnp.pad(ones, [(p, p) for p in pooling.padding], constant_values=1)
        pooling = pooling._replace(padding=(0,) * len(pooling.kernel))
    return total / functools.reduce(jnp.add, visit(ones, pooling, 0))


def _shares(n: int, m: int) -> list[tuple[int, int]]:
    """The m windows that share out an axis of n: from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉."""
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


@register("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
@register("aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(x: Array, output_size: Sequence[int]) -> Array:
    """Mean over windows that share out each axis."""
    rank = len(output_size)
    if all(size == 1 for size in output_size):
        return jnp.mean(x, tuple(range(-rank, 0)), keepdims=True)
    for axis, m in zip(range(-rank, 0), output_size, strict=True):
        n = x.shape[axis]
        shares = np.zeros((n, m))
        for i, (start, end) in enumerate(_shares(n, m)):
            shares[start:end, i] = 1 / (end - start)
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(shares, x.dtype), (axis, 0)), -1, axis)
    return x


@register("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(x: Array, output_size: Sequence[int]) -> tuple[Array, Array]:
    """Maximum over windows that share out each axis, and where it is; the first of ties counts."""
    rank = len(output_size)
    places = _places(x, rank)
    # From the last axis on, the first of ties is the first in reading order.
    for axis, m in zip(range(-1, -rank - 1, -1), reversed(output_size), strict=True):
        values, where = [], []
        for start, end in _shares(x.shape[axis], m):
            window = jax.lax.slice_in_dim(x, start, end, axis=axis)
            spots = jax.lax.slice_in_dim(places, start, end, axis=axis)
            first = jnp.argmax(window, axis, keepdims=True)
            values.append(jnp.take_along_axis(window, first, axis))
            where.append(jnp.take_along_axis(spots, first, axis))
        x, places = jnp.concatenate(values, axis), jnp.concatenate(where, axis)
    return x, places


@register("aten.im2col.default")
def im2col(x: Array, kernel: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> Array:
    """Windows as columns: (batch, channels · kernel, windows)."""
    windows = _pooling(x, kernel, stride, padding, dilation, False)
    columns = jnp.stack(list(visit(x, windows, 0)), axis=2)
    size = x.shape[1] * math.prod(windows.kernel)
    return columns.reshape(x.shape[0], size, math.prod(windows.counts))
