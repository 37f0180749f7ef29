"""All passes of a plan over the images, on the devices of a mesh.

From a plan to the kernel between the anchors and all images. Images go through in waves, of which
each device has an equal slice; two waves are contracted while one of them is handed round in a
ring, so that no device ever holds the rows of all images. Every program has one shape however many
images there are.

What the devices of a mesh do at a time, each compiled once: differentiate a wave, contract two.

From arrays of which every device has an equal slice along axis 0 to arrays of the same kind. What
one device works out for its images stays with it; only `contract_on` sends rows and factors, from
each device to its neighbour in a ring.

Images in waves: as many as all devices of a mesh differentiate at a time.

From a range of images to places for each device, padded so that all waves have one shape, and back
to the rows of the kernel that a device's share belongs to.

Sketched gradients of a set of images, on the devices of a mesh.

From a network and images to Φ with Θ ≈ ΦΦᵀ, each device with its slice of every wave of images.

TF32: products of float32 numbers of which an NVIDIA GPU multiplies the leading eleven bits.

From a request for it to the arithmetic of gradients and of the products between images, and from a
few images to the error that it makes in their kernel. Only those products are ever in TF32, and
only where it is asked for: gradients stay in float32.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int8

from kernel.contract import Scratch, Sketches, finished, room
from kernel.errors import KernelError
from kernel.jacobian import (
    Chunk,
    Factor,
    Folded,
    Part,
    alone,
    compute_shape,
    pair,
    random_signs,
    sketched,
)
from kernel.model import Frozen, Function, Model, Params, dtype_of, given
from kernel.options import PRECISIONS, Precision, Request
from kernel.param_groups import Unit
from kernel.plan import (
    AXIS,
    Pass,
    Plan,
    Problem,
    Progress,
    Report,
    cast,
    chunk_of,
    collected,
    everywhere,
    mesh,
    plan,
    problem_of,
    spread,
    together,
)
from kernel.taps import Lookup, not_finite

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
    """A wave of images in one pass: `kernel.jacobian.Chunk` with a leading axis of devices.

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
    """`kernel.jacobian.sketched` of a wave of images, spread over the devices like them."""

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
    # without the check of which values differ between devices: the loops of `kernel.jacobian`
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


# A device's share of a wave is a multiple of this fraction of the largest, so that a few images
# more seldom mean another shape.
_FRACTION = 8


class Wave(NamedTuple):
    """Images that the devices differentiate at a time.

    Attributes:
        places: of the images, equally many for each device, padded with repeats of the last.
        start: the place of the first.
        images: how many are no repeats.
        devices: of the mesh.
    """

    places: np.ndarray
    start: int
    images: int
    devices: int

    @property
    def stop(self) -> int:
        """The place after the last image."""
        return self.start + self.images

    def share(self, device: int, each: int) -> slice:
        """Rows of the kernel for the images that a device has, `each` for an image."""
        size = len(self.places) // self.devices
        first = min(self.start + device * size, self.stop)
        return slice(first * each, min(first + size, self.stop) * each)


def waves(start: int, end: int, chunk: int, devices: int) -> list[Wave]:
    """The images from one place to below another, in waves of one size.

    Args:
        start: the first image.
        end: below which.
        chunk: how many one device differentiates at a time at most.
        devices: of the mesh.
    """
    if start == end:
        return []
    turns = -(-(end - start) // (devices * chunk))
    fraction = max(1, chunk // _FRACTION)
    share = -(-(end - start) // (devices * turns * fraction)) * fraction
    step = devices * min(share, chunk)
    return [
        Wave(
            np.minimum(np.arange(first, first + step), end - 1),
            first,
            min(step, end - first),
            devices,
        )
        for first in range(start, end, step)
    ]


# In the scratch, how many passes are finished.
_PASSES = "passes"


class _Formed(NamedTuple):
    """A wave whose rows and factors the devices hold."""

    wave: Wave
    chunk: Chunk


class _Sweep(NamedTuple):
    """What all passes have in common; `placed` is the model with its arrays on the devices."""

    model: Model
    placed: Model
    images: np.ndarray
    problem: Problem
    mesh: Mesh
    products: str


def sharded_sweep(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
    mesh: Mesh,
    products: str = "highest",
    scratch: Scratch | None = None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first; all of them in every process.
        problem: what is computed.
        plan: how; its chunk is that of one device.
        progress: told of every wave and every product.
        mesh: the devices, along one axis.
        products: precision of the products between images, one of `jax.default_matmul_precision`.
        scratch: where the sum of finished passes is kept, and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite.
    """
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    values = np.zeros((anchors * each, total * each))
    diagonal = np.zeros((total - anchors, each, each))
    placed = Model(model.function, *everywhere(tuple(model[1:]), mesh))
    sweep = _Sweep(model, placed, images, problem, mesh, products)
    scratch = scratch or Scratch()
    done = scratch.done(_PASSES)
    sums = (values, diagonal)
    if done:
        for array, kept in zip(sums, _kept(scratch, done, *sums), strict=True):
            array[:] = kept
    for number, one in enumerate(plan.passes):
        if number < done:
            progress.formed(one, total)
            progress.contracted(one, total - anchors / 2)
            continue
        _add_pass(sweep, one, plan.chunk, progress, values, diagonal)
        if scratch.keeps:
            for array, kept in zip(sums, _kept(scratch, number + 1, *sums), strict=True):
                kept[:] = array
            scratch.mark(_PASSES, number + 1)
    return values, diagonal


def _kept(
    scratch: Scratch, done: int, values: np.ndarray, diagonal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What so many passes add up to, in the scratch; that of one pass fewer is left as it is."""
    return (
        scratch.array(f"values-{done % 2}", values.shape, values.dtype),
        scratch.array(f"diagonal-{done % 2}", diagonal.shape, diagonal.dtype),
    )


def _add_pass(
    sweep: _Sweep,
    one: Pass,
    chunk: int,
    progress: Progress,
    values: np.ndarray,
    diagonal: np.ndarray,
) -> None:
    """Add one pass to the kernel and to the blocks of images that are no anchors."""
    problem, mesh = sweep.problem, sweep.mesh
    anchors, total = problem.anchors, problem.examples
    kept: list[_Formed] = []
    for wave in waves(0, anchors, chunk, mesh.size):
        kept.append(_formed(sweep, one, wave))
        progress.formed(one, wave.images)
    for number in range(len(kept)):
        _add_gram(sweep, one, values, kept[number:])
        done = (len(kept) - number) / (len(kept) * (len(kept) + 1))
        progress.contracted(one, done * anchors)
    for wave in waves(anchors, total, chunk, mesh.size):
        met = _formed(sweep, one, wave)
        _add_cross(sweep, one, values, kept, met)
        alone = alone_on(mesh, _shapes(one), met.chunk)
        start = wave.start - anchors
        diagonal[start : start + wave.images] += collected(alone)[: wave.images]
        progress.formed(one, wave.images)
        progress.contracted(one, float(wave.images))


def _formed(sweep: _Sweep, one: Pass, wave: Wave) -> _Formed:
    """A wave of images in one pass, on the devices."""
    problem, mesh = sweep.problem, sweep.mesh
    projections = problem.directions.projections[slice(*one.projections)]
    starts = np.array([part.piece * part.outputs for part in one.parts])
    some = sweep.images[wave.places]
    chunk = form_on(
        mesh,
        sweep.model.function,
        _shapes(one),
        problem.directions.square,
        together(),
        *sweep.placed[1:],
        spread(some, mesh),
        *everywhere((projections.astype(some.dtype), starts), mesh),
    )
    check_wave(sweep.model, sweep.images, wave, chunk.finite, projections)
    return _Formed(wave, chunk)


def check_wave(
    model: Model, images: np.ndarray, wave: Wave, finite: jax.Array, projections: np.ndarray
) -> None:
    """Refuse gradients that are not finite, in every process alike.

    Args:
        model: the network.
        images: all of them.
        wave: the places that were differentiated.
        finite: whether the gradients are, by place.
        projections: one v a row.

    Raises:
        KernelError: they are not.
    """
    bad = wave.places[~collected(finite).reshape(-1)]
    if len(bad):
        raise not_finite(model, images, sorted(set(bad.tolist())), projections)


def _add_gram(sweep: _Sweep, one: Pass, values: np.ndarray, kept: list[_Formed]) -> None:
    """Add the part of the kernel of the first of these waves with each of them, both ways."""
    devices, first, each = sweep.mesh.size, kept[0], sweep.problem.rows_an_example
    # of the pairs of devices within a wave one order is enough
    found = [_contracted(sweep, one, first, first, devices // 2 + 1)]
    found += [_contracted(sweep, one, first, other, devices) for other in kept[1:]]
    for other, blocks in zip(kept, found, strict=True):
        for device, step, place, block in _placed(collected(blocks), first.wave, other.wave, each):
            within = other is first
            if within and 2 * step == devices and device >= step:
                continue
            values[place] += block
            if not within or step:
                values[place[::-1]] += block.T


def _add_cross(
    sweep: _Sweep, one: Pass, values: np.ndarray, kept: list[_Formed], met: _Formed
) -> None:
    """Add the part of the kernel between the anchors and a wave of other images."""
    each = sweep.problem.rows_an_example
    found = [_contracted(sweep, one, own, met, sweep.mesh.size) for own in kept]
    for own, blocks in zip(kept, found, strict=True):
        for _, _, place, block in _placed(collected(blocks), own.wave, met.wave, each):
            values[place] += block


def _contracted(sweep: _Sweep, one: Pass, own: _Formed, other: _Formed, steps: int) -> jax.Array:
    with jax.default_matmul_precision(sweep.products):
        return contract_on(sweep.mesh, _shapes(one), steps, own.chunk, other.chunk)


def _placed(
    blocks: np.ndarray, own: Wave, other: Wave, each: int
) -> Iterator[tuple[int, int, tuple[slice, slice], np.ndarray]]:
    """Device, step, place in the kernel and values of each block, without what is padding."""
    devices, steps, *_ = blocks.shape
    for device in range(devices):
        rows = own.share(device, each)
        for step in range(steps):
            columns = other.share((device + step) % devices, each)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            yield device, step, (rows, columns), blocks[device, step, :height, :width]


def _shapes(one: Pass) -> tuple[Part, ...]:
    """Parts that differ by their piece alone are compiled once."""
    return tuple(part._replace(piece=0) for part in one.parts)


def sharded_sketches(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    buckets: int,
    chunk: int,
    rng: np.random.Generator | None,
    report: Report | None,
    mesh: Mesh,
    scratch: Scratch | None = None,
) -> Sketches:
    """`kernel.contract.sketches`, each device with its slice of every wave.

    Args:
        model: in the precision of the problem.
        images: all of them, in every process.
        problem: what is computed.
        buckets: k.
        chunk: images that one device differentiates at a time.
        rng: where the signs come from; in the same state in every process.
        report: told how many images are done, and of how many.
        mesh: the devices, along one axis.
        scratch: where finished waves are kept, and taken up from.

    Raises:
        KernelError: a sketch of no or too many dimensions; no generator; gradients that are not
            finite.
    """
    columns = sum(unit.columns for unit in problem.units)
    signs = everywhere(random_signs(columns, buckets, given(rng, "a sketch")), mesh)
    projections = problem.directions.projections.astype(problem.precision)
    weights = everywhere(tuple(model[1:]), mesh)
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    scratch = scratch or Scratch()
    found, done = room(scratch, len(images), problem, buckets)
    for wave in waves(0, len(images), chunk, mesh.size):
        if wave.stop <= done:
            continue
        some = spread(images[wave.places], mesh)
        # one projection at a time: what one image leaves in the network is what takes memory
        for number in range(len(projections)):
            one = everywhere(projections[number : number + 1], mesh)
            folded = sketch_on(
                mesh,
                model.function,
                problem.units,
                buckets,
                together(),
                *weights,
                some,
                one,
                signs,
            )
            check_wave(model, images, wave, folded.finite, projections)
            own = collected(folded.rows)[: wave.images, 0]
            found.features[wave.start : wave.stop, number] = own * scale
            found.logits[wave.start : wave.stop] = collected(folded.logits)[: wave.images]
        finished(scratch, wave.stop)
        if report is not None:
            report(float(wave.stop), float(len(images)))
    return found


# Images between which the error is measured, at most.
BLOCK = 64


class Arithmetic(NamedTuple):
    """What a kernel is computed in.

    Attributes:
        gradients: their dtype.
        products: precision of the products between images, for `jax.default_matmul_precision`.
    """

    gradients: Precision
    products: str


_ARITHMETIC: dict[str, Arithmetic] = {
    name: Arithmetic(dtype_of(name), "tensorfloat32" if name == "tf32" else "highest")
    for name in PRECISIONS
}


def arithmetic(name: str) -> Arithmetic:
    """The arithmetic of a name.

    Raises:
        KernelError: unknown name; TF32 where there is no GPU.
    """
    if name not in _ARITHMETIC:
        raise KernelError(f"unknown arithmetic {name!r}; known: {', '.join(_ARITHMETIC)}.")
    backend = jax.default_backend()
    if name == "tf32" and backend != "gpu":
        raise KernelError(
            f"TF32 is arithmetic of NVIDIA GPUs and this process computes on {backend!r}; use "
            "float32."
        )
    return _ARITHMETIC[name]


def product_error(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    request: Request,
    rng: np.random.Generator | None = None,
    *,
    quick: str = "tf32",
    exact: str = "float32",
) -> float:
    """How much a kernel in one arithmetic differs from the same in another.

    Args:
        model: the network.
        images: the first `BLOCK` of them are used.
        request: kind, probes, chunk and memory of the kernel; its precision has no part in it.
        rng: where random projections come from, the same for both.
        quick: the arithmetic judged.
        exact: that by which it is judged.

    Returns:
        ‖Θ_quick − Θ_exact‖_F / ‖Θ_exact‖_F.

    Raises:
        KernelError: an arithmetic that is unknown or not to be had here; whatever a kernel refuses.
    """
    both = [arithmetic(name) for name in (quick, exact)]
    some = images[:BLOCK]
    image = jax.ShapeDtypeStruct(some.shape[1:], "float32")
    # once, so that both have the same random projections
    problem = problem_of(cast(model, "float32"), image, len(some), len(some), request, rng)
    over: Mesh = mesh(1)
    found = []
    for own in both:
        stated = problem._replace(precision=own.gradients)
        made = plan(stated, request.memory_gib, min(chunk_of(request), len(some)))
        values, _ = sharded_sweep(
            cast(model, own.gradients),
            np.asarray(some, own.gradients),
            stated,
            made,
            Progress(stated, made, None),
            over,
            own.products,
        )
        found.append(values)
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))
