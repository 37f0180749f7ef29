"""Rows of the operator table for activation functions and bounds.

From arrays to arrays of the same shape. Kinks are written with `jnp.where`, so that gradients at a
kink are those of torch too: 0 at the zero of a ReLU and at the bounds of a hardtanh, 1 at the
bounds of a clamp.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.table import Scalar, Value, register


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
