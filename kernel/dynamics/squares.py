"""Squared lengths of the gradients of a chunk of images, each with a cotangent of its own.

From images and cotangents d_i, given or made of the logits that a pass has anyway, to ‖J_iᵀd_i‖²,
and to v·J_iᵀd_i for a v that is the same for all of them, one layer after another. A layer that
multiplies has at its positions t patches a_t and cotangents δ_t; its part is the length of
Σ_t δ_t a_tᵀ, formed for one image and let go, or Σ_tt' (a_t·a_t' + 1)(δ_t·δ_t') with the 1 for a
bias, whichever needs fewer multiplications: for a dense layer at one position (‖a‖² + 1)‖δ‖². Its
part of v is a matrix V of the layer's own shape: what is formed is multiplied with it as it is,
else Σ_t δ_t·V a_t is one product with the patches of all images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.layers.observing import Part, Seen
from kernel.layers.pairs import alone
from kernel.layers.passes import factor_of, observed, over, rows_of
from kernel.layers.rules import ELEMENTWISE, Lookup, Product
from kernel.layers.taps import Projections, Tapped
from kernel.layers.units import Unit
from kernel.model import Frozen, Function, Model, Params

Answer = Callable[[Array], Array]
"""Of one image's logits (classes,) its cotangent d_i, (classes,)."""


class Squares(NamedTuple):
    """What a chunk comes to.

    Attributes:
        values: ‖J_iᵀd_i‖² and v·J_iᵀd_i; NaN or infinity where a gradient is not finite.
        logits: f of each image, which the pass has anyway.
    """

    values: Float[Array, "images 2"]
    logits: Float[Array, "images classes"]


# As `ELEMENTWISE` for sums over windows of the pixels of one image alone, which have no axis of
# images to run along; what it gains is in benchmarks/dynamics.py.
ALONE = 100
# Columns of layers without a rule from which their gradients are formed for one image at a time.
SINGLY = 2**20


def cheapest(units: Sequence[Unit]) -> tuple[Part, ...]:
    """Every unit in the form in which an image's own length takes the fewest multiplications."""
    return tuple(
        Part(unit, min(unit.forms, key=partial(_work, unit)), unit.outputs) for unit in units
    )


def _work(unit: Unit, form: str) -> int:
    elementwise = ALONE if form == "pixels" else ELEMENTWISE
    return unit.forming(form, 1) + unit.contracting(form, 1, False, elementwise)


def singly(function: Function, parts: Sequence[Part]) -> bool:
    """Whether images go through the network one by one, for their gradients are large."""
    if not isinstance(function, Tapped):
        return True
    return sum(part.columns for part in parts if not part.by_rule) > SINGLY


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="answer")
def squares(
    function: Function,
    parts: tuple[Part, ...],
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    cotangents: Float[Array, "images classes"] | None,
    direction: tuple[Float[Array, "..."], ...] | None = None,
    answer: Answer | None = None,
) -> Squares:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in float64, those of single layers in the dtype of the network.

    Args:
        function: the network.
        parts: every unit of it, in any form.
        together: form the gradients of all images at once, not image by image.
        params: trainable parameters.
        frozen: every other array.
        images: of the same dtype as the parameters.
        cotangents: d_i, one row an image; None where `answer` makes them.
        direction: v, as `laid_out` has it; None for the lengths alone, beside zeros.
        answer: what makes d_i of the logits of the pass itself.
    """

    def of(images: Array, cotangents: Array | None) -> Squares:
        seen = observed(function, parts, params, frozen, images, _rows(cotangents, answer))
        return Squares(_squares(parts, together, seen, len(images), direction), seen.logits)

    if not singly(function, parts):
        return of(images, cotangents)

    def single(one: tuple[Array, Array | None]) -> Squares:
        found = of(*jax.tree.map(lambda own: own[None], one))
        return jax.tree.map(lambda own: own[0], found)

    return jax.lax.map(single, (images, cotangents))


def _rows(cotangents: Array | None, answer: Answer | None) -> Projections:
    """One projection an image."""
    if answer is not None:
        return lambda logits: answer(logits)[None]
    assert cotangents is not None
    return cotangents[:, None]


def laid_out(model: Model, parts: Sequence[Part], direction: Params) -> tuple[Array, ...]:
    """Of every part the columns of a direction, in the order of the part's own gradients.

    Args:
        model: the network.
        parts: every unit of it.
        direction: arrays shaped as the parameters.
    """
    leaves = jax.tree.leaves(direction)
    by_name = dict(zip(sorted(model.params), leaves, strict=True)) if _named(model) else {}

    def of(unit: Unit) -> list[Array]:
        if isinstance(unit.rule, Product):  # kernels first, then biases
            names = (unit.rule.weight, unit.rule.bias)
            return [by_name[name] for name in names if name is not None]
        return [leaves[place] for place in unit.places]

    return tuple(jnp.concatenate([jnp.ravel(leaf) for leaf in of(part.unit)]) for part in parts)


def _named(model: Model) -> bool:
    return isinstance(model.function, Tapped)


def _squares(
    parts: tuple[Part, ...],
    together: bool,
    seen: Seen,
    count: int,
    direction: tuple[Array, ...] | None,
) -> Array:
    """(images, 2)."""
    total = jnp.zeros((count, 2), jnp.float64)
    ruled = [(n, part) for n, part in enumerate(parts) if part.form == "rows" and part.by_rule]
    along = direction or (None,) * len(parts)

    def both(own: Seen) -> Array:
        pairs = [_both(rows_of(n, part, own, jnp.asarray(0)), along[n]) for n, part in ruled]
        return sum(pairs, jnp.zeros(2, jnp.float64))

    if ruled:
        total += over(together)(both, seen._replace(formed={}))
    for number, formed in seen.formed.items():
        total += jax.vmap(lambda own, v=along[number]: _both(own, v))(formed)
    for number, part in enumerate(parts):
        if part.form != "rows":
            assert part.unit.rule is not None
            own = alone(part.unit.rule, part.form, factor_of(part, seen, False))
            # rounding may leave a little less than nothing; NaN stays
            lengths = jnp.maximum(own[:, 0, 0].astype(jnp.float64), 0.0)
            total += jnp.stack([lengths, _along(part, seen, along[number], count)], axis=1)
    return total


def _both(values: Any, along: Array | None) -> Array:
    """A gradient's squared length, and its product with a direction."""
    flat = values.reshape(-1)
    product = jnp.zeros((), flat.dtype) if along is None else jnp.vdot(flat, along)
    return jnp.stack([jnp.vdot(flat, flat), product]).astype(jnp.float64)


def _along(part: Part, seen: Seen, along: Array | None, count: int) -> Array:
    """Σ_t δ_t·V a_t of each image, for a layer whose gradients are not formed."""
    if along is None:
        return jnp.zeros(count, jnp.float64)
    (site,) = part.unit.sites
    rule, x, delta = part.unit.rule, seen.inputs[site], seen.cotangents[site]
    if isinstance(rule, Lookup):
        entries = x.reshape(count, -1)
        table = along.reshape(rule.entries, -1)
        kept = (entries != rule.padding)[..., None]
        delta = delta.reshape(*entries.shape, -1)
        return jnp.where(kept, table[entries] * delta, 0).sum((1, 2)).astype(jnp.float64)
    assert isinstance(rule, Product)
    own = rule.shaped(along)
    delta = jax.vmap(rule.cotangents)(delta)[:, 0]
    products = (rule.products(x, own[rule.weight]) * delta).sum((1, 2))
    if rule.bias is not None:
        products += delta.sum(2) @ own[rule.bias]
    return products.astype(jnp.float64)
