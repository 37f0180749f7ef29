"""Contraction of a kernel's passes on CPU cores: rows by BLAS, factors in tiles.

The anchors come first: their rows and factors are kept and contracted with each other; every other
image is met by them and let go. Chunks of images are differentiated on several threads. With a
`Scratch` an interrupted kernel goes on where it stood.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

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
from kernel.model import Model, require_rng
from kernel.param_groups import Block
from kernel.plan import Pass, Plan, Progress, Report, threads_of
from kernel.taps import not_finite

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


_STATE = "state.json"


class Scratch:
    """Arrays by name, each with a count of what is finished in it."""

    def __init__(self, folder: Path | None = None, key: str = ""):
        """Take up what lies in the folder if it was written under the same key, else empty it.

        Args:
            folder: made if it is not there; its contents belong to this object alone. None keeps
                nothing.
            key: of the work.
        """
        self._folder = folder
        self._key = key
        self._done: dict[str, int] = {}
        if folder is None:
            return
        if (folder / _STATE).is_file():
            state = json.loads((folder / _STATE).read_text("utf-8"))
            if state["key"] == key:
                self._done = state["done"]
                return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._write()

    @property
    def keeps(self) -> bool:
        """Whether anything outlives the process."""
        return self._folder is not None

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """The array of a name as it was left, or a new one whose entries are zeros."""
        if self._folder is None:
            return np.zeros(shape, dtype)
        path = self._folder / f"{name}.npy"
        fresh = not path.exists()
        if fresh:
            self._done.pop(name, None)
        mode = "w+" if fresh else "r+"
        return np.lib.format.open_memmap(path, mode=mode, dtype=np.dtype(dtype), shape=shape)

    def done(self, name: str) -> int:
        """The finished part of an array."""
        return self._done.get(name, 0)

    def mark(self, name: str, count: int) -> None:
        """Record the finished part of an array; what was written to it before is kept with it."""
        if self._folder is not None:
            self._done[name] = count
            self._write()

    def replaced(self, name: str, old: Iterable[str]) -> None:
        """Mark an array that replaces others as finished, and delete those."""
        if self._folder is None:
            return
        self.mark(name, 1)
        for stale in old:
            (self._folder / f"{stale}.npy").unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._folder is not None
        beside = self._folder / f"{_STATE}.new"
        beside.write_text(json.dumps({"key": self._key, "done": self._done}), "utf-8")
        beside.replace(self._folder / _STATE)


def key_of(arrays: Iterable[Any], settings: Any) -> str:
    """A key that changes with any entry of the arrays and with the settings' words."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        for leaf in jax.tree.leaves(array):
            own = np.ascontiguousarray(leaf)
            digest.update(f"{own.shape}{own.dtype}".encode())
            digest.update(own.data)
    return digest.hexdigest()


class Sketches(NamedTuple):
    """Sketched gradients of a set of images.

    Attributes:
        features: (examples, projections, buckets), with the scale of the kernel in them.
        logits: (examples, classes), in the precision of the problem; the pass has them anyway.
    """

    features: Float[np.ndarray, "examples projections buckets"]
    logits: Float[np.ndarray, "examples classes"]

    @classmethod
    def kept(cls, scratch: Scratch, plan: Plan) -> tuple["Sketches", int]:
        """The arrays as the scratch has them, and of how many images they are finished."""
        problem = plan.problem
        projections, classes = problem.directions.projections.shape
        shapes = {
            "features": (problem.examples, projections, plan.request.sketch),
            "logits": (problem.examples, classes),
        }
        arrays = {name: scratch.array(name, shapes[name], problem.precision) for name in shapes}
        return cls(**arrays), min(scratch.done(name) for name in shapes)

    def mark(self, scratch: Scratch, images: int) -> None:
        """Record the images that are finished in both arrays."""
        for name in self._fields:
            scratch.mark(name, images)


def sketches(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    plan: Plan,
    rng: np.random.Generator | None,
    report: Report | None,
    scratch: Scratch,
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
            finite.
    """
    problem, buckets = plan.problem, plan.request.sketch
    assert buckets is not None
    signs = jnp.asarray(random_signs(problem.columns, buckets, require_rng(rng, "a sketch")))
    projections = problem.directions.projections
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    found, done = Sketches.kept(scratch, plan)
    threads, share = threads_of(plan.chunk)
    how = (model.function, problem.groups, buckets, False, *model[1:])

    def folded(start: int) -> tuple[list[np.ndarray], np.ndarray]:
        idx = np.minimum(np.arange(start, start + share), len(images) - 1)
        some = jnp.asarray(images[idx])
        all_rows, logits = [], np.empty(0)
        # one projection at a time: what one image leaves in the network is what takes memory
        for projection in jnp.asarray(projections, problem.precision):
            one = sketch_gradients(*how, some, projection[None], signs)
            if not bool(one.finite.all()):
                bad = sorted(set(idx[~np.asarray(one.finite)].tolist()))
                raise not_finite(model, images, bad, projections)
            all_rows.append(np.asarray(one.rows)[:, 0])
            logits = np.asarray(one.logits)
        return all_rows, logits

    for start, (rows, logits) in map_in_order(folded, range(done, len(images), share), threads):
        count = min(share, len(images) - start)
        found.features[start : start + count] = np.stack(rows, axis=1)[:count] * scale
        found.logits[start : start + count] = logits[:count]
        found.mark(scratch, start + share)
        if report is not None:
            report(float(start + count), float(len(images)))
    return found


# The largest product of two layers' factors that is made at a time: what a core's cache holds.
_TILE_BYTES = 2**23


class AnchorRows:
    """Rows and factors of the anchors in one pass, filled chunk by chunk.

    Attributes:
        anchors: how many images it holds in the end.
        arrays: their names in the scratch.
    """

    def __init__(self, anchors: int, blocks: tuple[Block, ...], scratch: Scratch, name: str = ""):
        """Nothing is allocated before the first chunk tells shapes and dtypes.

        Args:
            anchors: how many images it holds in the end.
            blocks: of the pass.
            scratch: where arrays come from.
            name: of this pass in it.
        """
        self.anchors = anchors
        # a power of two for few images, so that one more does not compile anew
        self._tile = min(1 << (anchors - 1).bit_length(), 512)
        self.arrays: list[str] = []
        self._scratch, self._name = scratch, name
        factored = [block.group.rule for block in blocks if block.form == "factors"]
        self._biases = [rule is not None and rule.bias is not None for rule in factored]
        self._rows: np.ndarray | None = None
        self._factors: list[KroneckerFactors] = []

    def put(self, start: int, chunk: Chunk) -> None:
        """Keep a chunk whose first image is the anchor `start`; what lies past the end is left."""
        if self._rows is None:
            self._rows = self._array("rows", chunk.rows, 0)
            self._factors = [
                KroneckerFactors(
                    self._array(f"inputs-{number}", factors.inputs, 1),
                    self._array(f"cotangents-{number}", factors.cotangents, 1),
                )
                for number, factors in enumerate(chunk.factors)
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

    def add_cross(
        self, values: Float[np.ndarray, "rows columns"], chunk: Chunk, count: int
    ) -> None:
        """Add the part of the kernel between the anchors and the first images of a chunk."""
        rows, others = self._flat(), np.asarray(chunk.rows)[:count]
        if rows.shape[1]:
            linalg.add_products(values, rows, others.reshape(-1, rows.shape[1]))
        for bias, factors, other in zip(self._biases, self._factors, chunk.factors, strict=True):
            tile = tile_images(factors, self._tile, _TILE_BYTES)
            for i in range(0, self.anchors, tile):
                block = contract_factors(bias, _cut(factors, i, tile), other)
                _add(values, np.asarray(block), i, 0)

    def diagonal(self, chunk: Chunk) -> Float[np.ndarray, "images rows rows"]:
        """The part of the kernel between each image of a chunk and itself, in float64."""
        rows = np.asarray(chunk.rows, np.float64)
        total = np.einsum("irp,isp->irs", rows, rows)
        for bias, factors in zip(self._biases, chunk.factors, strict=True):
            total += np.asarray(contract_own_factors(bias, factors))
        return total

    def _array(self, name: str, like: jax.Array | np.ndarray, axis: int) -> np.ndarray:
        """An array as one of a chunk, with all anchors along an axis."""
        full = f"{self._name}-{name}"
        self.arrays.append(full)
        shape = (*like.shape[:axis], self.anchors, *like.shape[axis + 1 :])
        return self._scratch.array(full, shape, like.dtype)

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
    images: Float[np.ndarray, "examples ..."],
    plan: Plan,
    progress: Progress,
    scratch: Scratch,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `plan.problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first.
        plan: of whole gradients.
        progress: updated with every chunk and every product.
        scratch: where finished chunks are kept, and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite.
    """
    problem = plan.problem
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    shapes = ((anchors * each, total * each), (total - anchors, each, each))
    sums = tuple(np.zeros(shape) for shape in shapes)
    for number, one in enumerate(plan.passes):
        names = [f"{number}-values", f"{number}-diagonal"]
        if scratch.done(names[1]):
            # what all passes so far add up to; taken up once, after the last that is finished
            if not scratch.done(f"{number + 1}-diagonal"):
                for name, array in zip(names, sums, strict=True):
                    array[:] = scratch.array(name, array.shape, array.dtype)
            progress.formed(one, total)
            progress.contracted(one, total - anchors / 2)
            continue
        stale = _HostPass(model, images, plan, number, progress, scratch).add_to(*sums)
        if scratch.keeps:
            for name, array in zip(names, sums, strict=True):
                scratch.array(name, array.shape, array.dtype)[:] = array
            before = [f"{number - 1}-values", f"{number - 1}-diagonal"] if number else []
            scratch.replaced(names[1], [*stale, *before])
    return sums[0], sums[1]


class _HostPass(NamedTuple):
    """One pass of a plan."""

    model: Model
    images: np.ndarray
    plan: Plan
    number: int
    progress: Progress
    scratch: Scratch

    @property
    def one(self) -> Pass:
        return self.plan.passes[self.number]

    @property
    def projections(self) -> jax.Array:
        rows = self.plan.problem.directions.projections[slice(*self.one.projections)]
        return jnp.asarray(rows, self.images.dtype)

    def add_to(self, values: np.ndarray, diagonal: np.ndarray) -> list[str]:
        """Add the pass to the kernel; returns the names of the arrays it left in the scratch."""
        problem = self.plan.problem
        each, anchors = problem.rows_an_example, problem.anchors
        kept = self._anchors()
        kept.add_gram(values[:, : anchors * each])
        self.progress.contracted(self.one, anchors / 2)
        if problem.examples == anchors:
            return kept.arrays
        added, alone = values[:, anchors * each :], diagonal
        if not self.scratch.keeps:
            self._others(kept, added, alone)
            return kept.arrays
        # what a pass adds is written before it is added, so that it is added once
        name = f"{self.number}-cross"
        own = self.scratch.array(name, added.shape, added.dtype)
        own_alone = self.scratch.array(f"{name}-diagonal", alone.shape, alone.dtype)
        self._others(kept, own, own_alone)
        added += own
        alone += own_alone
        return [*kept.arrays, name, f"{name}-diagonal"]

    def _anchors(self) -> AnchorRows:
        """Rows and factors of the anchors."""
        anchors, name = self.plan.problem.anchors, f"{self.number}-anchors"
        threads, share = threads_of(self.plan.chunk)
        kept = AnchorRows(anchors, self.one.blocks, self.scratch, str(self.number))
        done = self.scratch.done(name)
        # the first chunk is always made: it tells the shapes of what was left
        starts = [0, *range(max(done, share), anchors, share)]
        for start, chunk in map_in_order(lambda s: self._chunk(s, share, anchors), starts, threads):
            kept.put(start, chunk)
            finished = max(done, start + share)
            self.scratch.mark(name, finished)
            self.progress.formed(self.one, min(finished if start == 0 else share, anchors - start))
        return kept

    def _others(self, kept: AnchorRows, added: np.ndarray, alone: np.ndarray) -> None:
        """Every other image is met by the anchors."""
        problem, name = self.plan.problem, f"{self.number}-cross"
        each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
        threads, share = threads_of(self.plan.chunk)
        done = self.scratch.done(name)
        if done:
            self.progress.formed(self.one, done)
            self.progress.contracted(self.one, float(done))
        starts = range(anchors + done, total, share)
        for start, chunk in map_in_order(lambda s: self._chunk(s, share, total), starts, threads):
            count = min(share, total - start)
            own = slice(start - anchors, start - anchors + count)
            columns = slice(own.start * each, own.stop * each)
            if self.scratch.keeps:  # an interrupted chunk may have left something
                added[:, columns], alone[own] = 0, 0
            kept.add_cross(added[:, columns], chunk, count)
            alone[own] += kept.diagonal(chunk)[:count]
            self.scratch.mark(name, start - anchors + count)
            self.progress.formed(self.one, count)
            self.progress.contracted(self.one, float(count))

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
        finite = np.asarray(chunk.finite)
        if not finite.all():
            bad = sorted(set(idx[~finite].tolist()))
            raise not_finite(self.model, self.images, bad, np.asarray(self.projections))
        return chunk
