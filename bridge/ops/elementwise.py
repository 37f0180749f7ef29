"""Operator rows: arithmetic, comparisons, activations, bounds.

Integer operands that yield fractions give float32, torch's default dtype, whatever JAX's is. Kinks
are written with `jnp.where` so that gradients there are torch's: 0 at the zero of a ReLU and at the
bounds of a hardtanh, 1 at the bounds of a clamp.
"""

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, Value, enter, register


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


@register("aten.rrelu.default")
def rrelu(x: Array, lower: Scalar = 1 / 8, upper: Scalar = 1 / 3, training: bool = False) -> Array:
    """Leaky ReLU of the mean slope; the graph refuses slopes drawn at random."""
    del training
    return leaky_relu(x, (lower + upper) / 2)


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


@register("aten.softplus.default")
def softplus(x: Array, beta: Scalar = 1, threshold: Scalar = 20) -> Array:
    """ln(1 + exp(beta·x)) / beta; x itself where beta·x exceeds the threshold."""
    linear = x * beta > threshold
    return jnp.where(linear, x, jnp.log1p(jnp.exp(jnp.where(linear, 0, x) * beta)) / beta)


@register("aten.gelu.default")
def gelu(x: Array, approximate: str = "none") -> Array:
    """x·Φ(x), Φ exact or in its tanh form."""
    if approximate == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@register("aten.clamp.default", "aten.clamp.Tensor", "aten.clamp_min.default")
def clamp(x: Array, minimum: Value | None = None, maximum: Value | None = None) -> Array:
    """Values held between two bounds, of slope 1 at each bound."""
    if minimum is not None:
        x = jnp.where(x < minimum, jnp.asarray(minimum, x.dtype), x)
    if maximum is not None:
        x = jnp.where(x > maximum, jnp.asarray(maximum, x.dtype), x)
    return x


@register("aten.hardtanh.default")
def hardtanh(x: Array, min_val: Scalar = -1, max_val: Scalar = 1) -> Array:
    """Values held between two bounds, of slope 0 at each bound."""
    x = jnp.where(x <= min_val, jnp.asarray(min_val, x.dtype), x)
    return jnp.where(x >= max_val, jnp.asarray(max_val, x.dtype), x)


@register("aten.hardswish.default")
def hardswish(x: Array) -> Array:
    """x·hardsigmoid(x), with torch's slopes at −3 (that of 0) and 3 (that of x)."""
    return jnp.where(x <= -3, 0 * x, jnp.where(x < 3, x * (x / 6 + 0.5), x))


@register("aten.threshold.default")
def threshold(x: Array, bound: Scalar, value: Scalar) -> Array:
    """Values that exceed the bound as they are, another value for the rest."""
    return jnp.where(x <= bound, jnp.asarray(value, x.dtype), x)


def _is_float(value: Value) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def fractional(x: Value) -> Value:
    """Whole numbers as float32; others as they are."""
    return x if _is_float(x) else jnp.asarray(x, jnp.float32)


def promoted(x: Value, y: Value) -> tuple[Value, Value]:
    """Two values as torch's rules of promotion leave them, where they are not JAX's.

    Whole numbers are float32 where they meet a fraction without a dtype, and an array without
    axes takes the dtype of one with axes.
    """
    if isinstance(x, Array) and isinstance(y, Array):
        if _is_float(x) and _is_float(y) and (x.ndim == 0) != (y.ndim == 0):
            return (x.astype(y.dtype), y) if x.ndim == 0 else (x, y.astype(x.dtype))
    elif isinstance(y, float) and isinstance(x, Array):
        return fractional(x), y
    elif isinstance(x, float) and isinstance(y, Array):
        return x, fractional(y)
    return x, y


def _of_fractions(function: Callable[[Value], Array]) -> Callable[[Value], Array]:
    return lambda x: function(fractional(x))


def _promoting(function: Callable[[Value, Value], Array]) -> Callable[[Value, Value], Array]:
    return lambda x, y: function(*promoted(x, y))


# Functions without a kink that are the same in JAX and torch.
enter(
    {
        f"aten.{name}.default": _of_fractions(function)
        for name, function in {
            "sigmoid": jax.nn.sigmoid,
            "silu": jax.nn.silu,
            "log_sigmoid": jax.nn.log_sigmoid,
            "exp": jnp.exp,
            "exp2": jnp.exp2,
            "expm1": jnp.expm1,
            "log": jnp.log,
            "log2": jnp.log2,
            "log10": jnp.log10,
            "log1p": jnp.log1p,
            "sqrt": jnp.sqrt,
            "rsqrt": jax.lax.rsqrt,
            "reciprocal": lambda x: 1 / x,
            "erf": jax.lax.erf,
            "erfc": jax.lax.erfc,
            "erfinv": jax.lax.erf_inv,
            "lgamma": jax.lax.lgamma,
            "sin": jnp.sin,
            "cos": jnp.cos,
            "tan": jnp.tan,
            "asin": jnp.arcsin,
            "acos": jnp.arccos,
            "atan": jnp.arctan,
            "sinh": jnp.sinh,
            "cosh": jnp.cosh,
            "tanh": jnp.tanh,
            "asinh": jnp.arcsinh,
            "acosh": jnp.arccosh,
            "atanh": jnp.arctanh,
        }.items()
    }
)

# Activations that others contain.
enter(
    {
        "aten.selu.default": lambda x: elu(x, 1.6732632423543772, 1.0507009873554805),
        "aten.celu.default": lambda x, alpha=1.0: elu(x, alpha, 1, 1 / alpha),
        "aten.mish.default": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
        "aten.clamp_max.default": lambda x, maximum: clamp(x, None, maximum),
        "aten.relu6.default": lambda x: hardtanh(x, 0, 6),
        "aten.hardsigmoid.default": lambda x: hardtanh(x, -3, 3) / 6 + 0.5,
    }
)

# Operators that keep integers, and comparisons.
enter(
    {
        "aten.mul.Tensor aten.mul.Scalar": _promoting(jnp.multiply),
        "aten.remainder.Tensor aten.remainder.Scalar aten.remainder.Scalar_Tensor": _promoting(
            jnp.remainder
        ),
        "aten.fmod.Tensor aten.fmod.Scalar": _promoting(jnp.fmod),
        "aten.rsub.Scalar": lambda x, y, alpha=1: sub(y, x, alpha),
        "aten.neg.default": jnp.negative,
        "aten.sign.default": jnp.sign,
        "aten.floor.default": jnp.floor,
        "aten.ceil.default": jnp.ceil,
        "aten.trunc.default": jnp.trunc,
        "aten.round.default": jnp.round,
        "aten.square.default": jnp.square,
        "aten.maximum.default": jnp.maximum,
        "aten.minimum.default": jnp.minimum,
        "aten.atan2.default": jnp.arctan2,
        "aten.isnan.default": jnp.isnan,
        "aten.isinf.default": jnp.isinf,
        "aten.eq.Tensor aten.eq.Scalar": jnp.equal,
        "aten.ne.Tensor aten.ne.Scalar": jnp.not_equal,
        "aten.lt.Tensor aten.lt.Scalar": jnp.less,
        "aten.le.Tensor aten.le.Scalar": jnp.less_equal,
        "aten.gt.Tensor aten.gt.Scalar": jnp.greater,
        "aten.ge.Tensor aten.ge.Scalar": jnp.greater_equal,
        "aten.bitwise_and.Tensor aten.bitwise_and.Scalar": jnp.bitwise_and,
        "aten.bitwise_or.Tensor aten.bitwise_or.Scalar": jnp.bitwise_or,
        "aten.bitwise_xor.Tensor aten.bitwise_xor.Scalar": jnp.bitwise_xor,
        "aten.bitwise_not.default": jnp.bitwise_not,
        "aten.logical_not.default": jnp.logical_not,
        "aten.logical_and.default": jnp.logical_and,
        "aten.logical_or.default": jnp.logical_or,
        "aten.logical_xor.default": jnp.logical_xor,
        # Arithmetic on sizes, which are Python numbers when the program runs.
        "operator.add": operator.add,
        "operator.sub": operator.sub,
        "operator.mul": operator.mul,
        "operator.floordiv": operator.floordiv,
        "operator.truediv": operator.truediv,
        "operator.mod": operator.mod,
        "operator.pow": operator.pow,
        "operator.neg": operator.neg,
        "torch.sym_max": max,
        "torch.sym_min": min,
    }
)


@register("aten.add.Tensor", "aten.add.Scalar")
def add(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x + alpha·y."""
    x, y = promoted(x, y)
    return jnp.add(x, y if alpha == 1 else jnp.multiply(*promoted(alpha, y)))


@register("aten.sub.Tensor", "aten.sub.Scalar")
def sub(x: Value, y: Value, alpha: Scalar = 1) -> Array:
    """Computes x − alpha·y."""
    x, y = promoted(x, y)
    return jnp.subtract(x, y if alpha == 1 else jnp.multiply(*promoted(alpha, y)))


@register("aten.div.Tensor", "aten.div.Scalar")
def div(x: Value, y: Value) -> Array:
    """Computes x / y; two integers give a float32."""
    x, y = promoted(x, y)
    if not _is_float(x) and not _is_float(y):
        return jnp.true_divide(fractional(x), y)
    return jnp.true_divide(x, y)


@register("aten.div.Tensor_mode")
def div_rounded(x: Value, y: Value, *, rounding_mode: str | None = None) -> Array:
    """Computes x / y rounded down (`floor`) or towards 0 (`trunc`), of slope 0."""
    x, y = promoted(x, y)
    if rounding_mode is None:
        return div(x, y)
    quotient = jnp.floor_divide(x, y)
    if rounding_mode == "trunc":
        whole = not _is_float(quotient)
        quotient = jax.lax.div(*jnp.broadcast_arrays(x, y)) if whole else jnp.trunc(div(x, y))
    return jax.lax.stop_gradient(quotient)


@register("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(x: Value, exponent: Value) -> Array:
    """A power of x; a whole exponent is taken as an integer, so that the slope at 0 is finite."""
    x, exponent = promoted(x, exponent)
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    return jnp.asarray(x) ** exponent


@register("aten.fmax.default")
def fmax(x: Array, y: Array) -> Array:
    """The larger of two values, or the one that is not NaN; of equal ones, x has the gradient."""
    return jnp.where((x >= y) | jnp.isnan(y), x, y)


@register("aten.fmin.default")
def fmin(x: Array, y: Array) -> Array:
    """The smaller of two values, or the one that is not NaN; of equal ones, x has the gradient."""
    return jnp.where((x <= y) | jnp.isnan(y), x, y)


@register("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(x: Array, end: Array, weight: Value) -> Array:
    """A mean of x and end."""
    return x + weight * (end - x)


@register("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
def where(condition: Array, x: Value, y: Value) -> Array:
    """The value of x where the condition holds, that of y elsewhere."""
    return jnp.where(condition, *promoted(x, y))


@register("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Array, mask: Array, value: Value) -> Array:
    """Values replaced where the mask is true."""
    return jnp.where(mask, jnp.asarray(value, x.dtype), x)
