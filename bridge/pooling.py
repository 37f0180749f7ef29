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

from bridge.ops import Scalar, register

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


@register("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(
    x: Array,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Array:
    """Maximum of each window; the first of ties has the gradient, and a NaN wins."""
    pooling = _pooling(x, kernel, stride, padding, dilation, ceil_mode)
    values = visit(x, pooling, -math.inf)
    best = next(values)
    for value in values:
        best = jnp.where((value > best) | jnp.isnan(value), value, best)
    return best


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


@register("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
@register("aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool(x: Array, output_size: Sequence[int]) -> Array:
    """Mean over windows that share out each axis: from ⌊i·n/m⌋ to ⌈(i+1)·n/m⌉."""
    rank = len(output_size)
    if all(size == 1 for size in output_size):
        return jnp.mean(x, tuple(range(-rank, 0)), keepdims=True)
    for axis, m in zip(range(-rank, 0), output_size, strict=True):
        n = x.shape[axis]
        shares = np.zeros((n, m))
        for i in range(m):
            start, end = i * n // m, -(-(i + 1) * n // m)
            shares[start:end, i] = 1 / (end - start)
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(shares, x.dtype), (axis, 0)), -1, axis)
    return x
