"""Contraction of a kernel's passes on CPU cores: rows by BLAS, factors in tiles.

The anchors come first: their rows and factors are kept and contracted with each other; every other
image is met by them and let go. Chunks of images are differentiated on several threads. With a
`Scratch` an interrupted kernel goes on where it stood.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel import linalg
from kernel.jacobian import (
    Chunk,
    KroneckerFactors,
    contract_factors,
    contract_own_factors,
    differentiate,
    random_signs,
    sketch_gradients,
    tile_images,
)
from kernel.model import Images, Model, require_rng
from kernel.param_groups import Block
from kernel.plan import Pass, Plan, Progress, Report, threads_of
from kernel.scratch import Scratch, load_sums, save_sums
from kernel.taps import check_gradients

_Result = TypeVar("_Result")


def map_in_order(
    work: Callable[[int], _Result], starts: Iterable[int], threads: int
) -> Iterator[tuple[int, _Result]]:
    """Each start with the work done on it, in order, while the next are worked on.

    The first is worked on alone, so that what it compiles is compiled once. Besides the result that
    was handed over last, at most `threads` + 1 others exist or are being made.

    Args:
        work: called from several threads.
        starts: what it is called with.
        threads: how many; 1 does everything in the caller's own.

    Raises:
        Exception: what the work raised, at its place in the order.
    """
    remaining = iter(starts)
    for start in remaining:
        yield start, work(start)
        if threads > 1:
            break
    pending: deque[tuple[int, Future[_Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in remaining:
                pending.append((start, pool.submit(work, start)))
                if len(pending) > threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            for start, future in pending:
                yield start, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# Blocks that a set of images is kept in at most: an interruption loses one of them.
_BLOCKS = 256


def unfinished(
    count: int, share: int, load: Callable[[slice], bool]
) -> tuple[list[int], dict[int, slice]]:
    """Chunks that are left to compute, and the blocks of them that are kept together.

    Args:
        count: images.
        share: of a chunk; a block has whole ones.
        load: of a block's images, whether it is finished.

    Returns:
        Where the chunks begin, and each block by where its last chunk begins.
    """
    starts, ends = [], {}
    size = share * max(1, math.ceil(count / (share * _BLOCKS)))
    for start, stop in linalg.row_blocks(count, size):
        if not load(slice(start, stop)):
            chunks = range(start, stop, share)
            starts += chunks
            ends[chunks[-1]] = slice(start, stop)
    return starts, ends


def reserved(scratch: Scratch | None, needed: int) -> AbstractContextManager[None]:
    """Reserve disk space, in bytes, if anything is kept."""
    return nullcontext() if scratch is None else scratch.reserved(needed)


class Sketches(NamedTuple):
    """Sketched gradients of a set of images.

    Attributes:
        features: (examples, projections, buckets), with the scale of the kernel in them.
        logits: (examples, classes), in the precision of the problem; the pass has them anyway.
    """

    features: Float[np.ndarray, "examples projections buckets"]
    logits: Float[np.ndarray, "examples classes"]

    @classmethod
    def zeros(cls, plan: Plan) -> "Sketches":
        """Nothing is filled in yet."""
        problem, dtype = plan.problem, plan.problem.precision
        projections, classes = problem.directions.projections.shape
        features = np.zeros((problem.examples, projections, plan.request.sketch or 0), dtype)
        return cls(features, np.zeros((problem.examples, classes), dtype))

    def load(self, scratch: Scratch | None, own: slice) -> bool:
        """Fill in some images, if they are kept."""
        if scratch is None:
            return False
        return scratch.load(f"sketches-{own.start}", self.features[own], self.logits[own])

    def save(self, scratch: Scratch | None, own: slice) -> None:
        """Keep some images."""
        if scratch is not None:
            scratch.save(f"sketches-{own.start}", self.features[own], self.logits[own])


def sketches(
    model: Model,
    images: Images,
    plan: Plan,
    rng: np.random.Generator | None,
    report: Report | None,
    scratch: Scratch | None,
) -> Sketches:
    """Every image's gradient, folded to `plan.request.sketch` dimensions for each projection.

    Args:
        model: in the precision of the problem.
        images: all of them.
        plan: of a sketch.
        rng: where the signs come from.
        report: called with the images done and all images.
        scratch: where finished chunks are kept, and taken up from.

    Raises:
        KernelError: a sketch of no or too many dimensions; no generator; gradients that are not
            finite; no space for the scratch.
    """
    problem, buckets = plan.problem, plan.request.sketch
    assert buckets is not None
    signs = jnp.asarray(random_signs(problem.columns, buckets, require_rng(rng, "a sketch")))
    projections = problem.directions.projections
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    found = Sketches.zeros(plan)
    threads, share = threads_of(plan.chunk)
    how = (model.function, problem.groups, buckets, False, *model[1:])

    def folded(start: int) -> tuple[list[np.ndarray], np.ndarray]:
        idx = np.minimum(np.arange(start, start + share), len(images) - 1)
        some = jnp.asarray(images[idx])
        all_rows, logits = [], np.empty(0)
        # one projection at a time: what one image leaves in the network is what takes memory
        for projection in jnp.asarray(projections, problem.precision):
            one = sketch_gradients(*how, some, projection[None], signs)
            check_gradients(model, images, idx, np.asarray(one.finite), projections)
            all_rows.append(np.asarray(one.rows)[:, 0])
            logits = np.asarray(one.logits)
        return all_rows, logits

    with reserved(scratch, found.features.nbytes + found.logits.nbytes):
        starts, ends = unfinished(len(images), share, lambda own: found.load(scratch, own))
        for start, (rows, logits) in map_in_order(folded, starts, threads):
            count = min(share, len(images) - start)
            found.features[start : start + count] = np.stack(rows, axis=1)[:count] * scale
            found.logits[start : start + count] = logits[:count]
            if start in ends:
                found.save(scratch, ends[start])
            if report is not None:
                report(float(start + count), float(len(images)))
    return found


# The largest product of two layers' factors that is made at a time: what a core's cache holds.
_TILE_BYTES = 2**23


class AnchorRows:
    """Rows and factors of the anchors in one pass, filled chunk by chunk."""

    def __init__(self, anchors: int, blocks: tuple[Block, ...]):
        """Nothing is allocated before the first chunk tells shapes and dtypes.

        Args:
            anchors: how many images it holds in the end.
            blocks: of the pass.
        """
        self.anchors = anchors
        # a power of two for few images, so that one more does not compile anew
        self._tile = min(1 << (anchors - 1).bit_length(), 512)
        factored = [block.group.rule for block in blocks if block.form == "factors"]
        self._biases = [rule is not None and rule.bias is not None for rule in factored]
        self._rows: np.ndarray | None = None
        self._factors: list[KroneckerFactors] = []

    def put(self, start: int, chunk: Chunk) -> None:
        """Keep a chunk whose first image is the anchor `start`; what lies past the end is left."""
        if self._rows is None:
            self._rows = self._zeros(chunk.rows, 0)
            self._factors = [
                KroneckerFactors(self._zeros(own.inputs, 1), self._zeros(own.cotangents, 1))
                for own in chunk.factors
            ]
        count = min(len(chunk.rows), self.anchors - start)
        self._rows[start : start + count] = np.asarray(chunk.rows)[:count]
        for own, new in zip(self._factors, chunk.factors, strict=True):
            own.inputs[:, start : start + count] = np.asarray(new.inputs)[:, :count]
            own.cotangents[:, start : start + count] = np.asarray(new.cotangents)[:, :count]

    def add_gram(self, values: Float[np.ndarray, "rows rows"]) -> None:
        """Add this pass's part of the kernel of the anchors with themselves to `values`."""
        rows = self._flat()
        if rows.shape[1]:
            linalg.add_gram(values, rows)
        for bias, factors in zip(self._biases, self._factors, strict=True):
            tile = tile_images(factors, self._tile, _TILE_BYTES)
            starts = range(0, self.anchors, tile)
            for i in starts:
                for j in range(i, self.anchors, tile):
                    own, other = _cut(factors, i, tile), _cut(factors, j, tile)
                    block = np.asarray(contract_factors(bias, own, other))
                    _add(values, block, i, j)
                    if i != j:
                        _add(values, block.transpose(2, 3, 0, 1), j, i)

    def cross(self, chunk: Chunk, count: int) -> Float[np.ndarray, "rows columns"]:
        """The part of the kernel between the anchors and the first images of a chunk."""
        rows, others = self._flat(), np.asarray(chunk.rows)[:count]
        values = np.zeros((len(rows), count * rows.shape[0] // self.anchors))
        if rows.shape[1]:
            linalg.add_products(values, rows, others.reshape(-1, rows.shape[1]))
        for bias, factors, other in zip(self._biases, self._factors, chunk.factors, strict=True):
            tile = tile_images(factors, self._tile, _TILE_BYTES)
            for i in range(0, self.anchors, tile):
                block = contract_factors(bias, _cut(factors, i, tile), other)
                _add(values, np.asarray(block), i, 0)
        return values

    def diagonal(self, chunk: Chunk) -> Float[np.ndarray, "images rows rows"]:
        """The part of the kernel between each image of a chunk and itself, in float64."""
        rows = np.asarray(chunk.rows, np.float64)
        total = np.einsum("irp,isp->irs", rows, rows)
        for bias, factors in zip(self._biases, chunk.factors, strict=True):
            total += np.asarray(contract_own_factors(bias, factors))
        return total

    def _zeros(self, like: jax.Array | np.ndarray, axis: int) -> np.ndarray:
        """An array as one of a chunk, with all anchors along an axis."""
        return np.zeros((*like.shape[:axis], self.anchors, *like.shape[axis + 1 :]), like.dtype)

    def _flat(self) -> np.ndarray:
        assert self._rows is not None
        anchors, count, columns = self._rows.shape
        return self._rows.reshape(anchors * count, columns)


def _add(values: np.ndarray, block: np.ndarray, i: int, j: int) -> None:
    """Add a tile whose images begin at i and j, without its padding past the ends."""
    each = block.shape[1]
    flat = block.reshape(len(block) * each, -1)
    target = values[i * each : i * each + len(flat), j * each : j * each + flat.shape[1]]
    target += flat[: target.shape[0], : target.shape[1]]


def _cut(factors: KroneckerFactors, start: int, tile: int) -> KroneckerFactors:
    """A tile's images, padded with zeros so that one shape is compiled."""

    def cut(array: np.ndarray) -> jax.Array:
        some = array[:, start : start + tile]
        if some.shape[1] < tile:
            ends = [(0, 0), (0, tile - some.shape[1])] + [(0, 0)] * (array.ndim - 2)
            some = np.pad(some, ends)
        return jnp.asarray(some)

    return jax.tree.map(cut, factors)


def contract(
    model: Model,
    images: Images,
    plan: Plan,
    progress: Progress,
    scratch: Scratch | None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `plan.problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first.
        plan: of whole gradients.
        progress: updated with every chunk and every product.
        scratch: where finished passes, and chunks that the anchors met, are kept and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite; no space for the scratch.
    """
    problem = plan.problem
    # a pass between anchors and other images is kept by blocks, too
    others = problem.examples - problem.anchors
    pairs = 8 * problem.rows_an_example**2 * (problem.anchors + 1) * others

    def add(number: int, values: np.ndarray, diagonal: np.ndarray) -> None:
        _HostPass(model, images, plan, number, progress, scratch).add_to(values, diagonal)

    return sum_passes(plan, add, progress, scratch, pairs)


def sum_passes(
    plan: Plan,
    add: Callable[[int, np.ndarray, np.ndarray], None],
    progress: Progress,
    scratch: Scratch | None,
    beside: int = 0,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel and the blocks of `contract`, one pass of the plan added after another.

    Args:
        plan: of whole gradients.
        add: the number of a pass, and the sums that it is added to in place.
        progress: updated with the passes that are not computed again.
        scratch: where the sums of finished passes are kept, and taken up from.
        beside: bytes that a pass keeps there itself, in parts `cross-<number>-…`.

    Raises:
        KernelError: no space for the scratch; what `add` raises.
    """
    problem = plan.problem
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    sums = (np.zeros((anchors * each, total * each)), np.zeros((total - anchors, each, each)))
    if scratch is None:
        for number in range(len(plan.passes)):
            add(number, *sums)
        return sums
    # the sums that follow are written before those that they replace are deleted
    needed = min(len(plan.passes), 2) * sum(array.nbytes for array in sums) + beside
    with scratch.reserved(needed):
        done = load_sums(scratch, len(plan.passes), sums)
        for one in plan.passes[:done]:
            progress.formed(one, total)
            progress.contracted(one, total - anchors / 2)
        for number in range(done, len(plan.passes)):
            add(number, *sums)
            save_sums(scratch, number + 1, sums)
            scratch.delete(f"cross-{number}-")
    return sums


class _HostPass(NamedTuple):
    """One pass of a plan."""

    model: Model
    images: Images
    plan: Plan
    number: int
    progress: Progress
    scratch: Scratch | None

    @property
    def one(self) -> Pass:
        return self.plan.passes[self.number]

    @property
    def projections(self) -> jax.Array:
        rows = self.plan.problem.directions.projections[slice(*self.one.projections)]
        return jnp.asarray(rows, self.images.dtype)

    def add_to(self, values: np.ndarray, diagonal: np.ndarray) -> None:
        """Add the pass to the kernel and to the blocks of images that are no anchors."""
        problem = self.plan.problem
        each, anchors = problem.rows_an_example, problem.anchors
        kept = AnchorRows(anchors, self.one.blocks)
        threads, share = threads_of(self.plan.chunk)
        starts = range(0, anchors, share)
        for start, chunk in map_in_order(lambda s: self._chunk(s, share, anchors), starts, threads):
            kept.put(start, chunk)
            self.progress.formed(self.one, min(share, anchors - start))
        kept.add_gram(values[:, : anchors * each])
        self.progress.contracted(self.one, anchors / 2)
        self._others(kept, values[:, anchors * each :], diagonal)

    def _others(self, kept: AnchorRows, values: np.ndarray, diagonal: np.ndarray) -> None:
        """Every other image is met by the anchors, a block of them at a time."""
        problem = self.plan.problem
        each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
        threads, share = threads_of(self.plan.chunk)

        def add(own: slice, block: np.ndarray, alone: np.ndarray) -> None:
            values[:, own.start * each : own.stop * each] += block
            diagonal[own] += alone
            self.progress.formed(self.one, own.stop - own.start)
            self.progress.contracted(self.one, float(own.stop - own.start))

        def load(own: slice) -> bool:
            if self.scratch is None:
                return False
            count = own.stop - own.start
            block, alone = np.zeros((len(values), count * each)), np.zeros((count, each, each))
            there = self.scratch.load(f"cross-{self.number}-{own.start}", block, alone)
            if there:
                add(own, block, alone)
            return there

        starts, ends = unfinished(total - anchors, share, load)
        made: list[tuple[np.ndarray, np.ndarray]] = []

        def chunk_of(start: int) -> Chunk:
            return self._chunk(anchors + start, share, total)

        for start, chunk in map_in_order(chunk_of, starts, threads):
            count = min(share, total - anchors - start)
            made.append((kept.cross(chunk, count), kept.diagonal(chunk)[:count]))
            if start in ends:
                own, (blocks, alone) = ends[start], zip(*made, strict=True)
                both = np.concatenate(blocks, axis=1), np.concatenate(alone)
                if self.scratch is not None:
                    self.scratch.save(f"cross-{self.number}-{own.start}", *both)
                add(own, *both)
                made = []

    def _chunk(self, start: int, count: int, end: int) -> Chunk:
        """One chunk; the last is padded with repeats so that one shape is compiled."""
        idx = np.minimum(np.arange(start, start + count), end - 1)
        square = self.plan.problem.directions.square
        some = jnp.asarray(self.images[idx])
        chunk = jax.block_until_ready(
            differentiate(
                self.model, self.one.blocks, some, self.projections, square=square, together=False
            )
        )
        projections = np.asarray(self.projections)
        check_gradients(self.model, self.images, idx, np.asarray(chunk.finite), projections)
        return chunk
