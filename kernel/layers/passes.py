"""One chunk of images in one pass: their rows of the Jacobian, or the factors that stand for them.

From images, the parts of the network that a pass is for, and projections of the logits, to arrays
that are contracted elsewhere. A chunk goes through the network together; the gradients of its
products are then formed one image at a time where a processor's cache is what counts, and together
on a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8

from kernel.layers.observing import Part, Seen, observe
from kernel.layers.rules import Lookup, Product
from kernel.layers.sketch import fold_into
from kernel.layers.taps import Projections
from kernel.layers.units import Unit
from kernel.model import Frozen, Function, Model, Params

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
