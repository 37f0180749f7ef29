"""All passes of a plan over the images, on one CPU.

From a plan to the kernel between the anchors and all images. The anchors come first: their rows are
kept and contracted with each other; every other image is met by them and let go.

Where a kernel keeps what is finished, so that an interrupted one goes on where it stood.

From a folder and a key, which says of what network, images and settings the work is, to arrays that
outlive the process and counts of what is done in them. Without a folder they are plain memory.

Sketched gradients of a set of images: one row of features an image, whose products are a kernel.

From a network and images to Φ with Θ ≈ ΦΦᵀ, in one pass and in memory of Φ's own size: what a pool
too large for its kernel is worked with (docs/mathematics.md, 2). The pass goes through the network,
so its logits are had without going there again.

How many images are differentiated at a time: the plan of a kernel, or the chunk of a sketch.

From a problem and what is asked for to the chunk that does it in the least time and fits. A core's
cache holds few images; but XLA lays the parameters out anew for every chunk, forth and back, which
costs large networks on small images more than the cache gives them.

Rows that are used up, for later chunks to write over.

From the parts of a pass to arrays of one shape, taken and given back by several threads. New memory
costs a CPU more than what is written to it: the system hands it over page by page, filled with
zeros, and XLA fills it with zeros again.

What one pass keeps of the anchors on a CPU, and its products with itself and with others.

From chunks of rows and factors to blocks of the kernel. Rows are multiplied by BLAS, which does
half the work where both sides are the same; factors in tiles whose products stay in the cache.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from kernel import model
from kernel.errors import KernelError
from kernel.jacobian import (
    Chunk,
    Factor,
    Part,
    alone,
    compile_ahead,
    compile_sketched,
    compute,
    pair,
    random_signs,
    sketched,
)
from kernel.model import Model, cores, given
from kernel.options import Request
from kernel.plan import (
    CHUNK,
    GIB,
    Pass,
    Plan,
    Problem,
    Progress,
    Report,
    chunk_bytes,
    chunk_of,
    in_order,
    mesh_unless_host,
    plan,
    shared,
)
from kernel.taps import not_finite

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
        """How much of an array is finished."""
        return self._done.get(name, 0)

    def mark(self, name: str, count: int) -> None:
        """So much of an array is finished; what was written to it before is kept with it."""
        if self._folder is not None:
            self._done[name] = count
            self._write()

    def replaced(self, name: str, old: Iterable[str]) -> None:
        """An array is finished that takes the place of others: theirs are deleted."""
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
    """What one pass finds of a set of images.

    Attributes:
        features: (examples, projections, buckets), with the scale of the kernel in them.
        logits: (examples, classes), in the precision of the problem.
    """

    features: Float[np.ndarray, "examples projections buckets"]
    logits: Float[np.ndarray, "examples classes"]


def room(scratch: Scratch, examples: int, problem: Problem, buckets: int) -> tuple[Sketches, int]:
    """The arrays as the scratch has them, and of how many images they are finished."""
    projections, classes = problem.directions.projections.shape
    shapes = {"features": (examples, projections, buckets), "logits": (examples, classes)}
    arrays = {name: scratch.array(name, shapes[name], problem.precision) for name in shapes}
    return Sketches(**arrays), min(scratch.done(name) for name in shapes)


def finished(scratch: Scratch, images: int) -> None:
    """Of so many images both arrays are."""
    for name in Sketches._fields:
        scratch.mark(name, images)


def sketch_bytes(problem: Problem, buckets: int, chunk: int) -> int:
    """What the features of all images take, with a chunk of images that is being differentiated."""
    width = len(problem.directions.projections)
    features = problem.examples * width * buckets * problem.itemsize
    columns = sum(unit.columns for unit in problem.units)
    threads, _ = shared(chunk)
    return features + chunk_bytes(problem, chunk, 1) + threads * columns * problem.itemsize


def sketch_work(problem: Problem) -> float:
    """Multiplications of the features of all images."""
    width = len(problem.directions.projections)
    return 4.0 * problem.network * width * problem.examples


def sketches(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    buckets: int,
    chunk: int,
    rng: np.random.Generator | None,
    report: Report | None = None,
    scratch: Scratch | None = None,
) -> Sketches:
    """Every image's gradient, folded to so many dimensions for each projection of the logits.

    Args:
        model: in the precision of the problem.
        images: all of them.
        problem: what is computed.
        buckets: k.
        chunk: images differentiated at a time.
        rng: where the signs come from.
        report: told how many images are done, and of how many.
        scratch: where finished chunks are kept, and taken up from.

    Raises:
        KernelError: a sketch of no or too many dimensions; no generator; gradients that are not
            finite.
    """
    columns = sum(unit.columns for unit in problem.units)
    signs = jnp.asarray(random_signs(columns, buckets, given(rng, "a sketch")))
    projections = problem.directions.projections
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    scratch = scratch or Scratch()
    found, done = room(scratch, len(images), problem, buckets)
    threads, share = shared(chunk)
    how = (model.function, problem.units, buckets, False, *model[1:])
    if done < len(images):  # compiled before several threads begin with it
        like = jax.ShapeDtypeStruct((share, *images.shape[1:]), images.dtype)
        first = jnp.asarray(projections[:1], problem.precision)
        compile_sketched(*how, like, first, signs)

    def folded(start: int) -> tuple[list[np.ndarray], np.ndarray]:
        places = np.minimum(np.arange(start, start + share), len(images) - 1)
        some = jnp.asarray(images[places])
        all_rows, logits = [], np.empty(0)
        # one projection at a time: what one image leaves in the network is what takes memory
        for projection in jnp.asarray(projections, problem.precision):
            one = sketched(*how, some, projection[None], signs)
            if not bool(one.finite.all()):
                bad = sorted(set(places[~np.asarray(one.finite)].tolist()))
                raise not_finite(model, images, bad, projections)
            all_rows.append(np.asarray(one.rows)[:, 0])
            logits = np.asarray(one.logits)
        return all_rows, logits

    places = range(done, len(images), share)
    with in_order(folded, places, threads, compiled=True) as chunks:
        for start, (rows, logits) in chunks:
            count = min(share, len(images) - start)
            found.features[start : start + count] = np.stack(rows, axis=1)[:count] * scale
            found.logits[start : start + count] = logits[:count]
            finished(scratch, start + share)
            if report is not None:
                report(float(start + count), float(len(images)))
    return found


# Images on a core for a network that has more parameters than an image has numbers in it, the best
# first (`benchmarks/chunks.py`): rows of whole gradients are the better kept the fewer they are.
_EXACT, _SKETCHED = (2 * CHUNK,), (4 * CHUNK, 2 * CHUNK)
_CHUNKS = 4  # of them there must be at least, for the last one is filled up


def planned(problem: Problem, request: Request) -> Plan:
    """The plan with the best chunk of those that do with as few passes as the smallest.

    Raises:
        KernelError: not even the smallest piece fits with the smallest chunk.
    """
    projections = len(problem.directions.projections)
    smallest, *others = _chunks(problem, request, projections, _EXACT)
    found = plan(problem, request.memory_gib, smallest)
    for chunk in others:
        try:
            made = plan(problem, request.memory_gib, chunk)
        except KernelError:
            continue
        if len(made.passes) <= len(found.passes):
            return made
    return found


def sketch_chunk(problem: Problem, request: Request, buckets: int, beside: int = 0) -> int:
    """The best chunk with which a sketch fits; the smallest if none does.

    Args:
        problem: what is computed.
        request: how.
        buckets: k.
        beside: bytes of what is made of the sketch while all of it is there.
    """
    smallest, *others = _chunks(problem, request, 1, _SKETCHED)
    room = request.memory_gib * GIB - beside
    fitting = (chunk for chunk in others if sketch_bytes(problem, buckets, chunk) <= room)
    return next(fitting, smallest)


def passing_chunk(problem: Problem, request: Request) -> int:
    """The best chunk for gradients that are let go, of one shape however few images there are."""
    _, *others = _chunks(problem, request, 1, _EXACT)
    return next(iter(others), chunk_of(request))


def _chunks(
    problem: Problem, request: Request, projections: int, sizes: tuple[int, ...]
) -> list[int]:
    """The smallest chunk, and then those that may take less time, the best first."""
    usual = min(chunk_of(request), problem.examples)
    host = mesh_unless_host(request.devices) is None
    parameters = sum(unit.columns for unit in problem.units)
    if request.chunk is not None or not host or parameters < problem.activations.of(projections):
        return [usual]
    larger = (size * cores() for size in sizes)
    # by thresholds and not by what a chunk leaves over: one shape is compiled for most cycles
    return [usual, *(chunk for chunk in larger if chunk * _CHUNKS <= problem.examples)]


class Spare:
    """Arrays for the rows of a chunk: as many as were ever held at a time.

    Attributes:
        like: shape and dtype of each.
    """

    def __init__(
        self, parts: tuple[Part, ...], images: int, projections: int, square: bool, dtype: np.dtype
    ):
        """Nothing is allocated yet.

        Args:
            parts: of the pass.
            images: of a chunk.
            projections: of the pass.
            square: a row for each projection; else one for all.
            dtype: of the rows.
        """
        columns = sum(part.columns for part in parts)
        rows = (projections, columns) if square else (1, projections * columns)
        self.like = jax.ShapeDtypeStruct((images, *rows), dtype)
        self._spare: SimpleQueue[jax.Array] = SimpleQueue()

    def take(self) -> jax.Array:
        """An array whose values mean nothing."""
        try:
            return self._spare.get_nowait()
        except Empty:
            return jnp.zeros(self.like.shape, self.like.dtype)

    def give(self, rows: jax.Array) -> None:
        """Back, by a caller who looks at it no more."""
        self._spare.put(rows)


_TILE_BYTES = 2**23


class Store:
    """Rows and factors of the anchors, filled chunk by chunk.

    Attributes:
        anchors: how many images it holds in the end.
        parts: of the pass.
        arrays: names of what it has in the scratch.
    """

    def __init__(
        self, anchors: int, parts: tuple[Part, ...], scratch: Scratch | None = None, name: str = ""
    ):
        """Nothing is allocated before the first chunk tells shapes and dtypes.

        Args:
            anchors: how many images it holds in the end.
            parts: of the pass.
            scratch: where arrays come from; plain memory if None.
            name: of this pass in it.
        """
        self.anchors = anchors
        self.parts = parts
        self._scratch, self._name = scratch or Scratch(), name
        self._factored = tuple(part for part in parts if part.form != "rows")
        self._rows: np.ndarray | None = None
        self.arrays: list[str] = []
        self._factors: list[Factor] = []
        self._tiles: list[int] = []

    def put(self, start: int, chunk: Chunk) -> None:
        """Keep a chunk whose first image is the anchor `start`; what lies past the end is left."""
        if self._rows is None:
            self._allocate(chunk)
        assert self._rows is not None
        count = min(len(chunk.rows), self.anchors - start)
        self._rows[start : start + count] = np.asarray(chunk.rows)[:count]
        for own, new in zip(self._factors, chunk.factors, strict=True):
            axis = _images_axis(new)
            place = (slice(None),) * axis + (slice(start, start + count),)
            own.inputs[place] = np.asarray(new.inputs)[(slice(None),) * axis + (slice(count),)]
            own.cotangents[:, start : start + count] = np.asarray(new.cotangents)[:, :count]

    def add_gram(self, values: Float[np.ndarray, "rows rows"]) -> None:
        """Add this pass's part of the kernel of the anchors with themselves to `values`."""
        rows = self._flat()
        if rows.shape[1]:
            model.add_gram(values, rows)
        for part, factor, tile in zip(self._factored, self._factors, self._tiles, strict=True):
            starts = range(0, self.anchors, tile)
            for i in starts:
                for j in range(i, self.anchors, tile):
                    block = self._pair(part, _slice(factor, i, tile), _slice(factor, j, tile))
                    _add(values, block, i, j)
                    if i != j:
                        _add(values, block.transpose(2, 3, 0, 1), j, i)

    def add_cross(
        self, values: Float[np.ndarray, "rows columns"], chunk: Chunk, count: int
    ) -> None:
        """Add the part of the kernel between the anchors and the first images of a chunk."""
        rows, others = self._flat(), np.asarray(chunk.rows)[:count]
        if rows.shape[1]:
            model.add_products(values, rows, others.reshape(-1, rows.shape[1]))
        own = zip(self._factored, self._factors, chunk.factors, self._tiles, strict=True)
        for part, factor, other, tile in own:
            for i in range(0, self.anchors, tile):
                _add(values, self._pair(part, _slice(factor, i, tile), other), i, 0)

    def diagonal(self, chunk: Chunk) -> Float[np.ndarray, "images rows rows"]:
        """The part of the kernel between each image of a chunk and itself, in float64."""
        rows = np.asarray(chunk.rows, np.float64)
        total = np.einsum("irp,isp->irs", rows, rows)
        for part, factor in zip(self._factored, chunk.factors, strict=True):
            assert part.unit.rule is not None
            total += np.asarray(alone(part.unit.rule, part.form, factor))
        return total

    def _allocate(self, chunk: Chunk) -> None:
        _, count, columns = chunk.rows.shape
        self._rows = self._array("rows", (self.anchors, count, columns), chunk.rows.dtype)
        for number, factor in enumerate(chunk.factors):
            tile = _tile(factor, self.anchors)
            length = -(-self.anchors // tile) * tile
            self._factors.append(
                Factor(
                    self._like(f"inputs-{number}", factor.inputs, _images_axis(factor), length),
                    self._like(f"cotangents-{number}", factor.cotangents, 1, length),
                )
            )
            self._tiles.append(tile)

    def _like(self, name: str, array: jax.Array | np.ndarray, axis: int, length: int) -> np.ndarray:
        shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
        return self._array(name, shape, array.dtype)

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        full = f"{self._name}-{name}"
        self.arrays.append(full)
        return self._scratch.array(full, shape, dtype)

    def _flat(self) -> np.ndarray:
        assert self._rows is not None
        anchors, count, columns = self._rows.shape
        return self._rows.reshape(anchors * count, columns)

    def _pair(self, part: Part, one: Factor, other: Factor) -> np.ndarray:
        assert part.unit.rule is not None
        return np.asarray(pair(part.unit.rule, part.form, one, other))


def _add(values: np.ndarray, block: np.ndarray, i: int, j: int) -> None:
    """Add a tile whose images begin at i and j; what it has past the ends is padding."""
    each = block.shape[1]
    flat = block.reshape(len(block) * each, -1)
    target = values[i * each : i * each + len(flat), j * each : j * each + flat.shape[1]]
    target += flat[: target.shape[0], : target.shape[1]]


def _slice(factor: Factor, start: int, tile: int) -> Factor:
    place = (slice(None),) * _images_axis(factor) + (slice(start, start + tile),)
    return Factor(
        jnp.asarray(factor.inputs[place]), jnp.asarray(factor.cotangents[:, start : start + tile])
    )


def _images_axis(factor: Factor) -> int:
    """Features come after images, but an embedding's entries have none."""
    return factor.inputs.ndim - (1 if jnp.issubdtype(factor.inputs.dtype, jnp.integer) else 2)


def _tile(factor: Factor, anchors: int) -> int:
    """Images on a side of a tile whose largest product takes a few MiB."""
    positions = int(np.prod(factor.inputs.shape[: _images_axis(factor)]))
    each = (
        positions * positions * factor.cotangents.shape[2] ** 2 * factor.cotangents.dtype.itemsize
    )
    # a power of two for few images, so that one more does not compile anew
    few = 1 << (anchors - 1).bit_length()
    return max(1, min(few, 512, int((_TILE_BYTES / each) ** 0.5)))


def sweep(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
    scratch: Scratch | None = None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first.
        problem: what is computed.
        plan: how.
        progress: told of every chunk and every product.
        scratch: where finished chunks are kept, and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite.
    """
    scratch = scratch or Scratch()
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    shapes = ((anchors * each, total * each), (total - anchors, each, each))
    values, diagonal = (np.zeros(shape) for shape in shapes)
    for number, one in enumerate(plan.passes):
        names = [f"{number}-values", f"{number}-diagonal"]
        if scratch.done(names[1]):
            # what all passes so far add up to; taken up once, after the last that is finished
            if not scratch.done(f"{number + 1}-diagonal"):
                values[:], diagonal[:] = (
                    scratch.array(name, shape, values.dtype)
                    for name, shape in zip(names, shapes, strict=True)
                )
            progress.formed(one, total)
            progress.contracted(one, total - anchors / 2)
            continue
        stale = _pass(model, images, problem, plan, number, progress, scratch, values, diagonal)
        if scratch.keeps:
            for name, array in zip(names, (values, diagonal), strict=True):
                scratch.array(name, array.shape, array.dtype)[:] = array
            before = [f"{number - 1}-values", f"{number - 1}-diagonal"] if number else []
            scratch.replaced(names[1], [*stale, *before])
    return values, diagonal


def _pass(
    model: Model,
    images: np.ndarray,
    problem: Problem,
    plan: Plan,
    number: int,
    progress: Progress,
    scratch: Scratch,
    values: np.ndarray,
    diagonal: np.ndarray,
) -> list[str]:
    """Add one pass to the kernel; the names of what it left in the scratch."""
    one, each, anchors, total = (
        plan.passes[number],
        problem.rows_an_example,
        problem.anchors,
        problem.examples,
    )
    threads, share = shared(plan.chunk)
    spare = Spare(one.parts, share, one.width, problem.directions.square, images.dtype)
    compile_ahead(
        model,
        one.parts,
        jax.ShapeDtypeStruct((share, *images.shape[1:]), images.dtype),
        _projections(problem, one, images.dtype),
        square=problem.directions.square,
        into=spare.like,
    )
    store = Store(anchors, one.parts, scratch, str(number))
    done = scratch.done(f"{number}-anchors")

    def anchored(start: int) -> Chunk:
        return _chunk(model, images, start, share, anchors, problem, one, spare)

    # the first chunk is always made: it tells the shapes of what was left
    rest = range(max(done, share), anchors, share)
    with in_order(anchored, [0, *rest], threads, compiled=True) as chunks:
        for start, chunk in chunks:
            store.put(start, chunk)
            spare.give(chunk.rows)
            finished = max(done, start + share)
            scratch.mark(f"{number}-anchors", finished)
            progress.formed(one, min(finished if start == 0 else share, anchors - start))
    store.add_gram(values[:, : anchors * each])
    progress.contracted(one, anchors / 2)
    # what each pass adds to a cross kernel is written before it is added, so that it is added once
    name = f"{number}-cross"
    done = scratch.done(name)
    if scratch.keeps and total > anchors:
        added = scratch.array(name, (anchors * each, (total - anchors) * each), values.dtype)
        alone = scratch.array(f"{name}-diagonal", diagonal.shape, diagonal.dtype)
    else:
        added, alone = values[:, anchors * each :], diagonal

    def met(start: int) -> Chunk:
        return _chunk(model, images, start, share, total, problem, one, spare)

    places = range(anchors + done, total, share)
    if done:
        progress.formed(one, done)
        progress.contracted(one, float(done))
    with in_order(met, places, threads, compiled=True) as chunks:
        for start, chunk in chunks:
            count = min(share, total - start)
            place = slice(start - anchors, start - anchors + count)
            columns = slice(place.start * each, place.stop * each)
            if scratch.keeps:
                added[:, columns], alone[place] = 0, 0
            store.add_cross(added[:, columns], chunk, count)
            alone[place] += store.diagonal(chunk)[:count]
            spare.give(chunk.rows)
            scratch.mark(name, start - anchors + count)
            progress.formed(one, count)
            progress.contracted(one, float(count))
    if scratch.keeps and total > anchors:
        values[:, anchors * each :] += added
        diagonal += alone
        store.arrays.extend([name, f"{name}-diagonal"])
    return store.arrays


def _chunk(
    model: Model,
    images: np.ndarray,
    start: int,
    count: int,
    end: int,
    problem: Problem,
    one: Pass,
    spare: Spare,
) -> Chunk:
    """One chunk; the last is padded with repeats so that one shape is compiled."""
    places = np.minimum(np.arange(start, start + count), end - 1)
    projections = _projections(problem, one, images.dtype)
    chunk = jax.block_until_ready(
        compute(
            model,
            one.parts,
            jnp.asarray(images[places]),
            projections,
            square=problem.directions.square,
            together=False,
            into=spare.take(),
        )
    )
    finite = np.asarray(chunk.finite)
    if not finite.all():
        bad = sorted(set(places[~finite].tolist()))
        raise not_finite(model, images, bad, np.asarray(projections))
    return chunk


def _projections(problem: Problem, one: Pass, dtype: np.dtype) -> jax.Array:
    return jnp.asarray(problem.directions.projections[slice(*one.projections)], dtype)
