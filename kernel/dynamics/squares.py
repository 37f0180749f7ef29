"""Squared lengths of the gradients of a chunk of images, each with a cotangent of its own.

From images and cotangents d_i to ‖J_iᵀd_i‖², one layer after another. A layer that multiplies has
at its positions t patches a_t and cotangents δ_t; its part is the length of Σ_t δ_t a_tᵀ, formed
for one image and let go, or Σ_tt' (a_t·a_t' + 1)(δ_t·δ_t') with the 1 for a bias, whichever needs
fewer multiplications: for a dense layer at one position (‖a‖² + 1)‖δ‖².
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.layers.observing import Part, Seen
from kernel.layers.pairs import alone
from kernel.layers.passes import factor_of, observed, over, rows_of
from kernel.layers.taps import Tapped
from kernel.layers.units import Unit
from kernel.model import Frozen, Function, Params

# Columns of layers without a rule from which their gradients are formed for one image at a time.
SINGLY = 2**20


def cheapest(units: Sequence[Unit]) -> tuple[Part, ...]:
    """Every unit in the form in which an image's own length takes the fewest multiplications."""
    return tuple(
        Part(unit, min(unit.forms, key=partial(_work, unit)), unit.outputs) for unit in units
    )


def _work(unit: Unit, form: str) -> int:
    return unit.forming(form, 1) + unit.contracting(form, 1, False)


def singly(function: Function, parts: Sequence[Part]) -> bool:
    """Whether images go through the network one by one, for their gradients are large."""
    if not isinstance(function, Tapped):
        return True
    return sum(part.columns for part in parts if not part.by_rule) > SINGLY


@partial(jax.jit, static_argnums=(0, 1, 2))
def squares(
    function: Function,
    parts: tuple[Part, ...],
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    cotangents: Float[Array, "images classes"],
) -> Float[Array, " images"]:
    """‖J_iᵀd_i‖² in float64, the lengths of single layers in the dtype of the network.

    Args:
        function: the network.
        parts: every unit of it, in any form.
        together: form the gradients of all images at once, not image by image.
        params: trainable parameters.
        frozen: every other array.
        images: of the same dtype as the parameters.
        cotangents: d_i, one row an image.

    Returns:
        NaN or infinity where a gradient is not finite.
    """

    def of(images: Array, cotangents: Array) -> Array:
        rows = cotangents[:, None]
        seen = observed(function, parts, params, frozen, images, rows)
        return _squares(parts, together, seen, len(images))

    if not singly(function, parts):
        return of(images, cotangents)
    return jax.lax.map(lambda one: of(one[0][None], one[1][None])[0], (images, cotangents))


def _squares(parts: tuple[Part, ...], together: bool, seen: Seen, count: int) -> Array:
    total = jnp.zeros(count, jnp.float64)
    ruled = [(n, part) for n, part in enumerate(parts) if part.form == "rows" and part.by_rule]

    def lengths(own: Seen) -> Array:
        squared = [_length(rows_of(n, part, own, jnp.asarray(0))) for n, part in ruled]
        return sum(squared, jnp.zeros((), jnp.float64))

    if ruled:
        total += over(together)(lengths, seen._replace(formed={}))
    for formed in seen.formed.values():
        total += jax.vmap(_length)(formed)
    for part in parts:
        if part.form != "rows":
            assert part.unit.rule is not None
            own = alone(part.unit.rule, part.form, factor_of(part, seen, False))
            # rounding may leave a little less than nothing; NaN stays
            total += jnp.maximum(own[:, 0, 0].astype(jnp.float64), 0.0)
    return total


def _length(values: Any) -> Array:
    flat = values.reshape(-1)
    return jnp.vdot(flat, flat).astype(jnp.float64)
