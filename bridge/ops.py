"""One row an operator: from the name of an ATen operator to the JAX function that computes it.

Each function takes the arguments of the ATen schema. Kinks are written with `jnp.where`, so that
gradients at a kink are those of torch too: 0 at the zero of a ReLU and at the bounds of a
hardtanh, 1 at the bounds of a clamp. Rows for layers are in `bridge.layers` and `bridge.pooling`,
for shapes in `bridge.shapes` and `bridge.reductions`; to add an operator, decorate its function
with `register`.
"""

import math
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


@register("aten.add.Tensor", "aten.add.Scalar")
def add(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x + alpha·y."""
    return jnp.add(x, y if alpha == 1 else alpha * y)


@register("aten.sub.Tensor", "aten.sub.Scalar")
def sub(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x − alpha·y."""
    return jnp.subtract(x, y if alpha == 1 else alpha * y)


@register("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes y − alpha·x."""
    return sub(y, x, alpha)


@register("aten.mul.Tensor", "aten.mul.Scalar")
def mul(x: Value, y: Value) -> Array:
    """x·y."""
    return jnp.multiply(x, y)


@register("aten.div.Tensor", "aten.div.Scalar")
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


@register("aten.abs.default")
def absolute(x: Array) -> Array:
    """|x|, of slope 0 at 0."""
    return x * jnp.sign(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.abs(x)


@register("aten.relu.default")
def relu(x: Array) -> Array:
    """max(x, 0), of slope 0 at 0; a NaN stays one."""
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@register("aten.leaky_relu.default")
def leaky_relu(x: Array, negative_slope: Scalar = 0.01) -> Array:
    """Positive values as they are, others times negative_slope."""
    return jnp.where(x > 0, x, negative_slope * x)


@register("aten.prelu.default")
def prelu(x: Array, weight: Array) -> Array:
    """Leaky ReLU with a learnt slope, one for all channels or one a channel (axis 1)."""
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
    return jnp.where(x > 0, x, weight.reshape(shape) * x)


@register("aten.elu.default")
def elu(x: Array, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1) -> Array:
    """scale·x where positive, else scale·alpha·(exp(input_scale·x) − 1); selu and celu too."""
    below = jnp.expm1(jnp.where(x > 0, jnp.zeros_like(x), x) * input_scale)
    return jnp.where(x > 0, scale * x, scale * alpha * below)


@register("aten.selu.default")
def selu(x: Array) -> Array:
    """ELU with the constants that keep mean 0 and variance 1."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


@register("aten.celu.default")
def celu(x: Array, alpha: Scalar = 1.0) -> Array:
    """ELU that is differentiable for any alpha."""
    return elu(x, alpha, 1, 1 / alpha)


@register("aten.softplus.default")
def softplus(x: Array, beta: Scalar = 1, threshold: Scalar = 20) -> Array:
    """ln(1 + exp(beta·x)) / beta; x itself where beta·x exceeds the threshold."""
    linear = x * beta > threshold
    return jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, x) * beta)) / beta)


@register("aten.mish.default")
def mish(x: Array) -> Array:
    """x·tanh(ln(1 + eˣ))."""
    return x * jnp.tanh(jax.nn.softplus(x))


@register("aten.gelu.default")
def gelu(x: Array, approximate: str = "none") -> Array:
    """x·Φ(x), Φ exact or in its tanh form."""
    if approximate == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@register("aten.clamp.default", "aten.clamp.Tensor")
def clamp(x: Array, minimum: Value | None = None, maximum: Value | None = None) -> Array:
    """Values held between two bounds, of slope 1 at each bound."""
    if minimum is not None:
        x = jnp.where(x < minimum, jnp.asarray(minimum, x.dtype), x)
    if maximum is not None:
        x = jnp.where(x > maximum, jnp.asarray(maximum, x.dtype), x)
    return x


@register("aten.clamp_min.default")
def clamp_min(x: Array, minimum: Scalar) -> Array:
    """Values held from below."""
    return clamp(x, minimum, None)


@register("aten.clamp_max.default")
def clamp_max(x: Array, maximum: Scalar) -> Array:
    """Values held from above."""
    return clamp(x, None, maximum)


@register("aten.hardtanh.default")
def hardtanh(x: Array, min_val: Scalar = -1, max_val: Scalar = 1) -> Array:
    """Values held between two bounds, of slope 0 at each bound."""
    x = jnp.where(x <= min_val, jnp.asarray(min_val, x.dtype), x)
    return jnp.where(x >= max_val, jnp.asarray(max_val, x.dtype), x)


@register("aten.relu6.default")
def relu6(x: Array) -> Array:
    """Hardtanh between 0 and 6."""
    return hardtanh(x, 0, 6)


@register("aten.hardsigmoid.default")
def hardsigmoid(x: Array) -> Array:
    """(x + 3)/6 held between 0 and 1, of slope 0 at ±3."""
    return hardtanh(x, -3, 3) / 6 + 0.5


@register("aten.hardswish.default")
def hardswish(x: Array) -> Array:
    """x·hardsigmoid(x), with torch's slopes at −3 (that of 0) and 3 (that of x)."""
    return jnp.where(x <= -3, 0 * x, jnp.where(x < 3, x * (x / 6 + 0.5), x))


@register("aten.threshold.default")
def threshold(x: Array, bound: Scalar, value: Scalar) -> Array:
    """Values that exceed the bound as they are, another value for the rest."""
    return jnp.where(x <= bound, jnp.asarray(value, x.dtype), x)


@register("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Array, mask: Array, value: Value) -> Array:
    """Values replaced where the mask is true."""
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)
