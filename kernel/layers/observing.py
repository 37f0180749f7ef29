"""What a pass sees of one image: both sides of the layers that multiply, gradients of the others.

From an image and the parts of a network to the inputs and cotangents from which products make their
rows or factors, and to the finished rows of every part that has no such rule.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernel.layers.rules import Product
from kernel.layers.taps import Projections, Tapped, rows_at, site_gradients, taps
from kernel.layers.units import Unit
from kernel.model import Frozen, Function, Params


class Part(NamedTuple):
    """What a pass has of one unit.

    Attributes:
        unit: the layers.
        form: `rows`, or the factors `patches` or `pixels`.
        outputs: of `Unit.outputs`, how many a piece has; all of them if it is not cut.
        piece: which piece, from 0; what lies past the end counts as zeros.
    """

    unit: Unit
    form: str
    outputs: int
    piece: int = 0

    @property
    def columns(self) -> int:
        """Of the Jacobian, for one projection; none for factors."""
        if self.form != "rows":
            return 0
        return self.unit.columns // self.unit.outputs * self.outputs

    @property
    def by_rule(self) -> bool:
        """Whether it is made of both sides of its layer."""
        return self.form != "rows" or isinstance(self.unit.rule, Product)


class Seen(NamedTuple):
    """Of one image, or with a leading axis of several.

    Attributes:
        logits: (classes,).
        inputs: of layers with a rule, by site.
        cotangents: of their outputs, the projections along axis 0, by site.
        formed: (projections, columns) of every other part, by its number among the parts.
    """

    logits: Array
    inputs: dict[str, Array]
    cotangents: dict[str, Array]
    formed: dict[int, Array]


def observe(
    function: Function,
    parts: tuple[Part, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projections: Projections,
) -> Seen:
    """What a pass sees of one image; map it over images with `vmap`."""
    if not isinstance(function, Tapped):
        logits, formed = _by_leaf(function, parts, params, frozen, image, projections)
        return Seen(logits, {}, {}, formed)
    sites = [site for part in parts for site in part.unit.sites]
    inputs, cotangents, logits = taps(function, params, frozen, image, projections, sites)
    by_rule = [part.unit.sites[0] for part in parts if part.by_rule]
    formed = {
        number: _general(function, part.unit, params, frozen, inputs, cotangents)
        for number, part in enumerate(parts)
        if not part.by_rule
    }
    return Seen(
        logits,
        {site: inputs[site][0] for site in by_rule},
        {site: cotangents[site][0] for site in by_rule},
        formed,
    )


def _general(
    function: Tapped, unit: Unit, params: Any, frozen: Any, inputs: Any, cotangents: Any
) -> Array:
    """Every column of a unit by the vjp of its layers' own operators.

    It is done here, beside the pass through the network, so that elementwise layers are fused with
    it, and because inputs that are plain numbers, such as sizes, cannot leave it as arrays.
    """
    gradients: dict[str, Array] = {}
    for site in unit.sites:
        own = site_gradients(function, site, params, frozen, inputs[site], cotangents[site])
        for name, gradient in own.items():
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    flat = [gradients[name].reshape(len(gradients[name]), -1) for name in sorted(gradients)]
    return jnp.concatenate(flat, axis=1)


def _by_leaf(
    function: Function,
    parts: tuple[Part, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projections: Projections,
) -> tuple[Array, dict[int, Array]]:
    """Logits and rows of a function without taps, whose units are single parameters."""
    leaves, structure = jax.tree.flatten(params)
    places = sorted({place for part in parts for place in part.unit.places})

    def logits(chosen: list[Array]) -> Array:
        rebuilt = list(leaves)
        for place, leaf in zip(places, chosen, strict=True):
            rebuilt[place] = leaf
        return function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])[0]

    answers, pull = jax.vjp(logits, [leaves[place] for place in places])
    rows = rows_at(projections, answers)
    (gradients,) = jax.vmap(pull)(rows)
    own = dict(zip(places, gradients, strict=True))
    return answers, {
        number: own[part.unit.places[0]].reshape(len(rows), -1) for number, part in enumerate(parts)
    }
