"""Contraction of a kernel's passes on the devices of a mesh.

Images go through in batches, of which each device has an equal slice; two batches are contracted
while one of them is handed round in a ring, so that no device holds the rows of all images. Every
program has one shape however many images there are. With several hosts, every process calls
`jax.distributed.initialize(coordinator, processes, process)` before anything else of JAX, then the
same functions with the same images, weights and seeds; each gets the whole result.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int8

from kernel.contract import Sketches, reserved, sum_passes, unfinished
from kernel.errors import KernelError
from kernel.jacobian import (
    Chunk,
    KroneckerFactors,
    SketchedRows,
    contract_factors,
    contract_own_factors,
    differentiate_shape,
    random_signs,
    sketch_gradients,
    tile_images,
)
from kernel.linalg import on_host
from kernel.model import Frozen, Function, Images, Model, Params, matmul_precision, require_rng
from kernel.param_groups import Block, ParamGroup
from kernel.plan import Pass, Plan, Progress, Report
from kernel.scratch import Scratch
from kernel.taps import check_gradients

AXIS = "examples"


def mesh(devices: int | None = None) -> Mesh:
    """The first devices of all processes in one row, over which images are spread.

    Args:
        devices: how many; all if None.

    Raises:
        KernelError: fewer than one, more than there are, or none of some process.
    """
    there = jax.devices()
    count = len(there) if devices is None else devices
    if not 1 <= count <= len(there):
        raise KernelError(
            f"{count} devices were asked for and {len(there)} exist ({jax.default_backend()}): "
            f"give a number from 1 to {len(there)}, or none for all."
        )
    chosen = there[:count]
    check_processes([device.process_index for device in chosen], jax.process_count())
    return Mesh(np.array(chosen), (AXIS,))


def check_processes(owners: Sequence[int], processes: int) -> None:
    """Refuse devices of which a process has none: it could neither compute nor see the result.

    Raises:
        KernelError: there is such a process.
    """
    idle = sorted(set(range(processes)) - set(owners))
    if idle:
        raise KernelError(
            f"{len(owners)} devices were asked for, and the processes {idle} of {processes} have "
            "none of them: give none for the devices of all processes, or start fewer processes."
        )


def spread(array: np.ndarray, over: Mesh) -> jax.Array:
    """An array in equal slices of axis 0, one a device; every process gives the whole."""
    return _placed(array, NamedSharding(over, PartitionSpec(AXIS)))


def everywhere(tree: Any, over: Mesh) -> Any:
    """Arrays that every device has whole."""
    sharding = NamedSharding(over, PartitionSpec())
    return jax.tree.map(lambda leaf: _placed(np.asarray(leaf), sharding), tree)


def collected(array: jax.Array) -> np.ndarray:
    """A spread array on this host, those slices too that other processes have."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _placed(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


# The largest product of two layers' factors that is made at a time: what a processor's cache
# holds, or what keeps a GPU busy.
_TILE_BYTES, _GPU_TILE_BYTES = 2**23, 2**28
_SLICES, _WHOLE = PartitionSpec(AXIS), PartitionSpec()


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def form_on(
    mesh: Mesh,
    function: Function,
    blocks: tuple[Block, ...],
    square: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    starts: Array,
) -> Chunk:
    """A batch of images in one pass: `kernel.jacobian.Chunk` with a leading axis of devices.

    Args:
        mesh: of the devices.
        function: the network.
        blocks: what the pass is for, all of piece 0.
        square: a row for each projection.
        params: on all devices.
        frozen: on all devices.
        images: spread over the devices.
        projections: on all devices.
        starts: the first output of each block's piece, on all devices.
    """

    def local(params: Any, frozen: Any, images: Array, projections: Array, starts: Array) -> Any:
        chunk = differentiate_shape(
            function, blocks, square, not on_host(), params, frozen, images, projections, starts
        )
        return jax.tree.map(lambda leaf: leaf[None], chunk)

    specs = (_WHOLE, _WHOLE, _SLICES, _WHOLE, _WHOLE)
    return _mapped(local, mesh, specs)(params, frozen, images, projections, starts)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sketch_on(
    mesh: Mesh,
    function: Function,
    groups: tuple[ParamGroup, ...],
    buckets: int,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    projections: Float[Array, "projections classes"],
    signs: Int8[Array, " columns"],
) -> SketchedRows:
    """`kernel.jacobian.sketch_gradients` of a batch, spread over the devices like its images."""

    def local(*arrays: Any) -> Any:
        return sketch_gradients(function, groups, buckets, not on_host(), *arrays)

    specs = (_WHOLE, _WHOLE, _SLICES, _WHOLE, _WHOLE)
    return _mapped(local, mesh, specs)(params, frozen, images, projections, signs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def contract_on(
    mesh: Mesh, blocks: tuple[Block, ...], steps: int, one: Chunk, other: Chunk
) -> Float[Array, "devices steps rows columns"]:
    """A pass's part of the kernel between the images of each device and those of others.

    Args:
        mesh: of the devices.
        blocks: of the pass, all of piece 0.
        steps: how many devices each device's images meet, beginning with its own.
        one: a batch.
        other: a batch, which is handed on: at step s, device d has that of d + s modulo devices.
    """
    devices = mesh.size
    ring = [(device, (device - 1) % devices) for device in range(devices)]

    def local(one: Chunk, other: Chunk) -> Array:
        own, held = jax.tree.map(lambda leaf: leaf[0], (one, other))
        if steps == 1:
            return _between(blocks, own, held)[None, None]

        def step(held: Chunk, _: None) -> tuple[Chunk, Array]:
            product = _between(blocks, own, held)
            return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, AXIS, ring), held), product

        _, products = jax.lax.scan(step, held, None, length=steps)
        return products[None]

    return _mapped(local, mesh, (_SLICES, _SLICES))(one, other)


@partial(jax.jit, static_argnums=(0, 1))
def diagonal_on(
    mesh: Mesh, blocks: tuple[Block, ...], chunk: Chunk
) -> Float[Array, "images rows rows"]:
    """A pass's part of the kernel between each image of a batch and itself, in float64."""

    def local(chunk: Chunk) -> Array:
        own = jax.tree.map(lambda leaf: leaf[0], chunk)

        def gram(rows: Array) -> Array:
            exact = rows.astype(jnp.float64)
            return exact @ exact.T

        total = jax.lax.map(gram, own.rows)
        for block, factors in zip(_factored(blocks), own.factors, strict=True):
            assert block.group.rule is not None
            total += contract_own_factors(block.group.rule.bias is not None, factors)
        return total

    return _mapped(local, mesh, (_SLICES,))(chunk)


def _mapped(local: Callable[..., Any], mesh: Mesh, specs: tuple[Any, ...]) -> Callable[..., Any]:
    # without the check of which values differ between devices: the loops of `kernel.jacobian`
    # begin with zeros that are the same on all and go on with what is not
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=_SLICES, check_vma=False)


def _factored(blocks: tuple[Block, ...]) -> list[Block]:
    return [block for block in blocks if block.form == "factors"]


def _between(blocks: tuple[Block, ...], one: Chunk, other: Chunk) -> Array:
    """(rows, columns) between the images of two chunks."""
    total = _flat(one.rows) @ _flat(other.rows).T
    factors = zip(_factored(blocks), one.factors, other.factors, strict=True)
    for block, own, held in factors:
        total += _contract_tiles(block, own, held)
    return total


def _flat(rows: Array) -> Array:
    images, count, columns = rows.shape
    return rows.reshape(images * count, columns)


def _contract_tiles(
    block: Block, one: KroneckerFactors, other: KroneckerFactors
) -> Float[Array, "rows columns"]:
    """A layer's part in tiles, whose products take memory with the square of its positions."""
    assert block.group.rule is not None
    bias = block.group.rule.bias is not None
    images, others = one.inputs.shape[1], other.inputs.shape[1]
    limit = _TILE_BYTES if on_host() else _GPU_TILE_BYTES
    tile = tile_images(one, max(images, others), limit)
    left, right = _tiles(one, min(tile, images)), _tiles(other, min(tile, others))
    blocks = jax.lax.map(
        lambda own: jax.lax.map(lambda held: contract_factors(bias, own, held), right), left
    )
    ordered = blocks.transpose(0, 2, 3, 1, 4, 5)  # (tiles, images, rows, tiles', images', rows')
    each = ordered.shape[2]
    whole = ordered.reshape(ordered.shape[0] * ordered.shape[1] * each, -1)
    return whole[: images * each, : others * each]


def _tiles(factors: KroneckerFactors, tile: int) -> KroneckerFactors:
    """Factors cut along their images, the tiles along a new axis 0, with zeros past the end."""

    def cut(array: Array) -> Array:
        count = -(-array.shape[1] // tile)
        ends = [(0, 0)] * array.ndim
        ends[1] = (0, count * tile - array.shape[1])
        shape = (array.shape[0], count, tile, *array.shape[2:])
        return jnp.moveaxis(jnp.pad(array, ends).reshape(shape), 1, 0)

    return jax.tree.map(cut, factors)


class DeviceBatch(NamedTuple):
    """Images that the devices differentiate at a time.

    Attributes:
        idx: of the images, equally many for each device, padded by repeating the last.
        start: index of the first.
        images: how many are no padding.
        devices: of the mesh.
    """

    idx: np.ndarray
    start: int
    images: int
    devices: int

    @property
    def stop(self) -> int:
        """The index after the last image."""
        return self.start + self.images

    def share(self, device: int, each: int) -> slice:
        """Rows of the kernel for the images that a device has, `each` for an image."""
        size = len(self.idx) // self.devices
        first = min(self.start + device * size, self.stop)
        return slice(first * each, min(first + size, self.stop) * each)


def device_batches(start: int, end: int, chunk: int, devices: int) -> list[DeviceBatch]:
    """Images from `start` to below `end` in batches of one size.

    Args:
        start: the first image.
        end: below which.
        chunk: how many one device differentiates at a time at most.
        devices: of the mesh.
    """
    # a device's slice is a multiple of an eighth of the largest: few images more, no new shape
    unit = max(1, chunk // 8)
    step = devices * min(chunk, -(-(end - start) // (devices * unit)) * unit)
    return [
        DeviceBatch(
            np.minimum(np.arange(first, first + step), end - 1),
            first,
            min(step, end - first),
            devices,
        )
        for first in (range(start, end, step) if end > start else ())
    ]


class _Formed(NamedTuple):
    """A batch whose rows and factors the devices hold."""

    batch: DeviceBatch
    chunk: Chunk


def contract_sharded(
    model: Model,
    images: Images,
    plan: Plan,
    progress: Progress,
    mesh: Mesh,
    scratch: Scratch | None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """`kernel.contract.contract` on the devices of a mesh.

    Args:
        model: in the precision of the problem.
        images: the anchors first; all of them in every process.
        plan: of whole gradients; its chunk is that of one device.
        progress: updated with every batch and every product.
        mesh: the devices, along one axis.
        scratch: where the sums of finished passes are kept, and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite; TF32 where there is no GPU; no space for the
            scratch.
    """
    placed = Model(model.function, *everywhere(tuple(model[1:]), mesh))
    products = matmul_precision(plan.problem.precision)

    def add(number: int, values: np.ndarray, diagonal: np.ndarray) -> None:
        own = _MeshPass(model, placed, images, plan, plan.passes[number], mesh, products)
        own.add_to(values, diagonal, progress)

    return sum_passes(plan, add, progress, scratch)


class _MeshPass(NamedTuple):
    """One pass of a plan; `placed` is the model with its arrays on the devices."""

    model: Model
    placed: Model
    images: Images
    plan: Plan
    one: Pass
    mesh: Mesh
    products: str

    @property
    def each(self) -> int:
        return self.plan.problem.rows_an_example

    @property
    def shapes(self) -> tuple[Block, ...]:
        """Blocks that differ by their piece alone are compiled once."""
        return tuple(block._replace(piece=0) for block in self.one.blocks)

    def add_to(self, values: np.ndarray, diagonal: np.ndarray, progress: Progress) -> None:
        """Add the pass to the kernel and to the blocks of images that are no anchors."""
        problem, one, devices = self.plan.problem, self.one, self.mesh.size
        anchors, chunk = problem.anchors, self.plan.chunk
        kept: list[_Formed] = []
        for batch in device_batches(0, anchors, chunk, devices):
            kept.append(self._formed(batch))
            progress.formed(one, batch.images)
        for number in range(len(kept)):
            self._add_gram(values, kept[number:])
            done = (len(kept) - number) / (len(kept) * (len(kept) + 1))
            progress.contracted(one, done * anchors)
        for batch in device_batches(anchors, problem.examples, chunk, devices):
            met = self._formed(batch)
            self._add_cross(values, kept, met)
            alone = collected(diagonal_on(self.mesh, self.shapes, met.chunk))
            diagonal[batch.start - anchors : batch.stop - anchors] += alone[: batch.images]
            progress.formed(one, batch.images)
            progress.contracted(one, float(batch.images))

    def _formed(self, batch: DeviceBatch) -> _Formed:
        """A batch of images, on the devices."""
        directions = self.plan.problem.directions
        projections = directions.projections[slice(*self.one.projections)]
        starts = np.array([block.piece * block.outputs for block in self.one.blocks])
        some = self.images[batch.idx]
        chunk = form_on(
            self.mesh,
            self.model.function,
            self.shapes,
            directions.square,
            *self.placed[1:],
            spread(some, self.mesh),
            *everywhere((projections.astype(some.dtype), starts), self.mesh),
        )
        finite = collected(chunk.finite).reshape(-1)  # in every process alike
        check_gradients(self.model, self.images, batch.idx, finite, projections)
        return _Formed(batch, chunk)

    def _add_gram(self, values: np.ndarray, kept: list[_Formed]) -> None:
        """Add the kernel of the first of these batches with each of them, both ways."""
        devices, first = self.mesh.size, kept[0]
        # of the pairs of devices within a batch one order is enough
        found = [self._contracted(first, first, devices // 2 + 1)]
        found += [self._contracted(first, other, devices) for other in kept[1:]]
        for other, products in zip(kept, found, strict=True):
            own = (products, first.batch, other.batch, self.each)
            for device, step, index, block in _unpadded(*own):
                within = other is first
                if within and 2 * step == devices and device >= step:
                    continue
                values[index] += block
                if not within or step:
                    values[index[::-1]] += block.T

    def _add_cross(self, values: np.ndarray, kept: list[_Formed], met: _Formed) -> None:
        """Add the kernel between the anchors and a batch of other images."""
        found = [self._contracted(own, met, self.mesh.size) for own in kept]
        for own, products in zip(kept, found, strict=True):
            for _, _, index, block in _unpadded(products, own.batch, met.batch, self.each):
                values[index] += block

    def _contracted(self, own: _Formed, other: _Formed, steps: int) -> jax.Array:
        with jax.default_matmul_precision(self.products):
            return contract_on(self.mesh, self.shapes, steps, own.chunk, other.chunk)


def _unpadded(
    products: jax.Array, own: DeviceBatch, other: DeviceBatch, each: int
) -> Iterator[tuple[int, int, tuple[slice, slice], np.ndarray]]:
    """Device, step, index into the kernel and values of each block, without padding."""
    blocks = collected(products)
    devices, steps, *_ = blocks.shape
    for device in range(devices):
        rows = own.share(device, each)
        for step in range(steps):
            columns = other.share((device + step) % devices, each)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            yield device, step, (rows, columns), blocks[device, step, :height, :width]


def sketches_sharded(
    model: Model,
    images: Images,
    plan: Plan,
    rng: np.random.Generator | None,
    report: Report | None,
    mesh: Mesh,
    scratch: Scratch | None,
) -> Sketches:
    """`kernel.contract.sketches`, each device with its slice of every batch.

    Args:
        model: in the precision of the problem.
        images: all of them, in every process.
        plan: of a sketch; its chunk is that of one device.
        rng: where the signs come from; in the same state in every process.
        report: called with the images done and all images.
        mesh: the devices, along one axis.
        scratch: where finished batches are kept, and taken up from.

    Raises:
        KernelError: a sketch of no or too many dimensions; no generator; gradients that are not
            finite.
    """
    problem, buckets = plan.problem, plan.request.sketch
    assert buckets is not None
    signs = everywhere(random_signs(problem.columns, buckets, require_rng(rng, "a sketch")), mesh)
    projections = problem.directions.projections.astype(problem.precision)
    weights = everywhere(tuple(model[1:]), mesh)
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    found, batches = Sketches.zeros(plan), device_batches(0, len(images), plan.chunk, mesh.size)
    with reserved(scratch, found.features.nbytes + found.logits.nbytes):
        share = len(batches[0].idx)
        starts, ends = unfinished(len(images), share, lambda own: found.load(scratch, own))
        for batch in (batches[start // share] for start in starts):
            some = spread(images[batch.idx], mesh)
            # one projection at a time: what one image leaves in the network is what takes memory
            for number in range(len(projections)):
                one = everywhere(projections[number : number + 1], mesh)
                how = (mesh, model.function, problem.groups, buckets)
                folded = sketch_on(*how, *weights, some, one, signs)
                finite = collected(folded.finite).reshape(-1)
                check_gradients(model, images, batch.idx, finite, projections)
                own = collected(folded.rows)[: batch.images, 0]
                found.features[batch.start : batch.stop, number] = own * scale
                found.logits[batch.start : batch.stop] = collected(folded.logits)[: batch.images]
            if batch.start in ends:
                found.save(scratch, ends[batch.start])
            if report is not None:
                report(float(batch.stop), float(len(images)))
    return found
