"""What the devices of a mesh do at a time, each compiled once: differentiate a wave, contract two.

From arrays of which every device has an equal slice along axis 0 to arrays of the same kind. What
one device works out for its images stays with it; only `contract_on` sends rows and factors, from
each device to its neighbour in a ring.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int8

from kernel.engine.devices import AXIS
from kernel.layers.pairs import alone, pair
from kernel.layers.passes import Chunk, Factor, Folded, Part, compute_shape, sketched
from kernel.layers.rules import Lookup
from kernel.layers.units import Unit
from kernel.model import Frozen, Function, Params

# The largest product of two layers' factors that is made at a time: what a processor's cache
# holds, or what keeps a GPU busy.
_TILE_BYTES, _GPU_TILE_BYTES = 2**23, 2**28
_SLICES, _WHOLE = PartitionSpec(AXIS), PartitionSpec()


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def form_on(
    mesh: Mesh,
    function: Function,
    parts: tuple[Part, ...],
    square: bool,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    starts: Array,
) -> Chunk:
    """A wave of images in one pass: `kernel.layers.passes.Chunk` with a leading axis of devices.

    Args:
        mesh: of the devices.
        function: the network.
        parts: what the pass is for, all of piece 0.
        square: a row for each projection.
        together: form the gradients of all images at once, not image by image.
        params: on all devices.
        frozen: on all devices.
        images: spread over the devices.
        projections: on all devices.
        starts: the first output of each part's piece, on all devices.
    """

    def local(params: Any, frozen: Any, images: Array, projections: Array, starts: Array) -> Any:
        chunk = compute_shape(
            function, parts, square, together, params, frozen, images, projections, starts
        )
        return jax.tree.map(lambda leaf: leaf[None], chunk)

    specs = (_WHOLE, _WHOLE, _SLICES, _WHOLE, _WHOLE)
    return _mapped(local, mesh, specs)(params, frozen, images, projections, starts)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def sketch_on(
    mesh: Mesh,
    function: Function,
    units: tuple[Unit, ...],
    buckets: int,
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    signs: Int8[Array, " columns"],
) -> Folded:
    """`kernel.layers.passes.sketched` of a wave of images, spread over the devices like them."""

    def local(*arrays: Any) -> Any:
        return sketched(function, units, buckets, together, *arrays)

    specs = (_WHOLE, _WHOLE, _SLICES, _WHOLE, _WHOLE)
    return _mapped(local, mesh, specs)(params, frozen, images, projections, signs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def contract_on(
    mesh: Mesh, parts: tuple[Part, ...], steps: int, one: Chunk, other: Chunk
) -> Float[Array, "devices steps rows columns"]:
    """A pass's part of the kernel between the images of each device and those of others.

    Args:
        mesh: of the devices.
        parts: of the pass, all of piece 0.
        steps: how many devices each device's images meet, beginning with its own.
        one: a wave.
        other: a wave, which is handed on: at step s, device d has that of d + s modulo devices.
    """
    devices = mesh.size
    ring = [(device, (device - 1) % devices) for device in range(devices)]

    def local(one: Chunk, other: Chunk) -> Array:
        own, held = jax.tree.map(lambda leaf: leaf[0], (one, other))
        if steps == 1:
            return _block(parts, own, held)[None, None]

        def step(held: Chunk, _: None) -> tuple[Chunk, Array]:
            block = _block(parts, own, held)
            return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, AXIS, ring), held), block

        _, blocks = jax.lax.scan(step, held, None, length=steps)
        return blocks[None]

    return _mapped(local, mesh, (_SLICES, _SLICES))(one, other)


@partial(jax.jit, static_argnums=(0, 1))
def alone_on(mesh: Mesh, parts: tuple[Part, ...], chunk: Chunk) -> Float[Array, "images rows rows"]:
    """A pass's part of the kernel between each image of a wave and itself, in float64."""

    def local(chunk: Chunk) -> Array:
        own = jax.tree.map(lambda leaf: leaf[0], chunk)

        def gram(rows: Array) -> Array:
            exact = rows.astype(jnp.float64)
            return exact @ exact.T

        total = jax.lax.map(gram, own.rows)
        for part, factor in zip(_factored(parts), own.factors, strict=True):
            assert part.unit.rule is not None
            total += alone(part.unit.rule, part.form, factor)
        return total

    return _mapped(local, mesh, (_SLICES,))(chunk)


def _mapped(local: Callable[..., Any], mesh: Mesh, specs: tuple[Any, ...]) -> Callable[..., Any]:
    # without the check of which values differ between devices: the loops of `kernel.layers.passes`
    # begin with zeros that are the same on all and go on with what is not
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=_SLICES, check_vma=False)


def _factored(parts: tuple[Part, ...]) -> list[Part]:
    return [part for part in parts if part.form != "rows"]


def _block(parts: tuple[Part, ...], one: Chunk, other: Chunk) -> Array:
    """(rows, columns) between the images of two chunks."""
    total = _flat(one.rows) @ _flat(other.rows).T
    factors = zip(_factored(parts), one.factors, other.factors, strict=True)
    for part, own, held in factors:
        total += _pairs(part, own, held, len(one.rows), len(other.rows))
    return total


def _flat(rows: Array) -> Array:
    images, count, columns = rows.shape
    return rows.reshape(images * count, columns)


def _pairs(part: Part, one: Factor, other: Factor, images: int, others: int) -> Array:
    """A layer's part in tiles, whose products take memory with the square of its positions."""
    rule = part.unit.rule
    assert rule is not None
    axis = one.inputs.ndim - (1 if isinstance(rule, Lookup) else 2)
    tile = _tile(one, axis, max(images, others))
    left, right = _tiles(one, axis, min(tile, images)), _tiles(other, axis, min(tile, others))
    blocks = jax.lax.map(
        lambda own: jax.lax.map(lambda held: pair(rule, part.form, own, held), right), left
    )
    ordered = blocks.transpose(0, 2, 3, 1, 4, 5)  # (tiles, images, rows, tiles', images', rows')
    each = ordered.shape[2]
    whole = ordered.reshape(ordered.shape[0] * ordered.shape[1] * each, -1)
    return whole[: images * each, : others * each]


def _tile(factor: Factor, axis: int, images: int) -> int:
    """Images on a side of a tile."""
    positions = math.prod(factor.inputs.shape[:axis])
    numbers = positions**2 * factor.cotangents.shape[2] ** 2
    limit = _TILE_BYTES if jax.default_backend() == "cpu" else _GPU_TILE_BYTES
    return max(1, min(images, math.isqrt(limit // (numbers * factor.cotangents.dtype.itemsize))))


def _tiles(factor: Factor, axis: int, tile: int) -> Factor:
    """A factor cut along its images, the tiles along a new axis 0, with zeros past the end."""

    def cut(array: Array, axis: int) -> Array:
        count = -(-array.shape[axis] // tile)
        ends = [(0, 0)] * array.ndim
        ends[axis] = (0, count * tile - array.shape[axis])
        shape = (*array.shape[:axis], count, tile, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(array, ends).reshape(shape), axis, 0)

    return Factor(cut(jnp.asarray(factor.inputs), axis), cut(jnp.asarray(factor.cotangents), 1))
