"""Operator rows: pooling and resizing of images (…, height, width).

Windows are visited offset by offset as shifted slices, so that the gradient goes to the first
maximum of a window, as in torch, and derivatives stay slices under `vmap`. Each axis is resized
separably by a small matrix that depends on sizes alone and is made in NumPy.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.ops.table import Scalar, enter, register

Sizes = int | Sequence[int]


def per_axis(value: Sizes, rank: int) -> tuple[int, ...]:
    """One number an axis, from one for all of them or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


class Windows(NamedTuple):
    """Windows of a layer, one entry per axis; `counts` is the size of its output."""

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
    """Values at each offset in the window, in torch's order."""
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


def _positions(x: Array, rank: int) -> Array:
    """Flat position of each pixel in its image."""
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
    """Maximum of each window and its position; the first of ties has the gradient, a NaN wins."""
    pooling = _pooling(x, kernel, stride, padding, dilation, ceil_mode)
    values = visit(x, pooling, -math.inf)
    positions = visit(_positions(x, len(pooling.kernel)), pooling, 0)
    best, index = next(values), next(positions)
    for value, position in zip(values, positions, strict=True):
        better = (value > best) | jnp.isnan(value)
        best, index = jnp.where(better, value, best), jnp.where(better, position, index)
    return best, index


@register("aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default")
def max_pool(x: Array, *window: Any) -> Array:
    """Maximum of each window."""
    return max_pool_with_indices(x, *window)[0]


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
    """Maximum over windows that share out each axis, and its position; the first of ties counts."""
    rank = len(output_size)
    positions = _positions(x, rank)
    # From the last axis on, the first of ties is the first in reading order.
    for axis, m in zip(range(-1, -rank - 1, -1), reversed(output_size), strict=True):
        values, indices = [], []
        for start, end in _shares(x.shape[axis], m):
            window = jax.lax.slice_in_dim(x, start, end, axis=axis)
            own = jax.lax.slice_in_dim(positions, start, end, axis=axis)
            first = jnp.argmax(window, axis, keepdims=True)
            values.append(jnp.take_along_axis(window, first, axis))
            indices.append(jnp.take_along_axis(own, first, axis))
        x, positions = jnp.concatenate(values, axis), jnp.concatenate(indices, axis)
    return x, positions


@register("aten.im2col.default")
def im2col(x: Array, kernel: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> Array:
    """Windows as columns: (batch, channels · kernel, windows)."""
    windows = _pooling(x, kernel, stride, padding, dilation, False)
    columns = jnp.stack(list(visit(x, windows, 0)), axis=2)
    size = x.shape[1] * math.prod(windows.kernel)
    return columns.reshape(x.shape[0], size, math.prod(windows.counts))


Shape = Sequence[int]
Scales = Sequence[float]
# (old size, new size, the user's scale, align_corners) → weights (new, old) of one axis.
Weights = Callable[[int, int, float | None, bool], np.ndarray]


def _axes(x: Array, size: Shape | None, scales: Scales | None) -> list[tuple[int, float | None]]:
    """New size of each axis, and its scale where the user gave scales and no sizes."""
    if size is not None:
        return [(m, None) for m in size]
    rank = len(scales or ())
    return [(int(n * s), s) for n, s in zip(x.shape[-rank:], scales or (), strict=True)]


def _ratio(n: int, m: int, scale: float | None, align_corners: bool = False) -> float:
    """Spacing in the source image of neighbours in the resized one."""
    if align_corners:
        return (n - 1) / (m - 1) if m > 1 else 0.0
    return 1 / scale if scale else n / m


def _nearest(shift: float, x: Array, size: Shape | None, scales: Scales | None) -> Array:
    """The old pixel at each new one's start (shift 0) or centre (shift ½)."""
    axes = _axes(x, size, scales)
    for axis, (m, scale) in zip(range(-len(axes), 0), axes, strict=True):
        n = x.shape[axis]
        # torch rounds these positions to float32, whatever the dtype of the images.
        positions = np.arange(m, dtype=np.float32) + np.float32(shift)
        old = np.floor(positions * np.float32(_ratio(n, m, scale))).astype(int)
        x = jnp.take(x, np.minimum(old, n - 1), axis)
    return x


def _resize(
    weights: Weights, x: Array, size: Shape | None, align_corners: bool, scales: Scales | None
) -> Array:
    axes = _axes(x, size, scales)
    for axis, (m, scale) in zip(range(-len(axes), 0), axes, strict=True):
        matrix = jnp.asarray(weights(x.shape[axis], m, scale, align_corners), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, (axis, 1)), -1, axis)
    return x


def _gathered(
    n: int, m: int, positions: np.ndarray, kernel: Callable[[float], float]
) -> np.ndarray:
    """Weights of a kernel around positions in the old axis, padded by repeating its edges."""
    matrix = np.zeros((m, n))
    for i, position in enumerate(positions):
        for j in range(math.floor(position) - 1, math.floor(position) + 3):
            matrix[i, min(max(j, 0), n - 1)] += kernel(position - j)
    return matrix


def _resampled_positions(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Position in the old axis of the centre of each new pixel."""
    ratio, i = _ratio(n, m, scale, align_corners), np.arange(m)
    return ratio * i if align_corners else ratio * (i + 0.5) - 0.5


def _tent(t: float) -> float:
    return max(0.0, 1 - abs(t))


def _cubic(t: float, a: float) -> float:
    """The kernel of R. Keys, Cubic convolution interpolation (1981), of slope a at 1."""
    t = abs(t)
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0


def _linear(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    return _gathered(n, m, np.maximum(_resampled_positions(n, m, scale, align_corners), 0), _tent)


def _bicubic(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    positions = _resampled_positions(n, m, scale, align_corners)
    return _gathered(n, m, positions, lambda t: _cubic(t, -0.75))


def _antialiased(reach: int, kernel: Callable[[float], float]) -> Weights:
    """A kernel stretched to a larger new pixel, normalised to sum 1 inside the image."""

    def weights(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
        ratio = _ratio(n, m, scale, align_corners)
        stretch, matrix = max(ratio, 1.0), np.zeros((m, n))
        for i in range(m):
            middle = ratio * (i + 0.5)
            start = max(int(middle - reach * stretch + 0.5), 0)
            end = min(int(middle + reach * stretch + 0.5), n)
            for j in range(start, end):
                matrix[i, j] = kernel((j - middle + 0.5) / stretch)
        return matrix / matrix.sum(1, keepdims=True)

    return weights


enter(
    {
        "aten.upsample_nearest1d.vec aten.upsample_nearest2d.vec aten.upsample_nearest3d.vec": (
            functools.partial(_nearest, 0.0)
        ),
        "aten._upsample_nearest_exact1d.vec aten._upsample_nearest_exact2d.vec "
        "aten._upsample_nearest_exact3d.vec": functools.partial(_nearest, 0.5),
        "aten.upsample_linear1d.vec aten.upsample_bilinear2d.vec aten.upsample_trilinear3d.vec": (
            functools.partial(_resize, _linear)
        ),
        "aten.upsample_bicubic2d.vec": functools.partial(_resize, _bicubic),
        "aten._upsample_bilinear2d_aa.vec": functools.partial(_resize, _antialiased(1, _tent)),
        "aten._upsample_bicubic2d_aa.vec": functools.partial(
            _resize, _antialiased(2, lambda t: _cubic(t, -0.5))
        ),
    }
)
