"""The plan of a kernel: its form, the passes over the images, and what they take in memory.

Parameters are taken in as many groups as the memory asks for, one pass over the images each. Every
part of the Jacobian is formed once; each layer is contracted in the form with the fewest
multiplications (docs/mathematics.md, 2). A kernel that does not fit is refused before anything is
computed, with what would make it fit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernel.errors import KernelError
from kernel.linalg import cores, on_host
from kernel.model import Directions, Model, classes_of, directions, dtype_of
from kernel.options import Precision, Request
from kernel.param_groups import Block, ParamGroup, param_groups
from kernel.posterior import posterior_bytes
from kernel.taps import Linear, LinearHead

GIB = 2**30
# Images differentiated at a time: on each core what its cache holds, or what keeps a GPU busy.
CHUNK, GPU_CHUNK = 8, 512
Report = Callable[[float, float], None]


class Sizes(NamedTuple):
    """Sizes of a query.

    Attributes:
        labelled: L.
        candidates: U.
        sample: M, the candidates over which the change is summed; None for all.
        streamed: S is made whenever it is read, for a criterion that reads the kernel beside it or
            only columns of it (`kernel.options.STREAMED`).
    """

    labelled: int
    candidates: int
    sample: int | None = None
    streamed: bool = False


class Problem(NamedTuple):
    """A kernel in sizes.

    Attributes:
        groups: of the network's parameters.
        examples: images that are differentiated.
        anchors: images whose rows are kept: all of them, or those that all others meet.
        directions: of the kind.
        precision: of gradients and contraction.
        activations: numbers that one image takes in the network on its way forth, or on its way
            back for one projection.
    """

    groups: tuple[ParamGroup, ...]
    examples: int
    anchors: int
    directions: Directions
    precision: Precision
    activations: tuple[int, int]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(dtype_of(self.precision)).itemsize

    @property
    def rows_an_example(self) -> int:
        """Rows of the kernel for one image."""
        return len(self.directions.projections) if self.directions.square else 1

    @property
    def columns(self) -> int:
        """P, parameters."""
        return sum(group.columns for group in self.groups)

    @property
    def network(self) -> int:
        """Multiplications of the layers with parameters, for one image."""
        return sum(group.columns * max(group.positions, 1) for group in self.groups)

    @property
    def pairs(self) -> float:
        """Pairs of images that are contracted: of two anchors one order is enough."""
        return self.anchors * (self.examples - self.anchors / 2)

    @property
    def result_bytes(self) -> int:
        """Bytes of the kernel in float64."""
        return self.anchors * self.examples * self.rows_an_example**2 * 8

    def chunk_bytes(self, chunk: int, width: int) -> int:
        """Bytes of a chunk of images while it is differentiated for `width` projections."""
        threads, _ = threads_of(chunk)
        forth, back = self.activations
        # XLA lays the parameters out anew for the way forth and for the way back, in each thread
        return (chunk * (forth + width * back) + 2 * threads * self.columns) * self.itemsize

    def held(self, chunk: int) -> int:
        """Images of which rows or factors are there at a time: two chunks are on their way."""
        return self.anchors + 2 * chunk

    def pass_bytes(self, blocks: tuple[Block, ...], width: int, chunk: int) -> int:
        """Bytes of the kernel and of a pass for `width` projections."""
        kept = sum(
            block.columns * width if block.form == "rows" else block.group.kept("factors", width)
            for block in blocks
        )
        kept *= self.held(chunk) * self.itemsize
        return self.result_bytes + kept + self.chunk_bytes(chunk, width)


class Pass(NamedTuple):
    """One pass over the images.

    Attributes:
        blocks: of the Jacobian.
        projections: which of the logits' projections, from the first to below the last.
    """

    blocks: tuple[Block, ...]
    projections: tuple[int, int]

    @property
    def width(self) -> int:
        """Projections."""
        return self.projections[1] - self.projections[0]

    @property
    def forming(self) -> float:
        """Multiplications that make rows of one image's taps."""
        return 0.0 + sum(b.share * b.group.forming(b.form, self.width) for b in self.blocks)

    def contracting(self, square: bool) -> float:
        """Multiplications between two images."""
        return 0.0 + sum(
            b.share * b.group.contracting(b.form, self.width, square) for b in self.blocks
        )


class Plan(NamedTuple):
    """Passes, chunk and memory of a kernel, and the form in which it is held.

    Attributes:
        problem: the kernel in sizes.
        request: as it was asked for.
        form: `dense`, `full`, `features` or `cross`, as `kernel.covariance` has them.
        keep: S is held; else its rows are computed from features, or the kernel, whenever they
            are read.
        passes: over all images; none for a sketch, which is one pass with every layer in it, and
            none for a linear head.
        chunk: images differentiated at a time.
        kernel_bytes: most that the kernel takes while it is computed, beyond what is in memory.
        posterior_bytes: most that kernel and posterior take.
        head: the linear layer that the network is, whose images are the features; no sketch is
            taken of them.
    """

    problem: Problem
    request: Request
    form: str
    keep: bool
    passes: tuple[Pass, ...]
    chunk: int
    kernel_bytes: int
    posterior_bytes: int = 0
    head: LinearHead | None = None

    @property
    def features(self) -> int:
        """Dimensions of features; 0 where gradients are whole."""
        if self.head is not None:
            return self.head.width
        return (self.request.sketch or 0) * len(self.problem.directions.projections)

    @property
    def peak_gib(self) -> float:
        """Most that the query takes, beyond what is in memory before."""
        return max(self.kernel_bytes, self.posterior_bytes) / GIB

    @property
    def forward_work(self) -> float:
        """Multiplications of all passes through the network, forth and back."""
        problem, widths = self.problem, [one.width for one in self.passes]
        if not self.passes and self.head is None:  # a sketch takes one projection at a time
            widths = [1] * len(problem.directions.projections)
        return problem.network * problem.examples * sum((1 + 2.0 * width for width in widths), 0.0)

    @property
    def forming_work(self) -> float:
        """Multiplications that make gradients of taps."""
        return self.problem.examples * sum((one.forming for one in self.passes), 0.0)

    @property
    def contracting_work(self) -> float:
        """Multiplications between images."""
        square = self.problem.directions.square
        return self.problem.pairs * sum((one.contracting(square) for one in self.passes), 0.0)

    @property
    def work(self) -> float:
        """All multiplications."""
        return self.forward_work + self.forming_work + self.contracting_work


def plan_query(
    model: Model,
    image: jax.ShapeDtypeStruct,
    sizes: Sizes,
    request: Request,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Plan the kernel of a query, with the memory of its posterior.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.
        sizes: of the query.
        request: how the kernel is computed.
        rng: where random projections come from; any will do for a plan that is not carried out.

    Raises:
        KernelError: it does not fit in the memory; the message says what would.
    """
    _check(sizes)
    form = "full" if request.kind == "full" else "dense"
    head = linear_head(model, request)
    if head is not None or (form == "dense" and request.sketch is not None):
        form = "features"
    elif form == "dense" and sizes.sample is not None:
        form = "cross"
    examples = sizes.labelled + sizes.candidates
    anchors = sizes.labelled + (sizes.sample or 0) if form == "cross" else examples
    problem = problem_of(cast(model, request.precision), image, examples, anchors, request, rng)
    plan = plan_problem(problem, request, form, head)
    room = request.memory_gib * GIB
    for keep in _ways(form, sizes.streamed):
        needed = posterior_bytes(
            form,
            sizes.labelled,
            sizes.candidates,
            classes=classes_of(model, image),
            sample=sizes.sample,
            features=plan.features,
            itemsize=problem.itemsize,
            keep=keep,
            streamed=sizes.streamed,
        )
        plan = plan._replace(keep=keep, posterior_bytes=needed)
        if max(plan.kernel_bytes, needed) <= room:
            return plan
    raise KernelError(_refuse_query(sizes, plan))


def plan_kernel(
    model: Model,
    image: jax.ShapeDtypeStruct,
    examples: int,
    request: Request,
    rng: np.random.Generator | None = None,
) -> Plan:
    """Plan the kernel between all pairs of images, without a posterior.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.
        examples: how many images there are.
        request: how the kernel is computed.
        rng: where random projections come from.

    Raises:
        KernelError: it does not fit in the memory; the message says what would.
    """
    problem = problem_of(cast(model, request.precision), image, examples, examples, request, rng)
    form = "full" if problem.directions.square else "dense"
    plan = plan_problem(problem, request, form, linear_head(model, request))
    if plan.kernel_bytes > request.memory_gib * GIB:  # whole gradients are cut to fit
        needed = enough(plan.kernel_bytes)
        kind, levers = ("sketched ", "the sketch, the chunk or the number of images")
        if plan.head is not None:
            kind, levers = ("", "the number of images")
        raise KernelError(
            f"the {kind}kernel of {examples:,} images needs {needed} GiB and "
            f"{request.memory_gib:g} GiB are given: give {needed} GiB, or lower {levers}."
        )
    return plan


def linear_head(model: Model, request: Request) -> LinearHead | None:
    """The linear layer that the network is, where its kernel of this kind is one of features.

    TF32 is for products between whole gradients, and is left to them.
    """
    if request.kind == "full" or request.precision == "tf32":
        return None
    return model.function.linear_head(model.params) if isinstance(model.function, Linear) else None


def plan_problem(
    problem: Problem, request: Request, form: str, head: LinearHead | None = None
) -> Plan:
    """The passes that fit in the memory; of a sketch, the first chunk that does.

    A linear head needs no pass, and a sketch of it that was asked for is not taken.

    Raises:
        KernelError: whole gradients do not fit, cut into however many passes.
    """
    budget = int(request.memory_gib * GIB)
    chunks = [min(chunk, problem.examples) for chunk in chunk_sizes(problem, request)]
    if head is not None:
        own = problem.examples * head.width * problem.itemsize * (1 if on_host() else 2)
        needed = own + (0 if form == "features" else problem.result_bytes)
        whole = replace(request, sketch=None)
        return Plan(problem, whole, form, True, (), chunks[0], needed, head=head)
    if request.sketch is not None:
        beside = 0 if form == "features" else problem.result_bytes
        needed = {chunk: beside + _sketch_bytes(problem, request.sketch, chunk) for chunk in chunks}
        chunk = next((chunk for chunk in chunks if needed[chunk] <= budget), chunks[-1])
        return Plan(problem, request, form, True, (), chunk, needed[chunk])
    (chunk,) = chunks
    passes = _passes(problem, budget, chunk)
    if not passes:
        raise KernelError(_refuse_kernel(problem, budget, chunk))
    peak = max(problem.pass_bytes(one.blocks, one.width, chunk) for one in passes)
    return Plan(problem, request, form, True, passes, chunk, peak)


def _sketch_bytes(problem: Problem, buckets: int, chunk: int) -> int:
    """Features of all images, a chunk of images, and a row of gradients in every thread."""
    numbers = problem.examples * len(problem.directions.projections) * buckets
    numbers += threads_of(chunk)[0] * problem.columns
    return numbers * problem.itemsize + problem.chunk_bytes(chunk, 1)


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
    """The kernel asked for, in sizes.

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
    rows = directions(request.kind, classes_of(model, image), request.probes, rng)
    found = tuple(param_groups(model, image))
    precision: Any = request.precision
    return Problem(found, examples, anchors, rows, precision, activations(model, found, image))


# Primitives whose output XLA allocates; everything else is fused into the step that reads it.
_ALLOCATED = frozenset(
    "argmax argmin concatenate conv_general_dilated cumsum dot_general gather reduce_max "
    "reduce_min reduce_prod reduce_sum reduce_window reduce_window_max reduce_window_sum scan "
    "scatter scatter-add select_and_gather_add select_and_scatter_add sort while".split()
)
# XLA on a CPU lays images out anew for each convolution and each product of matrices.
_LAYOUTS = 2


def activations(
    model: Model, groups: tuple[ParamGroup, ...], image: jax.ShapeDtypeStruct
) -> tuple[int, int]:
    """Numbers alive while one image is differentiated: all its activations, and as many cotangents.

    Args:
        model: the network.
        groups: of it; those without a rule have their gradients formed on the way back.
        image: shape and dtype of one image, without a batch axis.

    Returns:
        On the way forth, and on the way back for each projection.
    """
    batch = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    forward = jax.make_jaxpr(model.function)(model.params, model.frozen, batch)
    outputs = _LAYOUTS * _allocated(forward.jaxpr)
    formed = sum(group.columns for group in groups if group.rule is None)
    return math.prod(image.shape) + outputs, outputs + _LAYOUTS * formed


def _allocated(jaxpr: Any) -> int:
    """Numbers that a jaxpr allocates, those of the functions it calls included."""
    total = 0
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in _ALLOCATED:
            total += sum(math.prod(variable.aval.shape) for variable in equation.outvars)
        elif inner is not None:
            total += _allocated(getattr(inner, "jaxpr", inner))
    return total


def chunk_sizes(problem: Problem, request: Request) -> tuple[int, ...]:
    """Images differentiated at a time, the best choice first.

    XLA on a CPU lays the parameters out anew for every chunk, forth and back. Where there are more
    of them than one image has activations, a sketch, which keeps nothing else of an image, is made
    of four times the images (`benchmarks/chunks.py`).
    """
    if request.chunk is not None:
        return (request.chunk,)
    usual = default_chunk()
    if request.sketch is None or not on_host() or problem.columns <= sum(problem.activations):
        return (usual,)
    return 4 * usual, usual


def default_chunk() -> int:
    """Images differentiated at a time on this machine."""
    return CHUNK * cores() if on_host() else GPU_CHUNK


def threads_of(chunk: int) -> tuple[int, int]:
    """Threads that go through a chunk of images, and how many of the images each takes.

    XLA on a CPU leaves cores idle while it forms gradients image by image; a device differentiates
    them together.
    """
    threads = min(cores(), chunk) if on_host() else 1
    return threads, -(-chunk // threads)


def _passes(problem: Problem, budget: int, chunk: int) -> tuple[Pass, ...]:
    """The fewest backward passes that fit, some projections at a time; none if nothing fits."""
    total = len(problem.directions.projections)
    widths = [d for d in range(1, total + 1) if total % d == 0]
    options: list[tuple[int, int, list[tuple[Block, ...]]]] = []
    for width in [total] if problem.directions.square else widths:
        room = budget - problem.result_bytes - problem.chunk_bytes(chunk, width)
        # columns of one projection
        capacity = room // (problem.held(chunk) * problem.itemsize) // width
        packed = _packed(problem, capacity, width) if capacity >= 1 else None
        if packed is not None:
            options.append((len(packed) * (total // width) * (1 + width), -width, packed))
    if not options:
        return ()
    _, negative, packed = min(options, key=lambda option: option[:2])
    starts = range(0, total, -negative)
    return tuple(Pass(blocks, (s, s - negative)) for s in starts for blocks in packed)


def _packed(problem: Problem, capacity: int, width: int) -> list[tuple[Block, ...]] | None:
    """Consecutive blocks by passes that fit, or None if a smallest piece does not."""
    passes: list[tuple[Block, ...]] = []
    current: list[Block] = []
    used = 0
    for block, size in _blocks(problem, capacity, width):
        if size > capacity:
            return None
        if current and used + size > capacity:
            passes.append(tuple(current))
            current, used = [], 0
        current.append(block)
        used += size
    return [*passes, tuple(current)]


def _blocks(problem: Problem, capacity: int, width: int) -> Iterator[tuple[Block, int]]:
    """Every group in its best form, cut where it is too large, and its size in columns."""
    for group in problem.groups:
        if _best_form(problem, group, capacity, width) == "factors":
            yield Block.whole(group, "factors"), -(-group.kept("factors", width) // width)
            continue
        each = group.columns // group.outputs
        pieces = -(-group.columns // max(capacity // each * each, each))
        outputs = -(-group.outputs // pieces)
        for piece in range(-(-group.outputs // outputs)):
            yield Block(group, "rows", outputs, piece), each * outputs


def _best_form(problem: Problem, group: ParamGroup, capacity: int, width: int) -> str:
    """The form with the fewest multiplications of those that fit."""

    def work(form: str) -> float:
        contracting = group.contracting(form, width, problem.directions.square)
        return problem.examples * group.forming(form, width) + problem.pairs * contracting

    fitting = [f for f in group.forms if _smallest(group, f, width) <= capacity * width]
    return min(fitting or group.forms, key=work)


def _smallest(group: ParamGroup, form: str, width: int) -> int:
    """Numbers of one image that cannot be had in pieces: rows can be cut, factors cannot."""
    return group.columns // group.outputs * width if form == "rows" else group.kept(form, width)


def _ways(form: str, streamed: bool) -> tuple[bool, ...]:
    """Whether S is held, and whether it can do without, in the order of preference."""
    if form == "full":
        return (True,)
    if streamed:
        return (False,)
    return (True, False) if form == "features" else (True,)


def _check(sizes: Sizes) -> None:
    if sizes.labelled < 1:
        raise KernelError("the labelled set is empty; look-ahead needs at least one label.")
    if sizes.candidates < 1:
        raise KernelError("there are no candidates to look ahead from.")
    if sizes.sample is not None and not 1 <= sizes.sample <= sizes.candidates:
        raise KernelError(
            f"a reference sample of {sizes.sample} candidates was asked for and there are "
            f"{sizes.candidates}: give a number from 1 to that, or none for all."
        )


def _refuse_kernel(problem: Problem, budget: int, chunk: int) -> str:
    width = len(problem.directions.projections) if problem.directions.square else 1
    smallest = max(
        min(_smallest(group, form, width) for form in group.forms) for group in problem.groups
    )
    kept = (smallest + width) * problem.held(chunk) * problem.itemsize
    least = problem.result_bytes + problem.chunk_bytes(chunk, width) + kept
    share = (budget / least) ** 0.5  # the kernel grows with the square of the images
    needed = enough(least)
    return (
        f"the kernel of {problem.examples:,} images needs at least {needed} GiB, of which "
        f"{problem.result_bytes / GIB:.3g} GiB for the kernel itself, and {budget / GIB:.4g} GiB "
        f"are given: give {needed} GiB, or score about {int(share * problem.examples):,} "
        "images in place of all, or sum the change over a reference sample, or use a sketch."
    )


def _refuse_query(sizes: Sizes, plan: Plan) -> str:
    request, needed = plan.request, enough(plan.peak_gib * GIB)
    ways = [f"give {needed} GiB"]
    if sizes.sample is None and plan.form != "full":
        ways.append("sum the change over a reference sample of some thousand candidates")
    ways.append("use a sketch" if request.sketch is None else "lower the sketch")
    ways.append("score fewer candidates")
    return (
        f"looking ahead from {sizes.candidates:,} candidates with {sizes.labelled:,} labels needs "
        f"{needed} GiB and {request.memory_gib:g} GiB are given: {', or '.join(ways)}."
    )


def enough(needed: int | float) -> str:
    """Bytes in GiB, rounded up to three digits."""
    gib = needed / GIB
    step = 10.0 ** (math.floor(math.log10(gib)) - 2)
    return f"{math.ceil(gib / step) * step:.3g}"


# Time of a multiplication of a layer, in multiplications of a large matrix product.
_SLOWER = 2.0


class Progress:
    """Adds up the work of a plan and passes it on."""

    def __init__(self, plan: Plan, report: Report | None):
        """Nothing is done yet."""
        self._problem, self._report = plan.problem, report
        self._total = _SLOWER * (plan.forward_work + plan.forming_work) + plan.contracting_work
        self._done = 0.0

    def formed(self, one: Pass, images: int) -> None:
        """Images were differentiated in a pass."""
        self._add(_SLOWER * images * (self._problem.network * (1 + 2 * one.width) + one.forming))

    def contracted(self, one: Pass, images: float) -> None:
        """Record images that the anchors met in a pass."""
        square = self._problem.directions.square
        self._add(images * self._problem.anchors * one.contracting(square))

    def _add(self, work: float) -> None:
        self._done += work
        if self._report is not None:
            self._report(min(self._done, self._total), self._total)
