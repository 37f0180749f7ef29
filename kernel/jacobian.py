"""One layer's part of a kernel from its factors, without a gradient of it ever being formed.

From the patches and cotangents of two sets of images to Σ_tt' (a_t·a'_t' + 1)(δ_t·δ'_t'), the 1
where the layer has a bias (docs/mathematics.md, 2): cheaper than products of gradients where a
layer has few positions and many parameters.

What a pass sees of one image: both sides of the layers that multiply, gradients of the others.

From an image and the parts of a network to the inputs and cotangents from which products make their
rows or factors, and to the finished rows of every part that has no such rule.

Gradients in fewer dimensions, whose inner products are right on average.

From rows of the Jacobian to rows of k numbers: every entry takes a fixed random sign and falls into
the bucket of its number modulo k. The inner product of two such rows is unbiased for that of the
rows themselves, with an error of about 1/√k of the product of their lengths, and the kernel made of
them is positive semi-definite (docs/mathematics.md, 2).

One chunk of images in one pass: their rows of the Jacobian, or the factors that stand for them.

From images, the parts of the network that a pass is for, and projections of the logits, to arrays
that are contracted elsewhere. A chunk goes through the network together; the gradients of its
products are then formed one image at a time where a processor's cache is what counts, and together
on a GPU.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8

from kernel.errors import KernelError
from kernel.model import Frozen, Function, Model, Params
from kernel.param_groups import Unit
from kernel.taps import Lookup, Product, Projections, Rule, Tapped, rows_at, site_gradients, taps


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


def random_signs(
    columns: int, buckets: int, rng: np.random.Generator
) -> Int8[np.ndarray, " columns"]:
    """A sign for each column, ±1 with equal chances.

    Raises:
        KernelError: a number of buckets with which nothing would be saved, or nothing kept.
    """
    if not 1 <= buckets < columns:
        raise KernelError(
            f"a sketch of {buckets:,} dimensions was asked for and the network has {columns:,} "
            "parameters: give a number from 1 to below that, or none for the exact kernel."
        )
    return rng.choice(np.array([-1, 1], np.int8), size=columns)


@partial(jax.jit, static_argnums=2)
def fold(
    rows: Float[Array, "batch columns"], signs: Int8[Array, " columns"], buckets: int
) -> Float[Array, "batch buckets"]:
    """Rows times their signs, entry i added to bucket i mod k."""
    return fold_into(jnp.zeros((len(rows), buckets), rows.dtype), rows, signs, 0)


def fold_into(
    total: Float[Array, "batch buckets"],
    rows: Float[Array, "batch columns"],
    signs: Int8[Array, " columns"],
    offset: int,
) -> Float[Array, "batch buckets"]:
    """A sketch and what some more columns add to it.

    Args:
        total: the sketch so far.
        rows: the columns.
        signs: theirs.
        offset: the number of the first of them among all columns.
    """
    buckets = total.shape[1]
    turns, rest = divmod(rows.shape[1], buckets)

    def add(turn: Array, sums: Array) -> Array:
        # a loop over slices: XLA's CPU backend is several times slower at the sum of a reshape
        some = jax.lax.dynamic_slice_in_dim(rows, turn * buckets, buckets, 1)
        return sums + some * jax.lax.dynamic_slice_in_dim(signs, turn * buckets, buckets)

    sums = jnp.zeros_like(total)
    if turns:
        sums = jax.lax.fori_loop(0, turns, add, sums)
    tail = rows[:, turns * buckets :] * signs[turns * buckets :]
    sums = sums + jnp.pad(tail, ((0, 0), (0, buckets - rest)))
    return total + jnp.roll(sums, offset % buckets, axis=1)


__all__ = ["Chunk", "Factor", "Folded", "Part", "compute", "compute_shape", "sketched"]


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
    into: Float[Array, "images rows columns"] | None = None,
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
        into: rows of an earlier chunk of the same pass, which are written over and are gone: what
            is asked for anew is filled with zeros first. None asks for it, and is the only choice
            where images go together.
    """
    return compute_shape(*_given(model, parts, images, projections, square, together), into)


def compile_ahead(
    model: Model,
    parts: tuple[Part, ...],
    images: jax.ShapeDtypeStruct,
    projections: Float[Array, "projections classes"],
    *,
    square: bool,
    into: jax.ShapeDtypeStruct,
) -> None:
    """Compile what `compute` will run, so that several threads can begin with it at once.

    Args:
        model: as there.
        parts: as there.
        images: shape and dtype of a chunk.
        projections: as there.
        square: as there.
        into: shape and dtype of what is written over.
    """
    given = _given(model, parts, images, projections, square, False)
    compute_shape.lower(*given, into).compile()


def _given(
    model: Model, parts: tuple[Part, ...], images: Any, projections: Any, *how: bool
) -> tuple[Any, ...]:
    shapes = tuple(part._replace(piece=0) for part in parts)
    starts = jnp.asarray([part.piece * part.outputs for part in parts])
    return model.function, shapes, *how, *model[1:], images, projections, starts


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames="into")
def compute_shape(
    function: Function,
    parts: tuple[Part, ...],
    square: bool,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    starts: Array,
    into: Array | None = None,
) -> Chunk:
    """`compute` for parts of one shape, whose pieces begin at `starts`."""
    seen = observed(function, parts, params, frozen, images, projections)

    formed = _rows(parts, seen, starts, images, len(projections), together, into)
    if not square:
        formed = formed.reshape(len(images), 1, -1)
    factors = tuple(factor_of(part, seen, square) for part in parts if part.form != "rows")
    finite = _finite(formed)
    for part, factor in zip([p for p in parts if p.form != "rows"], factors, strict=True):
        finite &= _finite(jnp.moveaxis(jnp.asarray(factor.cotangents), 1, 0))
        if not isinstance(part.unit.rule, Lookup):
            finite &= _finite(jnp.moveaxis(jnp.asarray(factor.inputs), -2, 0))
    return Chunk(formed, factors, finite)


class Folded(NamedTuple):
    """Some images' gradients in fewer dimensions.

    Attributes:
        rows: (images, projections, buckets).
        logits: (images, classes), which the pass has anyway.
        finite: whether the rows are, by image.
    """

    rows: Float[Array, "images projections buckets"]
    logits: Float[Array, "images classes"]
    finite: Bool[Array, " images"]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sketched(
    function: Function,
    units: tuple[Unit, ...],
    buckets: int,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "*each projections classes"],
    signs: Int8[Array, " columns"],
) -> Folded:
    """Every image's gradient with its signs, folded into buckets layer by layer (`fold_into`).

    Projections are those of all images, or each image's own along axis 0. Columns are counted unit
    by unit, each as its rule lays them out.
    """
    parts = tuple(Part(unit, "rows", unit.outputs) for unit in units)
    seen = observed(function, parts, params, frozen, images, projections)

    def folded(own: Seen) -> Array:
        total = jnp.zeros((projections.shape[-2], buckets), images.dtype)
        offset = 0
        for number, part in enumerate(parts):
            rows = rows_of(number, part, own, jnp.asarray(0)).astype(images.dtype)
            some = jax.lax.slice_in_dim(signs, offset, offset + part.columns)
            total = fold_into(total, rows, some, offset)
            offset += part.columns
        return total

    values = over(together)(folded, seen)
    return Folded(values, seen.logits, _finite(values))


def compile_sketched(*given: Any) -> None:
    """Compile what `sketched` will run, given shapes and dtypes for images."""
    sketched.lower(*given).compile()


def observed(
    function: Function,
    parts: tuple[Part, ...],
    params: Params,
    frozen: Frozen,
    images: Array,
    projections: Projections,
) -> Seen:
    """What a pass sees of a chunk of images.

    Args:
        function: the network.
        parts: what the pass is for.
        params: trainable parameters.
        frozen: every other array.
        images: one along axis 0.
        projections: (projections, classes) for all images alike, each image's own along a
            further axis 0, or what makes an image's own of its logits.
    """
    if callable(projections):
        return jax.vmap(lambda image: observe(function, parts, params, frozen, image, projections))(
            images
        )
    axes = (0, 0 if projections.ndim == 3 else None)
    return jax.vmap(lambda image, own: observe(function, parts, params, frozen, image, own), axes)(
        images, projections
    )


def over(together: bool) -> Callable[[Callable[[Any], Array], Any], Array]:
    """How images are gone through: all at once, or one after another."""
    if together:
        return lambda function, values: jax.vmap(function)(values)
    return jax.lax.map


def _rows(
    parts: tuple[Part, ...],
    seen: Seen,
    starts: Array,
    images: Array,
    projections: int,
    together: bool,
    into: Array | None,
) -> Array:
    """(images, projections, columns) of all parts that are formed, side by side."""
    own = [(n, part, starts[n]) for n, part in enumerate(parts) if part.form == "rows"]
    shape = (len(images), projections, sum(part.columns for _, part, _ in own))
    formed = jnp.zeros(shape, images.dtype) if into is None else into.reshape(shape)
    if not own:
        return formed
    if together:
        pieces = [
            jax.vmap(partial(rows_of, number, part, start=start))(seen)
            for number, part, start in own
        ]
        return jnp.concatenate(pieces, axis=2).astype(images.dtype)

    def form(image: Array, formed: Array) -> Array:
        one = jax.tree.map(lambda array: array[image], seen)
        offset = 0
        for number, part, start in own:
            # straight to its place: rows put together first are copied once more, at the speed of
            # memory, which is what limits the rows of layers with few positions
            piece = rows_of(number, part, one, start).astype(images.dtype)
            formed = jax.lax.dynamic_update_slice(formed, piece[None], (image, 0, offset))
            offset += part.columns
        return formed

    return jax.lax.fori_loop(0, len(images), form, formed)


def rows_of(number: int, part: Part, seen: Seen, start: Array) -> Array:
    """(projections, columns) of one part, for one image; a piece's begin at output `start`."""
    unit = part.unit
    if part.by_rule and (unit.outputs != unit.columns or part.outputs == unit.outputs):
        assert isinstance(unit.rule, Product)
        (site,) = unit.sites
        outputs = part.outputs if unit.outputs != unit.columns else unit.rule.outputs
        return unit.rule.rows(seen.inputs[site], seen.cotangents[site], start, outputs)
    if part.by_rule:
        whole = rows_of(number, part._replace(outputs=unit.outputs), seen, jnp.asarray(0))
    else:
        whole = seen.formed[number]
    if part.outputs == unit.outputs:
        return whole
    padded = jnp.pad(whole, ((0, 0), (0, -unit.columns % part.outputs)))
    return jax.lax.dynamic_slice_in_dim(padded, start, part.outputs, axis=1)


def factor_of(part: Part, seen: Seen, square: bool) -> Factor:
    """The factors of one part, for all images of the chunk."""
    (site,) = part.unit.sites
    rule, x, delta = part.unit.rule, seen.inputs[site], seen.cotangents[site]
    if isinstance(rule, Lookup):
        flat = x.reshape(len(x), -1)
        left, width = flat.T, part.unit.columns // rule.entries
        delta = delta.reshape(*delta.shape[:2], flat.shape[1], width)
    else:
        assert isinstance(rule, Product)
        left = rule.pixels if part.form == "pixels" else lambda one: rule.patches(one)[0].T
        left = jnp.moveaxis(jax.vmap(left)(x), 0, -2)
        delta = jax.vmap(rule.cotangents)(delta).swapaxes(2, 3)
    delta = jnp.moveaxis(delta, 2, 0)  # (positions, images, projections, outputs)
    if not square:
        delta = delta.reshape(*delta.shape[:2], 1, -1)
    return Factor(left, delta)


def _finite(values: Array) -> Bool[Array, " images"]:
    """Whether an image's numbers are finite, in one product: reducing booleans is slow on a CPU."""
    flat = values.reshape(len(values), -1)
    return jnp.isfinite(flat @ jnp.ones(flat.shape[1], flat.dtype))


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
