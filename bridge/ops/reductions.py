"""Operator rows: reductions and cumulative sums; gradients at ties and zeros are torch's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, register

Axes = int | Sequence[int] | None


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


@register("aten.prod.dim_int", "aten.prod.default")
def prod(x: Array, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Product over one axis or all."""
    return jnp.prod(x, dim, dtype=dtype, keepdims=keepdim)


@register("aten.cumsum.default")
def cumsum(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """Sums of the values up to each one along an axis."""
    return jnp.cumsum(x, dim, dtype=dtype)


@register("aten.cumprod.default")
def cumprod(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """Products of the values up to each one along an axis."""
    return jnp.cumprod(x, dim, dtype=dtype)


@register("aten.var.correction")
def var(
    x: Array, dim: Axes = None, *, correction: Scalar | None = None, keepdim: bool = False
) -> Array:
    """Variance over axes, the sum of squares divided by (size − correction)."""
    ddof = 1 if correction is None else correction
    return jnp.var(x, _axes(dim), ddof=int(ddof), keepdims=keepdim)


@register("aten.std.correction")
def std(
    x: Array, dim: Axes = None, *, correction: Scalar | None = None, keepdim: bool = False
) -> Array:
    """Root of the variance, of gradient 0 where all values are the same."""
    square = var(x, dim, correction=correction, keepdim=keepdim)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), square)


@register("aten.var_mean.correction")
def var_mean(x: Array, dim: Axes = None, **options: Any) -> tuple[Array, Array]:
    """Variance and mean."""
    return var(x, dim, **options), mean(x, dim, bool(options.get("keepdim")))


@register("aten.amax.default", "aten.max.default")
def amax(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    """Maximum over axes; ties share the gradient."""
    return jnp.max(x, _axes(dim), keepdims=keepdim)


@register("aten.amin.default", "aten.min.default")
def amin(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    """Minimum over axes; ties share the gradient."""
    return jnp.min(x, _axes(dim), keepdims=keepdim)


def _extreme(place: Callable[..., Array], x: Array, dim: int, keepdim: bool) -> tuple[Array, Array]:
    where = place(x, dim, keepdims=True)
    values = jnp.take_along_axis(x, where, dim)
    return (values, where) if keepdim else (values.squeeze(dim), where.squeeze(dim))


@register("aten.max.dim")
def max_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Maximum over one axis and where it is; the first of ties has the gradient."""
    return _extreme(jnp.argmax, x, dim, keepdim)


@register("aten.min.dim")
def min_dim(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    """Minimum over one axis and where it is; the first of ties has the gradient."""
    return _extreme(jnp.argmin, x, dim, keepdim)


@register("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    """True where any value is not 0."""
    return jnp.any(x, _axes(dim), keepdims=keepdim)


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
    size = x * jnp.sign(x)  # of slope 0 at 0
    if order == jnp.inf:
        return amax(size, dim, keepdim)
    if order == -jnp.inf:
        return amin(size, dim, keepdim)
    if order == 0:
        return jnp.sum(x != 0, _axes(dim), dtype=x.dtype, keepdims=keepdim)
    whole = isinstance(order, float) and order.is_integer()
    total = jnp.sum(size ** (int(order) if whole else order), _axes(dim), keepdims=keepdim)
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1) ** (1 / order), 0)
