"""Rows of the operator table that reduce an axis or make values from nothing.

From arrays, or from sizes, to arrays.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops import Scalar, Value, register

Axes = int | Sequence[int] | None
Shape = Sequence[int]


def _axes(dim: Axes) -> int | tuple[int, ...] | None:
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None  # an empty list means every axis


@register("aten.mean.dim", "aten.mean.default")
def mean(x: Array, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Mean over axes."""
    return jnp.mean(x, _axes(dim), dtype=dtype, keepdims=keepdim)


@register("aten.sum.dim_IntList", "aten.sum.default")
def sum_(x: Array, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Sum over axes."""
    return jnp.sum(x, _axes(dim), dtype=dtype, keepdims=keepdim)


@register("aten.var.correction")
def var(x: Array, dim: Axes = None, *, correction: Scalar = 1, keepdim: bool = False) -> Array:
    """Variance over axes, the sum of squares divided by (size − correction)."""
    return jnp.var(x, _axes(dim), ddof=int(correction), keepdims=keepdim)


@register("aten.amax.default")
def amax(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    """Maximum over axes; ties share the gradient."""
    return jnp.max(x, _axes(dim), keepdims=keepdim)


@register("aten.amin.default")
def amin(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    """Minimum over axes; ties share the gradient."""
    return jnp.min(x, _axes(dim), keepdims=keepdim)


@register("aten.max.dim")
def max_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Maximum over one axis and where it is; the first of ties has the gradient."""
    where = jnp.argmax(x, dim, keepdims=True)
    values = jnp.take_along_axis(x, where, dim)
    return (values, where) if keepdim else (values.squeeze(dim), where.squeeze(dim))


@register("aten.logsumexp.default")
def logsumexp(x: Array, dim: Axes, keepdim: bool = False) -> Array:
    """The logarithm of Σ eˣ over axes."""
    return jax.nn.logsumexp(x, _axes(dim), keepdims=keepdim)


@register("aten.linalg_vector_norm.default")
def vector_norm(
    x: Array, order: Scalar = 2, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """(Σ |x|^order)^(1/order) over axes; the norm of zeros has gradient 0."""
    x = x if dtype is None else x.astype(dtype)
    total = jnp.sum(jnp.abs(x) ** order, _axes(dim), keepdims=keepdim)
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1) ** (1 / order), 0)


@register("aten.full.default")
def full(size: Shape, value: Value, *, dtype: Any = None, **_layout: Any) -> Array:
    """One value everywhere."""
    return jnp.full(tuple(size), value, dtype or _default_dtype(value))


@register("aten.zeros.default")
def zeros(size: Shape, *, dtype: Any = None, **_layout: Any) -> Array:
    """Zeros, in float32 unless said."""
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
