"""What a kernel takes: which passes over the images, and how much memory and work, beforehand.

From the units of a network, the number of images and a memory budget to passes, each with the parts
of the Jacobian that fit at a time. Every part is formed once; each layer is contracted in the form
that needs fewer multiplications. A job that does not fit is refused with what would make it fit.

What differentiating one image leaves in memory, foretold from the program that does it.

From a network to the most numbers that are alive at a time on the way forth and back. XLA fuses
elementwise steps into the next convolution, product or reduction and keeps only what those make, so
of a program traced but not compiled just these are counted, from where each is made to its last
use.

The devices that a kernel is computed on, of this process or of several.

From a number of devices to a mesh, from host arrays to arrays spread over it, and back. For several
hosts every process calls `jax.distributed.initialize(coordinator, processes, process)` before
anything else of JAX, then the same functions with the same images, weights and seeds; each gets the
whole result.

Chunks in several threads, handed over in their order.

From work on numbered places to its results one by one. XLA on a CPU leaves cores idle while it
forms gradients image by image, so the images that are differentiated at a time are shared out, and
each core goes through its share by itself.

From a network, images and what is asked of them to a problem that can be planned.

Everything about a request is checked here, before anything is computed.

How far a kernel is, in multiplications done of those that it will take.

From chunks differentiated and products made to one number that grows evenly with time, so that what
remains can be told.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernel.errors import KernelError
from kernel.jacobian import Part, observe
from kernel.model import Directions, Function, Model, classes_of, cores, directions, dtype_of
from kernel.options import Precision, Request
from kernel.param_groups import Unit, units

# What makes an array of its own; everything else is fused into the step that reads it.
_MADE = frozenset(
    {
        "argmax",
        "argmin",
        "concatenate",
        "conv_general_dilated",
        "cumsum",
        "dot_general",
        "gather",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "reduce_sum",
        "reduce_window",
        "reduce_window_max",
        "reduce_window_sum",
        "scan",
        "scatter",
        "scatter-add",
        "select_and_gather_add",
        "select_and_scatter_add",
        "sort",
        "while",
    }
)
# XLA on a CPU lays images out anew for each convolution and each product of matrices.
_LAID_OUT_ANEW = 2


class Activations(NamedTuple):
    """Numbers that one image takes in the network while it is differentiated.

    Attributes:
        forth: however many projections there are.
        back: for each projection.
    """

    forth: int
    back: int

    def of(self, projections: int) -> int:
        """With so many projections at a time."""
        return self.forth + projections * self.back


@lru_cache(maxsize=64)  # once for all queries of a run
def _traced(
    function: Function,
    units: tuple[Unit, ...],
    structure: Any,
    leaves: tuple[Any, ...],
    images: jax.ShapeDtypeStruct,
    projections: jax.ShapeDtypeStruct,
) -> int:
    """The most numbers alive at a time."""
    parts = tuple(Part(unit, "rows", unit.outputs) for unit in units)
    params, frozen = jax.tree.unflatten(structure, leaves)

    def work(params: Any, frozen: Any, images: Any, rows: Any) -> Any:
        return jax.vmap(lambda image: observe(function, parts, params, frozen, image, rows))(images)

    program = jax.make_jaxpr(work)(params, frozen, images, projections)
    return _most_alive(*_steps(program.jaxpr))


class _Step(NamedTuple):
    """One equation of a program without functions in it: arrays by number."""

    made: bool
    reads: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]  # number and size


def activations(model: Model, units: tuple[Unit, ...], image: jax.ShapeDtypeStruct) -> Activations:
    """Trace the network with one projection and with two.

    Args:
        model: the network.
        units: of it.
        image: shape and dtype of one image, without a batch axis.
    """
    shapes = jax.tree.map(jax.typeof, model[1:])
    leaves, structure = jax.tree.flatten(shapes)
    batch = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    # the logits' own dtype, for model and image may be of two
    logits = jax.eval_shape(model.function, *model[1:], batch)
    one, two = (
        _traced(
            model.function,
            units,
            structure,
            tuple(leaves),
            batch,
            jax.ShapeDtypeStruct((projections, logits.shape[1]), logits.dtype),
        )
        for projections in (1, 2)
    )
    back = max(two - one, 1)
    size = int(np.prod(image.shape))
    return Activations(size + _LAID_OUT_ANEW * max(one - back, 0), _LAID_OUT_ANEW * back)


def _steps(program: Any) -> tuple[list[_Step], list[int]]:
    """The program with its inner functions written out, and the numbers of its results."""
    steps: list[_Step] = []
    count = 0

    def written_out(jaxpr: Any, numbers: dict[Any, int]) -> list[int]:
        nonlocal count

        def read(atoms: Any) -> list[int]:
            # arguments, constants and literals are there anyway: -1
            literal = jax.extend.core.Literal
            return [-1 if isinstance(a, literal) else numbers.get(a, -1) for a in atoms]

        for equation in jaxpr.eqns:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)
            reads = read(equation.invars)
            if inner is not None and equation.primitive.name not in _MADE:
                own = dict(zip(inner.invars, reads, strict=True))
                results = written_out(inner, own)
                numbers.update(zip(equation.outvars, results, strict=True))
                continue
            writes = []
            for variable in equation.outvars:
                numbers[variable] = count
                writes.append((count, int(np.prod(getattr(variable.aval, "shape", ())))))
                count += 1
            made = equation.primitive.name in _MADE
            steps.append(_Step(made, tuple(n for n in reads if n >= 0), tuple(writes)))
        return read(jaxpr.outvars)

    return steps, written_out(program, {})


def _most_alive(steps: list[_Step], results: list[int]) -> int:
    """The most numbers at a time in arrays that are made, each until it is read for the last time.

    What is fused stands for the arrays that it is computed from.
    """
    stands_for: dict[int, frozenset[int]] = {-1: frozenset()}
    sizes: dict[int, int] = {}
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for time, step in enumerate(steps):
        read = frozenset().union(*(stands_for[number] for number in step.reads))
        for number, size in step.writes:
            stands_for[number] = frozenset({number}) if step.made else read
            if step.made:
                sizes[number], born[number], last[number] = size, time, time
        last.update(dict.fromkeys(read, time))
    for number in results:
        last.update(dict.fromkeys(stands_for[number], len(steps)))
    change = np.zeros(len(steps) + 2, np.int64)
    for number, size in sizes.items():
        change[born[number]] += size
        change[last[number] + 1] -= size
    return int(change.cumsum().max())


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


def mesh_unless_host(devices: int | None = None) -> Mesh | None:
    """The mesh, or None for one CPU, for which NumPy's products are the faster ones.

    Raises:
        KernelError: more devices than there are.
    """
    found = mesh(devices)
    return None if found.size == 1 and jax.default_backend() == "cpu" else found


def together() -> bool:
    """Whether images are differentiated together: a processor's cache holds one at a time."""
    return jax.default_backend() != "cpu"


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
    return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])


_Result = TypeVar("_Result")


def shared(chunk: int) -> tuple[int, int]:
    """How many threads go through a chunk of images, and how many of them each takes.

    A device that differentiates them together takes them all.
    """
    threads = 1 if together() else min(cores(), chunk)
    return threads, -(-chunk // threads)


@contextmanager
def in_order(
    work: Callable[[int], _Result],
    places: Iterable[int],
    threads: int,
    compiled: bool = False,
) -> Iterator[Iterator[tuple[int, _Result]]]:
    """Each place with the work done on it, in the order of the places.

    The first is worked on alone, so that what it compiles is compiled once. Besides what was handed
    over last, so many results as there are threads exist or are being made, and one more. Leaving
    the context early waits for the work that has begun, and no more is begun.

    Args:
        work: is called from several threads.
        places: what it is called with.
        threads: how many; 1 does everything in the caller's own.
        compiled: there is nothing left to compile, so all begin at once.

    Raises:
        Exception: what the work raised, at its place in the order.
    """
    if threads == 1:
        yield ((place, work(place)) for place in places)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield _handed_over(work, iter(places), threads, pool, compiled)
    finally:
        pool.shutdown(cancel_futures=True)


def _handed_over(
    work: Callable[[int], _Result],
    places: Iterator[int],
    threads: int,
    pool: ThreadPoolExecutor,
    compiled: bool,
) -> Iterator[tuple[int, _Result]]:
    if not compiled:
        for place in places:
            yield place, work(place)
            break
    begun: deque[tuple[int, Future[_Result]]] = deque()
    for place in places:
        begun.append((place, pool.submit(work, place)))
        if len(begun) > threads:  # one is ready by the time the next is asked for
            first, future = begun.popleft()
            yield first, future.result()
    for place, future in begun:
        yield place, future.result()


GIB = 2**30


class Pass(NamedTuple):
    """One sweep over the images.

    Attributes:
        parts: of the Jacobian.
        projections: which of the logits' projections, from the first to below the last.
    """

    parts: tuple[Part, ...]
    projections: tuple[int, int]

    @property
    def width(self) -> int:
        """How many projections."""
        return self.projections[1] - self.projections[0]

    @property
    def forming(self) -> float:
        """Multiplications that make rows of one image's taps."""
        return 0.0 + sum(
            part.unit.forming(part.form, self.width) * part.outputs / part.unit.outputs
            for part in self.parts
        )

    def contracting(self, square: bool) -> float:
        """Multiplications between two images."""
        return 0.0 + sum(
            part.unit.contracting(part.form, self.width, square) * part.outputs / part.unit.outputs
            for part in self.parts
        )


class Problem(NamedTuple):
    """What is to be computed.

    Attributes:
        units: of the network.
        examples: images that are differentiated.
        anchors: images whose rows are kept: all of them, or those that all others meet.
        directions: of the kind.
        precision: of gradients and contraction.
        activations: numbers that one image takes in the network on its way forth and back.
    """

    units: tuple[Unit, ...]
    examples: int
    anchors: int
    directions: Directions
    precision: Precision
    activations: Activations

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(dtype_of(self.precision)).itemsize

    @property
    def rows_an_example(self) -> int:
        """Rows of the kernel for one image."""
        return len(self.directions.projections) if self.directions.square else 1

    @property
    def network(self) -> int:
        """Multiplications of the layers with parameters, for one image."""
        return sum(unit.columns * max(unit.positions, 1) for unit in self.units)

    @property
    def pairs(self) -> float:
        """Pairs of images that are contracted: of two anchors one order is enough."""
        return self.anchors * (self.examples - self.anchors / 2)

    @property
    def result_bytes(self) -> int:
        """Of the kernel itself in float64."""
        return self.anchors * self.examples * self.rows_an_example**2 * 8


class Plan(NamedTuple):
    """How a kernel is computed.

    Attributes:
        passes: over all images.
        chunk: images differentiated at a time.
        peak_bytes: what it takes in memory beyond what is there before, at its highest.
        forward_work: multiplications of all passes through the network, forth and back.
        forming_work: of gradients from taps.
        contracting_work: of products between images.
    """

    passes: tuple[Pass, ...]
    chunk: int
    peak_bytes: int
    forward_work: float
    forming_work: float
    contracting_work: float

    @property
    def work(self) -> float:
        """All multiplications."""
        return self.forward_work + self.forming_work + self.contracting_work


def plan(problem: Problem, memory_gib: float, chunk: int) -> Plan:
    """The passes with which a kernel fits in the memory, in the fewest backward passes.

    Raises:
        KernelError: not even the smallest piece fits.
    """
    budget = int(memory_gib * GIB)
    width, passes = _cheapest(problem, budget, chunk)
    kept = max(kept_bytes(problem, one.parts, one.width, chunk) for one in passes)
    return Plan(
        passes=passes,
        chunk=chunk,
        peak_bytes=problem.result_bytes + kept + chunk_bytes(problem, chunk, width),
        forward_work=problem.network * problem.examples * sum(1 + 2.0 * p.width for p in passes),
        forming_work=problem.examples * sum(one.forming for one in passes),
        contracting_work=problem.pairs
        * sum(p.contracting(problem.directions.square) for p in passes),
    )


def kept_bytes(problem: Problem, parts: tuple[Part, ...], width: int, chunk: int) -> int:
    """What a pass keeps of the anchors, and of the images in chunks that are not yet put there."""
    each = sum(
        part.columns * width if part.form == "rows" else part.unit.kept(part.form, width)
        for part in parts
    )
    return each * _held(problem, chunk) * problem.itemsize


def chunk_bytes(problem: Problem, chunk: int, width: int) -> int:
    """What a chunk of images takes while it is differentiated."""
    threads, _ = shared(chunk)
    # XLA lays the parameters out anew for the way forth and for the way back, in each thread
    parameters = 2 * threads * sum(unit.columns for unit in problem.units)
    return (chunk * problem.activations.of(width) + parameters) * problem.itemsize


def _held(problem: Problem, chunk: int) -> int:
    """Images of which rows or factors are there at a time."""
    return problem.anchors + 2 * chunk


def _cheapest(problem: Problem, budget: int, chunk: int) -> tuple[int, tuple[Pass, ...]]:
    """So many projections at a time that the fewest backward passes are made."""
    total = len(problem.directions.projections)
    widths = [total] if problem.directions.square else _divisors(total)
    options = []
    for width in widths:
        room = budget - problem.result_bytes - chunk_bytes(problem, chunk, width)
        parts = _packed(problem, room, width, chunk)
        if parts is not None:
            backward = len(parts) * (total // width) * (1 + width)
            options.append((backward, -width, parts))
    if not options:
        raise KernelError(_refusal(problem, budget, chunk, widths[0]))
    _, negative, groups = min(options, key=lambda option: option[:2])
    width = -negative
    starts = range(0, total, width)
    return width, tuple(Pass(group, (s, s + width)) for s in starts for group in groups)


def _packed(problem: Problem, room: int, width: int, chunk: int) -> list[tuple[Part, ...]] | None:
    """Consecutive parts in groups that fit, or None if a smallest piece does not.

    Pieces are cut for a round number of columns, if that is enough: their shapes, and what is
    compiled for them, then stay the same while the number of labels grows from cycle to cycle.
    """
    capacity = (
        room // (_held(problem, chunk) * problem.itemsize) // width
    )  # columns of one projection
    if capacity < 1:
        return None
    return _grouped(problem, _round(capacity), width) or _grouped(problem, capacity, width)


def _round(number: int) -> int:
    """The number with its last bits cleared, an eighth less at most."""
    lost = max(0, number.bit_length() - 4)
    return number >> lost << lost


def _grouped(problem: Problem, capacity: int, width: int) -> list[tuple[Part, ...]] | None:
    groups: list[tuple[Part, ...]] = []
    current: list[Part] = []
    used = 0
    for part, size in _parts(problem, capacity, width):
        if size > capacity:
            return None
        if current and used + size > capacity:
            groups.append(tuple(current))
            current, used = [], 0
        current.append(part)
        used += size
    return [*groups, tuple(current)]


def _parts(problem: Problem, capacity: int, width: int) -> Iterator[tuple[Part, int]]:
    """Every unit in its best form, cut where it is too large, and its size in columns."""
    for unit in problem.units:
        form = _best_form(problem, unit, capacity, width)
        if form != "rows":
            yield Part(unit, form, unit.outputs), -(-unit.kept(form, width) // width)
            continue
        each = unit.columns // unit.outputs
        pieces = -(-unit.columns // max(capacity // each * each, each))
        outputs = -(-unit.outputs // pieces)
        for piece in range(-(-unit.outputs // outputs)):
            yield Part(unit, "rows", outputs, piece), each * outputs


def _best_form(problem: Problem, unit: Unit, capacity: int, width: int) -> str:
    """The form with the fewest multiplications of those that fit."""

    def work(form: str) -> float:
        contracting = unit.contracting(form, width, problem.directions.square)
        return problem.examples * unit.forming(form, width) + problem.pairs * contracting

    fitting = [f for f in unit.forms if _smallest(unit, f, width) <= capacity * width]
    return min(fitting or unit.forms, key=work)


def _smallest(unit: Unit, form: str, width: int) -> int:
    """Numbers of one image that cannot be had in pieces: rows can be cut, factors cannot."""
    return unit.columns // unit.outputs * width if form == "rows" else unit.kept(form, width)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _refusal(problem: Problem, budget: int, chunk: int, width: int) -> str:
    smallest = max(
        min(_smallest(unit, form, width) for form in unit.forms) for unit in problem.units
    )
    kept = (smallest + width) * _held(problem, chunk) * problem.itemsize
    least = problem.result_bytes + chunk_bytes(problem, chunk, width) + kept
    share = (budget / least) ** 0.5  # the kernel grows with the square of the images
    needed = enough(float(least))
    return (
        f"the kernel of {problem.examples:,} images needs at least {needed} GiB, of which "
        f"{problem.result_bytes / GIB:.3g} GiB for the kernel itself, and {budget / GIB:.4g} GiB "
        f"are given: give {needed} GiB, or score about {int(share * problem.examples):,} "
        "images in place of all, or sum the change over a reference sample, or use a sketch."
    )


def enough(needed: float) -> str:
    """So many bytes in GiB, in three digits that are not less."""
    gib = needed / GIB
    step = 10.0 ** (math.floor(math.log10(gib)) - 2)
    return f"{math.ceil(gib / step) * step:.3g}"


# Images differentiated at a time, with one projection: on each core what its cache holds, or what
# keeps a GPU busy.
CHUNK, GPU_CHUNK = 8, 512


def cast(model: Model, precision: Precision) -> Model:
    """The same model with its floating-point arrays in the dtype of a precision."""
    dtype = dtype_of(precision)

    def to(leaf):
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return Model(model.function, jax.tree.map(to, model.params), jax.tree.map(to, model.frozen))


def problem_of(
    model: Model,
    image: jax.ShapeDtypeStruct,
    examples: int,
    anchors: int,
    request: Request,
    rng: np.random.Generator | None = None,
) -> Problem:
    """What is to be computed, in sizes.

    Args:
        model: the network, in the precision asked for.
        image: shape and dtype of one image, without a batch axis.
        examples: how many images there are.
        anchors: how many of them all others meet.
        request: how.
        rng: where random projections come from.

    Raises:
        KernelError: unknown kind, no images, a chunk of none, nothing to train, no generator where
            one is needed.
    """
    if examples == 0 or anchors == 0:
        raise KernelError("a kernel needs at least one image, and there are none.")
    if request.chunk is not None and request.chunk < 1:
        raise KernelError(f"chunk must be at least 1, not {request.chunk}.")
    looked: Directions = directions(request.kind, classes_of(model, image), request.probes, rng)
    found = tuple(units(model, image))
    return Problem(
        units=found,
        examples=examples,
        anchors=anchors,
        directions=looked,
        precision=request.precision,
        activations=activations(model, found, image),
    )


def chunk_of(request: Request) -> int:
    """Images differentiated at a time."""
    if request.chunk is not None:
        return request.chunk
    return CHUNK * cores() if jax.default_backend() == "cpu" else GPU_CHUNK


Report = Callable[[float, float], None]
# A multiplication of a layer takes as long as so many of a large matrix product.
_SLOWER = 2.0


class Progress:
    """Adds up the work of a plan and passes it on."""

    def __init__(self, problem: Problem, plan: Plan, report: Report | None):
        """Nothing is done yet."""
        self._problem, self._report = problem, report
        self._total = _SLOWER * (plan.forward_work + plan.forming_work) + plan.contracting_work
        self._done = 0.0

    def formed(self, one: Pass, images: int) -> None:
        """So many images were differentiated in a pass."""
        self._add(_SLOWER * images * (self._problem.network * (1 + 2 * one.width) + one.forming))

    def contracted(self, one: Pass, images: float) -> None:
        """The anchors met so many images in a pass."""
        square = self._problem.directions.square
        self._add(images * self._problem.anchors * one.contracting(square))

    def _add(self, work: float) -> None:
        self._done += work
        if self._report is not None:
            self._report(min(self._done, self._total), self._total)
