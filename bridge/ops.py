"""One row an operator: from the name of an ATen operator to the JAX function that computes it.

Each function takes the arguments of the ATen schema. Arithmetic is here; further rows are in
`bridge.activations`, `bridge.layers`, `bridge.pooling`, `bridge.shapes` and `bridge.reductions`.
To add an operator, decorate its function with `register`.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Scalar = int | float | bool
Value = Array | Scalar

OPERATORS: dict[str, Callable[..., Any]] = {}


def register(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table under ATen names such as `aten.relu.default`.

    Raises:
        ValueError: a name is taken.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"operator {name} has a row already; each operator has one")
            OPERATORS[name] = function
        return function

    return enter


def _enter(rows: dict[str, Callable[..., Any]]) -> None:
    for names, function in rows.items():
        register(*names.split())(function)


# Functions without a kink, and comparisons, that mean in JAX what they mean in torch.
_enter(
    {
        "aten.sigmoid.default": jax.nn.sigmoid,
        "aten.tanh.default": jnp.tanh,
        "aten.silu.default": jax.nn.silu,
        "aten.exp.default": jnp.exp,
        "aten.expm1.default": jnp.expm1,
        "aten.log.default": jnp.log,
        "aten.log1p.default": jnp.log1p,
        "aten.sqrt.default": jnp.sqrt,
        "aten.rsqrt.default": jax.lax.rsqrt,
        "aten.erf.default": jax.lax.erf,
        "aten.sin.default": jnp.sin,
        "aten.cos.default": jnp.cos,
        "aten.neg.default": jnp.negative,
        "aten.sign.default": jnp.sign,
        "aten.floor.default": jnp.floor,
        "aten.round.default": jnp.round,
        "aten.square.default": jnp.square,
        "aten.reciprocal.default": lambda x: 1 / x,
        "aten.log_sigmoid.default": jax.nn.log_sigmoid,
        "aten.maximum.default": jnp.maximum,
        "aten.minimum.default": jnp.minimum,
        "aten.where.self aten.where.ScalarOther aten.where.ScalarSelf": jnp.where,
        "aten.eq.Tensor aten.eq.Scalar": jnp.equal,
        "aten.ne.Tensor aten.ne.Scalar": jnp.not_equal,
        "aten.lt.Tensor aten.lt.Scalar": jnp.less,
        "aten.le.Tensor aten.le.Scalar": jnp.less_equal,
        "aten.gt.Tensor aten.gt.Scalar": jnp.greater,
        "aten.ge.Tensor aten.ge.Scalar": jnp.greater_equal,
        "aten.bitwise_and.Tensor": jnp.bitwise_and,
        "aten.bitwise_or.Tensor": jnp.bitwise_or,
        "aten.bitwise_not.default": jnp.bitwise_not,
        "aten.logical_not.default": jnp.logical_not,
        "aten.logical_and.default": jnp.logical_and,
        "aten.logical_or.default": jnp.logical_or,
        # Arithmetic on sizes, which are Python numbers when the program runs.
        "operator.add": operator.add,
        "operator.sub": operator.sub,
        "operator.mul": operator.mul,
        "operator.floordiv": operator.floordiv,
        "operator.truediv": operator.truediv,
        "operator.mod": operator.mod,
        "operator.neg": operator.neg,
    }
)


@register("aten.add.Tensor")
def add(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x + alpha·y."""
    return jnp.add(x, y if alpha == 1 else alpha * y)


@register("aten.sub.Tensor")
def sub(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x − alpha·y."""
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


@register("aten.rsub.Scalar")
def rsub(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes y − alpha·x."""
    return sub(y, x, alpha)


@register("aten.mul.Tensor")
def mul(x: Value, y: Value) -> Array:
    """x·y."""
    return jnp.multiply(x, y)


@register("aten.div.Tensor")
def div(x: Value, y: Value) -> Array:
    """Computes x / y; two integers give a float32, torch's default dtype."""
    quotient = jnp.true_divide(x, y)
    if not any(jnp.issubdtype(jnp.result_type(v), jnp.inexact) for v in (x, y)):
        return quotient.astype(jnp.float32)
    return quotient


@register("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(x: Value, exponent: Value) -> Array:
    """A power of x; a whole exponent is taken as an integer, so that the slope at 0 is finite."""
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    return jnp.asarray(x) ** exponent


@register("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Array, mask: Array, value: Value) -> Array:
    """Values replaced where the mask is true."""
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)
