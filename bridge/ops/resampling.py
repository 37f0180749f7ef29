"""Rows of the operator table that resize images.

From images (…, height, width) to images of another size. Each axis is resized by itself: it is
the product with a small matrix, which depends on sizes alone and is made with NumPy.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.ops.table import register

Shape = Sequence[int]
Scales = Sequence[float]
# From the sizes of an axis, its scale if one was given, and align_corners to (new, old) weights.
Weights = Callable[[int, int, float | None, bool], np.ndarray]


def _axes(x: Array, size: Shape | None, scales: Scales | None) -> list[tuple[int, float | None]]:
    """New size of each axis, and its scale where the user gave scales and no sizes."""
    if size is not None:
        return [(m, None) for m in size]
    rank = len(scales or ())
    return [(int(n * s), s) for n, s in zip(x.shape[-rank:], scales or (), strict=True)]


def _ratio(n: int, m: int, scale: float | None, align_corners: bool = False) -> float:
    """How far apart in the old image two neighbours in the new one are."""
    if align_corners:
        return (n - 1) / (m - 1) if m > 1 else 0.0
    return 1 / scale if scale else n / m


@register("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec")
@register("aten.upsample_nearest3d.vec")
def nearest(x: Array, size: Shape | None, scales: Scales | None, shift: float = 0.0) -> Array:
    """The old pixel that a new one begins in."""
    axes = _axes(x, size, scales)
    for axis, (m, scale) in zip(range(-len(axes), 0), axes, strict=True):
        n = x.shape[axis]
        # torch rounds these places to float32, whatever the dtype of the images.
        places = np.arange(m, dtype=np.float32) + np.float32(shift)
        old = np.floor(places * np.float32(_ratio(n, m, scale))).astype(int)
        x = jnp.take(x, np.minimum(old, n - 1), axis)
    return x


@register("aten._upsample_nearest_exact1d.vec", "aten._upsample_nearest_exact2d.vec")
@register("aten._upsample_nearest_exact3d.vec")
def nearest_exact(x: Array, size: Shape | None, scales: Scales | None) -> Array:
    """The old pixel that the middle of a new one lies in."""
    return nearest(x, size, scales, 0.5)


def _resize(
    x: Array, size: Shape | None, align_corners: bool, scales: Scales | None, weights: Weights
) -> Array:
    axes = _axes(x, size, scales)
    for axis, (m, scale) in zip(range(-len(axes), 0), axes, strict=True):
        matrix = jnp.asarray(weights(x.shape[axis], m, scale, align_corners), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, (axis, 1)), -1, axis)
    return x


def _gathered(n: int, m: int, places: np.ndarray, kernel: Callable[[float], float]) -> np.ndarray:
    """Weights of a kernel around places in the old axis; what lies outside is the edge."""
    matrix = np.zeros((m, n))
    for i, place in enumerate(places):
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), n - 1)] += kernel(place - j)
    return matrix


def _places(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Where in the old axis the middle of each new pixel lies."""
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
    return _gathered(n, m, np.maximum(_places(n, m, scale, align_corners), 0), _tent)


def _bicubic(n: int, m: int, scale: float | None, align_corners: bool) -> np.ndarray:
    places = _places(n, m, scale, align_corners)
    return _gathered(n, m, places, lambda t: _cubic(t, -0.75))


def _antialiased(reach: int, kernel: Callable[[float], float]) -> Weights:
    """A kernel stretched over all that a smaller pixel covers; inside the image it sums to 1."""

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


@register("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec")
@register("aten.upsample_trilinear3d.vec")
def linear(x: Array, size: Shape | None, align_corners: bool, scales: Scales | None) -> Array:
    """A mean of the two nearest pixels along each axis."""
    return _resize(x, size, align_corners, scales, _linear)


@register("aten.upsample_bicubic2d.vec")
def bicubic(x: Array, size: Shape | None, align_corners: bool, scales: Scales | None) -> Array:
    """Cubic convolution over the four nearest pixels along each axis."""
    return _resize(x, size, align_corners, scales, _bicubic)


@register("aten._upsample_bilinear2d_aa.vec")
def linear_antialiased(
    x: Array, size: Shape | None, align_corners: bool, scales: Scales | None
) -> Array:
    """Tents as wide as a new pixel, where that is wider than an old one."""
    return _resize(x, size, align_corners, scales, _antialiased(1, _tent))


@register("aten._upsample_bicubic2d_aa.vec")
def bicubic_antialiased(
    x: Array, size: Shape | None, align_corners: bool, scales: Scales | None
) -> Array:
    """Cubic kernels stretched to a new pixel, where that is wider than an old one."""
    return _resize(x, size, align_corners, scales, _antialiased(2, lambda t: _cubic(t, -0.5)))
