"""Operator rows: reductions and cumulative sums; gradients at ties and zeros are torch's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, enter, register

Axes = int | Sequence[int] | None


def _axes(dim: Axes) -> int | tuple[int, ...] | None:
    if dim is None or isinstance(dim, int):
        return dim
    return tuple(dim) or None  # an empty list means every axis


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    """A reduction of JAX with torch's arguments."""

    def reduce(x: Array, dim: Axes = None, keepdim: bool = False, **dtype: Any) -> Array:
        return function(x, _axes(dim), keepdims=keepdim, **dtype)

    return reduce


enter(
    {
        "aten.mean.dim aten.mean.default": _reduction(jnp.mean),
        "aten.sum.dim_IntList aten.sum.default": _reduction(jnp.sum),
        "aten.prod.dim_int aten.prod.default": _reduction(jnp.prod),
        "aten.any.default aten.any.dim aten.any.dims": _reduction(jnp.any),
        "aten.logsumexp.default": _reduction(jax.nn.logsumexp),
        # Ties share the gradient.
        "aten.amax.default aten.max.default": _reduction(jnp.max),
        "aten.amin.default aten.min.default": _reduction(jnp.min),
        "aten.cumsum.default": jnp.cumsum,
        "aten.cumprod.default": jnp.cumprod,
    }
)


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
    mean = jnp.mean(x, _axes(dim), keepdims=bool(options.get("keepdim")))
    return var(x, dim, **options), mean


def _extreme(argument: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """Extreme value of one axis and its index; the first of ties has the gradient."""

    def extreme(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
        index = argument(x, dim, keepdims=True)
        values = jnp.take_along_axis(x, index, dim)
        return (values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim))

    return extreme


enter({"aten.max.dim": _extreme(jnp.argmax), "aten.min.dim": _extreme(jnp.argmin)})


@register("aten.linalg_vector_norm.default")
def vector_norm(
    x: Array, order: Scalar = 2, dim: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """(Σ |x|^order)^(1/order) over axes; the norm of zeros has gradient 0."""
    x = x if dtype is None else x.astype(dtype)
    size = x * jnp.sign(x)  # of slope 0 at 0
    if order == jnp.inf:
        return jnp.max(size, _axes(dim), keepdims=keepdim)
    if order == -jnp.inf:
        return jnp.min(size, _axes(dim), keepdims=keepdim)
    if order == 0:
        return jnp.sum(x != 0, _axes(dim), dtype=x.dtype, keepdims=keepdim)
    whole = isinstance(order, float) and order.is_integer()
    total = jnp.sum(size ** (int(order) if whole else order), _axes(dim), keepdims=keepdim)
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1) ** (1 / order), 0)
