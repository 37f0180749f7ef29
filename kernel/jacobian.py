"""Gradients of a chunk of images in one pass: rows of the Jacobian, or Kronecker factors for them.

A chunk goes through the network together, forth and back to the layers' outputs. The gradients of
layers that multiply are then formed one image at a time where a processor's cache is what counts,
together on a GPU. A layer with few positions and many parameters is contracted from its factors
without any gradient being formed; a sketch folds every gradient into few dimensions
(docs/mathematics.md, 2).
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
from kernel.param_groups import Block, ParamGroup
from kernel.taps import Projections, Tapped, rows_at, site_gradients, taps


class LayerTaps(NamedTuple):
    """Inputs and cotangents of the layers, of one image or with a leading axis of several.

    Attributes:
        logits: (classes,).
        inputs: of layers with a rule, by site.
        cotangents: of their outputs, the projections along axis 0, by site.
        formed: (projections, columns) of every other block, by its number among the blocks.
    """

    logits: Array
    inputs: dict[str, Array]
    cotangents: dict[str, Array]
    formed: dict[int, Array]


def tap_layers(
    function: Function,
    blocks: tuple[Block, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projections: Projections,
) -> LayerTaps:
    """Taps of one image; `tap_chunk` maps it over images."""
    if not isinstance(function, Tapped):
        logits, formed = _by_leaf(function, blocks, params, frozen, image, projections)
        return LayerTaps(logits, {}, {}, formed)
    sites = [site for block in blocks for site in block.group.sites]
    inputs, cotangents, logits = taps(function, params, frozen, image, projections, sites)
    by_rule = [block.group.sites[0] for block in blocks if block.by_rule]
    formed = {
        number: _general(function, block.group, params, frozen, inputs, cotangents)
        for number, block in enumerate(blocks)
        if not block.by_rule
    }
    return LayerTaps(
        logits,
        {site: inputs[site][0] for site in by_rule},
        {site: cotangents[site][0] for site in by_rule},
        formed,
    )


def _general(
    function: Tapped, group: ParamGroup, params: Any, frozen: Any, inputs: Any, cotangents: Any
) -> Array:
    """Every column of a group by the vjp of its layers' own operators.

    It is done here, beside the pass through the network, so that elementwise layers are fused with
    it, and because inputs that are plain numbers, such as sizes, cannot leave it as arrays.
    """
    gradients: dict[str, Array] = {}
    for site in group.sites:
        own = site_gradients(function, site, params, frozen, inputs[site], cotangents[site])
        for name, gradient in own.items():
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    flat = [gradients[name].reshape(len(gradients[name]), -1) for name in sorted(gradients)]
    return jnp.concatenate(flat, axis=1)


def _by_leaf(
    function: Function,
    blocks: tuple[Block, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projections: Projections,
) -> tuple[Array, dict[int, Array]]:
    """Logits and rows of a function without taps, whose groups are single parameters."""
    leaves, structure = jax.tree.flatten(params)
    chosen_idx = sorted({idx for block in blocks for idx in block.group.leaf_idx})

    def logits(chosen: list[Array]) -> Array:
        rebuilt = list(leaves)
        for idx, leaf in zip(chosen_idx, chosen, strict=True):
            rebuilt[idx] = leaf
        return function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])[0]

    values, pull = jax.vjp(logits, [leaves[idx] for idx in chosen_idx])
    rows = rows_at(projections, values)
    (gradients,) = jax.vmap(pull)(rows)
    own = dict(zip(chosen_idx, gradients, strict=True))
    return values, {
        number: own[block.group.leaf_idx[0]].reshape(len(rows), -1)
        for number, block in enumerate(blocks)
    }


def tap_chunk(
    function: Function,
    blocks: tuple[Block, ...],
    params: Params,
    frozen: Frozen,
    images: Array,
    projections: Projections,
) -> LayerTaps:
    """Taps of a chunk of images.

    Args:
        function: the network.
        blocks: what the pass is for.
        params: trainable parameters.
        frozen: every other array.
        images: one along axis 0.
        projections: (projections, classes) for all images alike, each image's own along a
            further axis 0, or a function from an image's logits to its own.
    """
    of = partial(tap_layers, function, blocks, params, frozen)
    if callable(projections):
        return jax.vmap(lambda image: of(image, projections))(images)
    return jax.vmap(of, (0, 0 if projections.ndim == 3 else None))(images, projections)


class KroneckerFactors(NamedTuple):
    """Factors of one layer's gradients Σ_t δ_t a_tᵀ: positions first, then images.

    Attributes:
        inputs: patches a_t, (positions, images, features).
        cotangents: δ_t, (positions, images, rows, outputs).
    """

    inputs: Array | np.ndarray
    cotangents: Array | np.ndarray


class Chunk(NamedTuple):
    """Gradients of some images in one pass.

    Attributes:
        rows: (images, rows, columns): of all blocks of that form, side by side.
        factors: of the other blocks.
        finite: whether all of it is, by image.
    """

    rows: Float[Array, "images rows columns"]
    factors: tuple[KroneckerFactors, ...]
    finite: Bool[Array, " images"]


def differentiate(
    model: Model,
    blocks: tuple[Block, ...],
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    *,
    square: bool,
    together: bool,
) -> Chunk:
    """A chunk of images in one pass.

    Args:
        model: the network.
        blocks: what the pass is for; those that differ by their piece alone are compiled once.
        images: of the same dtype as the parameters.
        projections: one v a row, a backward pass each.
        square: a row for each projection (the kind `full`); else one row for all of them, whose
            inner products are the sums over projections.
        together: form the gradients of all images at once, not image by image.
    """
    shapes = tuple(block._replace(piece=0) for block in blocks)
    starts = jnp.asarray([block.piece * block.outputs for block in blocks])
    how = (model.function, shapes, square, together)
    return differentiate_shape(*how, *model[1:], images, projections, starts)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def differentiate_shape(
    function: Function,
    blocks: tuple[Block, ...],
    square: bool,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    starts: Array,
) -> Chunk:
    """`differentiate` for blocks of one shape, whose pieces begin at `starts`."""
    layers = tap_chunk(function, blocks, params, frozen, images, projections)
    own = [(n, block, starts[n]) for n, block in enumerate(blocks) if block.form == "rows"]
    rows = jnp.zeros((len(images), len(projections), 0), images.dtype)
    if own:
        rows = map_images(together)(lambda one: _side_by_side(own, one, images.dtype), layers)
    if not square:
        rows = rows.reshape(len(images), 1, -1)
    finite = _finite(rows)
    factors = tuple(kronecker_factors(b, layers, square) for b in blocks if b.form == "factors")
    for factor in factors:
        finite &= _finite(jnp.moveaxis(jnp.asarray(factor.cotangents), 1, 0))
        finite &= _finite(jnp.moveaxis(jnp.asarray(factor.inputs), 1, 0))
    return Chunk(rows, factors, finite)


def map_images(together: bool) -> Callable[[Callable[[Any], Array], Any], Array]:
    """Map a function over images, all at once or one after another."""
    if together:
        return lambda function, values: jax.vmap(function)(values)
    return jax.lax.map


def _side_by_side(
    blocks: list[tuple[int, Block, Array]], layers: LayerTaps, dtype: Any
) -> Float[Array, "projections columns"]:
    """Rows of all blocks, for one image."""
    rows = [block_rows(number, block, layers, start) for number, block, start in blocks]
    return jnp.concatenate(rows, axis=1).astype(dtype)


def block_rows(number: int, block: Block, layers: LayerTaps, start: Array) -> Array:
    """(projections, columns) of one block, for one image; a piece's begin at output `start`."""
    group = block.group
    if group.rule and (group.outputs != group.columns or block.outputs == group.outputs):
        (site,) = group.sites
        outputs = block.outputs if group.outputs != group.columns else group.rule.outputs
        return group.rule.rows(layers.inputs[site], layers.cotangents[site], start, outputs)
    if group.rule:
        whole = block_rows(number, Block.whole(group), layers, jnp.asarray(0))
    else:
        whole = layers.formed[number]
    if block.outputs == group.outputs:
        return whole
    padded = jnp.pad(whole, ((0, 0), (0, -group.columns % block.outputs)))
    return jax.lax.dynamic_slice_in_dim(padded, start, block.outputs, axis=1)


def kronecker_factors(block: Block, layers: LayerTaps, square: bool) -> KroneckerFactors:
    """The factors of one block, for all images of the chunk."""
    (site,) = block.group.sites
    rule = block.group.rule
    assert rule is not None
    inputs = jax.vmap(lambda x: rule.patches(x)[0].T)(layers.inputs[site])
    delta = jax.vmap(rule.cotangents)(layers.cotangents[site])  # …, outputs, positions
    delta = jnp.moveaxis(delta, 3, 0)  # (positions, images, projections, outputs)
    if not square:
        delta = delta.reshape(*delta.shape[:2], 1, -1)
    return KroneckerFactors(jnp.moveaxis(inputs, 0, 1), delta)


def _finite(values: Array) -> Bool[Array, " images"]:
    """Whether an image's numbers are finite, in one product: reducing booleans is slow on a CPU."""
    flat = values.reshape(len(values), -1)
    return jnp.isfinite(flat @ jnp.ones(flat.shape[1], flat.dtype))


@partial(jax.jit, static_argnums=0)
def contract_factors(
    bias: bool, one: KroneckerFactors, other: KroneckerFactors
) -> Float[Array, "images rows others columns"]:
    """A layer's part of the kernel between two sets of images.

    Args:
        bias: whether the layer has one.
        one: of the images along axis 0.
        other: of the images along axis 2.
    """
    inputs = jnp.einsum("tif,ujf->tiuj", one.inputs, other.inputs)
    cotangents = jnp.einsum("tiro,ujso->tirujs", one.cotangents, other.cotangents)
    products = inputs + 1 if bias else inputs
    # (12) Σ_tt' (a_t·a'_t' + 1)(δ_t·δ'_t'), the 1 for a bias
    return jnp.sum(products[:, :, None, :, :, None] * cotangents, axis=(0, 3))


def tile_images(factors: KroneckerFactors, images: int, limit: int) -> int:
    """Images on a side of a tile whose largest product fits in the given bytes."""
    positions, _, rows, _ = factors.cotangents.shape
    each = positions**2 * rows**2 * factors.cotangents.dtype.itemsize
    return max(1, min(images, math.isqrt(limit // each)))


@partial(jax.jit, static_argnums=0)
def contract_own_factors(bias: bool, factors: KroneckerFactors) -> Float[Array, "images rows rows"]:
    """A layer's part of the kernel between each image and itself."""

    def one(image: KroneckerFactors) -> Array:
        single = KroneckerFactors(image.inputs[:, None], image.cotangents[:, None])
        return contract_factors(bias, single, single)[0, :, 0]

    return jax.lax.map(one, jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), factors))


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
    """A sketch plus some more columns.

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
        # (13) φ_j = Σ_{i ≡ j mod k} σ_i g_i
        some = jax.lax.dynamic_slice_in_dim(rows, turn * buckets, buckets, 1)
        return sums + some * jax.lax.dynamic_slice_in_dim(signs, turn * buckets, buckets)

    sums = jnp.zeros_like(total)
    if turns:
        sums = jax.lax.fori_loop(0, turns, add, sums)
    tail = rows[:, turns * buckets :] * signs[turns * buckets :]
    sums = sums + jnp.pad(tail, ((0, 0), (0, buckets - rest)))
    return total + jnp.roll(sums, offset % buckets, axis=1)


class SketchedRows(NamedTuple):
    """Sketched gradients of some images.

    Attributes:
        rows: (images, projections, buckets).
        logits: (images, classes), which the pass has anyway.
        finite: whether the rows are, by image.
    """

    rows: Float[Array, "images projections buckets"]
    logits: Float[Array, "images classes"]
    finite: Bool[Array, " images"]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sketch_gradients(
    function: Function,
    groups: tuple[ParamGroup, ...],
    buckets: int,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "*each projections classes"],
    signs: Int8[Array, " columns"],
) -> SketchedRows:
    """Every image's gradient with its signs, folded into buckets layer by layer (`fold_into`).

    Projections are those of all images, or each image's own along axis 0. Columns are counted group
    by group, each as its rule lays them out.
    """
    blocks = tuple(Block.whole(group) for group in groups)
    layers = tap_chunk(function, blocks, params, frozen, images, projections)

    def folded(own: LayerTaps) -> Array:
        total = jnp.zeros((projections.shape[-2], buckets), images.dtype)
        offset = 0
        for number, block in enumerate(blocks):
            rows = block_rows(number, block, own, jnp.asarray(0)).astype(images.dtype)
            some = jax.lax.slice_in_dim(signs, offset, offset + block.columns)
            total = fold_into(total, rows, some, offset)
            offset += block.columns
        return total

    values = map_images(together)(folded, layers)
    return SketchedRows(values, layers.logits, _finite(values))
