"""One layer's part of a kernel from its factors, without a gradient of it ever being formed.

From the patches and cotangents of two sets of images to Σ_tt' (a_t·a'_t' + 1)(δ_t·δ'_t'), the 1
where the layer has a bias (docs/mathematics.md, 2): cheaper than products of gradients where a
layer has few positions and many parameters.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.layers.passes import Factor
from kernel.layers.rules import Lookup, Product, Rule


@partial(jax.jit, static_argnums=(0, 1))
def pair(
    rule: Rule, form: str, one: Factor, other: Factor
) -> Float[Array, "images rows others columns"]:
    """A layer's part of the kernel between two sets of images.

    Args:
        rule: of the layer.
        form: of the factors, `patches` or `pixels`.
        one: of the images along axis 0.
        other: of the images along axis 2.
    """
    inputs = _inputs(rule, form, jnp.asarray(one.inputs), jnp.asarray(other.inputs))
    if isinstance(rule, Product) and rule.bias is not None:
        inputs = inputs + 1
    cotangents = jnp.einsum("tiro,ujso->tirujs", one.cotangents, other.cotangents)
    return jnp.sum(inputs[:, :, None, :, :, None] * cotangents, axis=(0, 3))


@partial(jax.jit, static_argnums=(0, 1))
def alone(rule: Rule, form: str, factor: Factor) -> Float[Array, "images rows rows"]:
    """The same between each image and itself."""
    axis = factor.inputs.ndim - (1 if isinstance(rule, Lookup) else 2)

    def one(image: tuple[Array, Array]) -> Array:
        inputs, cotangents = image
        single = Factor(jnp.expand_dims(inputs, axis), cotangents[:, None])
        return pair(rule, form, single, single)[0, :, 0]

    images_first = jnp.moveaxis(factor.inputs, axis, 0), jnp.moveaxis(factor.cotangents, 1, 0)
    return jax.lax.map(one, images_first)


def _inputs(rule: Rule, form: str, one: Array, other: Array) -> Array:
    """a_t·a'_t' as (positions, images, positions', images')."""
    if isinstance(rule, Lookup):
        same = one[:, :, None, None] == other[None, None]
        return same & (one != rule.padding)[:, :, None, None]
    if form == "patches" or rule.window is None:
        return jnp.einsum("tif,ujf->tiuj", one, other)
    # the inner product of two patches is a sum over the window of inner products of pixels
    rank = one.ndim - 3
    products = jnp.tensordot(one, other, (-1, -1))  # (copies, …, images, copies', …', images')
    whole = slice(None)
    total = jnp.zeros((), products.dtype)
    for place in rule.window.slices(one.shape[1 : 1 + rank]):
        total = total + products[whole, *place, whole, whole, *place]
    positions = math.prod(total.shape[: 1 + rank])
    return total.reshape(positions, one.shape[-2], -1, other.shape[-2])
