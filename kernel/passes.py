"""One chunk of images in one pass: their rows of the Jacobian, or the factors that stand for them.

From images, the parts of the network that a pass is for, and projections of the logits, to arrays
that are contracted elsewhere. The taps of a chunk are computed together; each image's gradients are
then formed one image at a time where a processor's cache is what counts, and together on a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8

from kernel.model import Frozen, Function, Model, Params
from kernel.rules import Lookup, Product
from kernel.sketch import fold_into
from kernel.taps import Tapped, site_gradients, taps
from kernel.units import Unit

# By site: the structure of its inputs, and those that are plain numbers, by their place.
Numbers = dict[str, tuple[Any, dict[int, Any]]]


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


class Factor(NamedTuple):
    """What stands for the gradients of one layer: positions first, then images.

    Attributes:
        inputs: (positions, images, features), of pixels (copies, …, images, channels), or of an
            embedding the entries looked up (positions, images).
        cotangents: (positions, images, rows, outputs).
    """

    inputs: Array | np.ndarray
    cotangents: Array | np.ndarray


class Chunk(NamedTuple):
    """Some images in one pass.

    Attributes:
        rows: (images, rows, columns): of all parts of that form, side by side.
        factors: of the other parts.
        finite: whether all of it is, by image.
    """

    rows: Float[Array, "images rows columns"]
    factors: tuple[Factor, ...]
    finite: Bool[Array, " images"]


def compute(
    model: Model,
    parts: tuple[Part, ...],
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    *,
    square: bool,
    together: bool,
) -> Chunk:
    """A chunk of images in one pass.

    Args:
        model: the network.
        parts: what the pass is for; those that differ by their piece alone are compiled once.
        images: of the same dtype as the parameters.
        projections: one v a row, a backward pass each.
        square: a row for each projection (the kind `full`); else one row for all of them, whose
            inner products are the sums over projections.
        together: form the gradients of all images at once, not image by image.
    """
    shapes = tuple(part._replace(piece=0) for part in parts)
    starts = jnp.asarray([part.piece * part.outputs for part in parts])
    return _compute(
        model.function, shapes, square, together, *model[1:], images, projections, starts
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compute(
    function: Function,
    parts: tuple[Part, ...],
    square: bool,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Array,
    projections: Array,
    starts: Array,
) -> Chunk:
    numbers: Numbers = {}
    seen = jax.vmap(
        lambda image: _observe(function, parts, params, frozen, image, projections, numbers)
    )(images)

    def rows(own: Any) -> Array:
        own = _whole_inputs(own, numbers)
        pieces = [
            _rows(function, part, params, frozen, own, start)
            for part, start in zip(parts, starts, strict=True)
            if part.form == "rows"
        ]
        joined = jnp.concatenate(pieces, axis=1).astype(images.dtype)
        return joined if square else joined.reshape(1, -1)

    count = len(projections) if square else 1
    if any(part.form == "rows" for part in parts):
        formed = _over(together)(rows, seen)
    else:
        formed = jnp.zeros((len(images), count, 0), images.dtype)
    factors = [_factor(part, seen, square) for part in parts if part.form != "rows"]
    finite = jnp.isfinite(formed).all(axis=(1, 2))
    for leaf in jax.tree.leaves(seen):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite &= jnp.isfinite(leaf).reshape(len(images), -1).all(axis=1)
    return Chunk(formed, tuple(factors), finite)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sketched(
    function: Function,
    units: tuple[Unit, ...],
    buckets: int,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    signs: Int8[Array, " columns"],
) -> tuple[Float[Array, "images projections buckets"], Bool[Array, " images"]]:
    """Every image's gradient with its signs, folded into buckets layer by layer (`kernel.sketch`).

    Also whether all of it is finite, by image.

    Columns are counted unit by unit, each as its rule lays them out.
    """
    parts = tuple(Part(unit, "rows", unit.outputs) for unit in units)
    numbers: Numbers = {}
    seen = jax.vmap(
        lambda image: _observe(function, parts, params, frozen, image, projections, numbers)
    )(images)

    def folded(own: Any) -> Array:
        own = _whole_inputs(own, numbers)
        total = jnp.zeros((len(projections), buckets), images.dtype)
        offset = 0
        for part in parts:
            rows = _rows(function, part, params, frozen, own, jnp.asarray(0)).astype(images.dtype)
            some = jax.lax.slice_in_dim(signs, offset, offset + part.columns)
            total = fold_into(total, rows, some, offset)
            offset += part.columns
        return total

    values = _over(together)(folded, seen)
    return values, jnp.isfinite(values).all(axis=(1, 2))


def _over(together: bool) -> Callable[[Callable[[Any], Array], Any], Array]:
    if together:
        return lambda function, values: jax.vmap(function)(values)
    return jax.lax.map


def _observe(
    function: Function,
    parts: tuple[Part, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projections: Array,
    numbers: Numbers,
) -> Any:
    """Of one image: inputs and cotangents by site, or gradients by place without taps.

    What is a plain number among the inputs, such as a size, is noted in `numbers` and left out: as
    an array it could not say the shape of another.
    """
    if isinstance(function, Tapped):
        sites = [site for part in parts for site in part.unit.sites]
        inputs, cotangents = taps(function, params, frozen, image, projections, sites)
        arrays = {}
        for site in sites:
            leaves, structure = jax.tree.flatten(inputs[site])
            plain = {i: v for i, v in enumerate(leaves) if not isinstance(v, jax.Array)}
            numbers[site] = (structure, plain)
            arrays[site] = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
        return arrays, cotangents
    leaves, structure = jax.tree.flatten(params)
    places = sorted({place for part in parts for place in part.unit.places})

    def logits(chosen: list[Array]) -> Array:
        rebuilt = list(leaves)
        for place, leaf in zip(places, chosen, strict=True):
            rebuilt[place] = leaf
        return function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])[0]

    _, pull = jax.vjp(logits, [leaves[place] for place in places])
    (gradients,) = jax.vmap(pull)(projections)
    return dict(zip(places, gradients, strict=True))


def _whole_inputs(seen: Any, numbers: Numbers) -> Any:
    """The inputs of each site with their plain numbers back in place."""
    if not numbers:
        return seen
    arrays, cotangents = seen
    inputs = {}
    for site, (structure, plain) in numbers.items():
        given = iter(arrays[site])
        leaves = [plain[i] if i in plain else next(given) for i in range(structure.num_leaves)]
        inputs[site] = jax.tree.unflatten(structure, leaves)
    return inputs, cotangents


def _rows(
    function: Function, part: Part, params: Params, frozen: Frozen, seen: Any, start: Array
) -> Array:
    """(projections, columns) of one part, for one image."""
    unit = part.unit
    if isinstance(unit.rule, Product) and unit.outputs != unit.columns:
        inputs, cotangents = seen
        (site,) = unit.sites
        return unit.rule.rows(inputs[site][0], cotangents[site][0], start, part.outputs)
    whole = _whole(function, unit, params, frozen, seen)
    if part.outputs == unit.outputs:
        return whole
    padded = jnp.pad(whole, ((0, 0), (0, -unit.columns % part.outputs)))
    return jax.lax.dynamic_slice_in_dim(padded, start, part.outputs, axis=1)


def _whole(function: Function, unit: Unit, params: Params, frozen: Frozen, seen: Any) -> Array:
    """Every column of a unit, for one image."""
    if not isinstance(function, Tapped):
        (place,) = unit.places
        return seen[place].reshape(len(seen[place]), -1)
    inputs, cotangents = seen
    if isinstance(unit.rule, Product):
        (site,) = unit.sites
        x, delta = inputs[site][0], cotangents[site][0]
        return unit.rule.rows(x, delta, jnp.asarray(0), unit.rule.outputs)
    gradients: dict[str, Array] = {}
    for site in unit.sites:
        own = site_gradients(function, site, params, frozen, inputs[site], cotangents[site])
        for name, gradient in own.items():
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    flat = [gradients[name].reshape(len(gradients[name]), -1) for name in sorted(gradients)]
    return jnp.concatenate(flat, axis=1)


def _factor(part: Part, seen: Any, square: bool) -> Factor:
    """The factors of one part, for all images of the chunk."""
    inputs, cotangents = seen
    (site,) = part.unit.sites
    rule, x = part.unit.rule, inputs[site][0]
    if isinstance(rule, Lookup):
        flat = x.reshape(len(x), -1)
        left, width = flat.T, part.unit.columns // rule.entries
        delta = cotangents[site][0].reshape(*cotangents[site][0].shape[:2], flat.shape[1], width)
    else:
        assert isinstance(rule, Product)
        shape = jax.vmap(rule.pixels if part.form == "pixels" else lambda one: rule.patches(one)[0])
        left = jnp.moveaxis(shape(x), 0, -2)
        delta = jax.vmap(rule.cotangents)(cotangents[site][0])
    delta = jnp.moveaxis(delta, 2, 0)  # (positions, images, projections, outputs)
    if not square:
        delta = delta.reshape(*delta.shape[:2], 1, -1)
    return Factor(left, delta)
