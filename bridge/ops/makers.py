"""Rows of the operator table that make values from nothing, where their size is the batch's.

From sizes, or from an array to be like, to arrays. What no batch size decides is made by torch
when the network is mirrored.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, Value, register

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
