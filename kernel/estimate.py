"""What a kernel would cost on this machine: its plan, with seconds from a little work measured.

From a model and a handful of images to passes, memory and seconds for a kernel between many,
before any of it is computed.

What a query by dynamicAL would cost on this machine, from a few images timed.

From a model, images and the sizes of a query to seconds and memory, before any of it is computed.

Seconds of one look of a criterion, from a small one timed on this machine.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.contract import Store, passing_chunk, planned, sketch_bytes, sketch_chunk
from kernel.covariance import Features
from kernel.dynamics import cotangents, folded, folding, measure
from kernel.gradients import cheapest, chunk_size, singly, total
from kernel.jacobian import Part, compute, random_signs, sketched
from kernel.lookahead import outlook
from kernel.model import Model, classes_of, dtype_of, given
from kernel.ntk import Decision, Sizes, gram
from kernel.options import Options, Request
from kernel.plan import GIB, Pass, Plan, Problem, cast, problem_of, shared, together
from kernel.posterior import posterior

# Chunks of images that are timed on each core, beside the first, which is worked on alone.
_TIMED = 2
# What a vjp of a whole chunk keeps of an image, in what the taps of one image take: all layers'
# outputs at once, laid out anew for each convolution (found by measuring, a bound).
_WHOLE_CHUNK = 2


class Cost(NamedTuple):
    """The cost of one query.

    Attributes:
        chunk: images differentiated at a time.
        compile_seconds: before the first gradient, once a run.
        labelled_seconds: for the gradient of the labelled set.
        candidate_seconds: for everything about the candidates, folding included.
        peak_gib: what it takes in memory beyond what is there before, compiling apart.
    """

    chunk: int
    compile_seconds: float
    labelled_seconds: float
    candidate_seconds: float
    peak_gib: float


def dynamics_cost(
    model: Model,
    images: Float[np.ndarray, "few ..."],
    labelled: int,
    candidates: int,
    block: int,
    *,
    loss: str,
    sketch: int | None = None,
    chunk: int | None = None,
) -> Cost:
    """Time some images and scale up.

    Args:
        model: the network, in the dtype of the computation.
        images: a few, as the network takes them; repeated to some chunks.
        labelled: L.
        candidates: U.
        block: candidates whose images are in memory at a time.
        loss: of the training.
        sketch: k, if gradients are folded.
        chunk: images differentiated at a time; None chooses for the machine.

    Raises:
        KernelError: nothing to train; a chunk of none.
    """
    dtype = jnp.result_type(*jax.tree.leaves(model.params))
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype)
    chunk = chunk_size(model, image, min(block, candidates), chunk)
    threads, share = shared(chunk)
    some = np.resize(images, (share * (1 + _TIMED * threads), *images.shape[1:]))
    classes = classes_of(model, image)
    # which logits and labels has no part in what they cost
    logits = np.eye(classes)[np.arange(len(some)) % classes]
    own = cotangents(logits, np.zeros(len(some), np.int64), loss)
    summed = _timed_twice(lambda: total(model, some, own, chunk=chunk))
    direction = total(model, some, own, chunk=chunk)
    looks = [_timed_twice(lambda: measure(model, some, logits, direction, loss, chunk=chunk))]
    if sketch is not None:
        how = folding(model, image, sketch, np.random.default_rng(0))
        looks.append(_timed_twice(lambda: folded(model, some, own, how, chunk=chunk)))
    each = 1 / (share * threads * (1 + _TIMED))  # of an image, of what was timed
    return Cost(
        chunk=share * threads,
        compile_seconds=sum(max(first - again, 0.0) for first, again in (summed, *looks)),
        labelled_seconds=summed[1] * each * labelled,
        candidate_seconds=sum(again for _, again in looks) * each * candidates,
        peak_gib=dynamics_peak_bytes(model, image, labelled, candidates, block, sketch, chunk)
        / GIB,
    )


def dynamics_peak_bytes(
    model: Model,
    image: jax.ShapeDtypeStruct,
    labelled: int,
    candidates: int,
    block: int,
    sketch: int | None = None,
    chunk: int | None = None,
) -> int:
    """What a query takes in memory beyond what is there before, compiling apart.

    Args:
        model: the network, in the dtype of the computation.
        image: shape and dtype of one image, without a batch axis.
        labelled: L.
        candidates: U.
        block: candidates whose images are in memory at a time.
        sketch: k, if gradients are folded.
        chunk: images differentiated at a time; None chooses for the machine.
    """
    request = Request(chunk=chunk)
    most = max(labelled, min(block, candidates))
    problem = problem_of(model, image, most, 1, request)
    threads, share = shared(passing_chunk(problem, request))
    columns = sum(unit.columns for unit in problem.units)
    parts = cheapest(problem.units)
    apart = singly(model.function, parts)
    formed = sum(part.columns for part in parts if not part.by_rule)
    largest = max(_alone(part) for part in parts)
    numbers = _WHOLE_CHUNK * share * threads * problem.activations.of(1)
    # while a set is summed: what threads have in hand, and twice as wide the sum so far
    numbers += columns * (2 * threads + 4)
    numbers += columns  # the direction, in the order of the gradients
    several = 1 if apart else share
    # patches of the layers that are multiplied with the direction as they are
    unformed = (part.unit.kept("patches", 1) for part in parts if part.form != "rows")
    numbers += threads * (largest + several * (formed + max(unformed, default=0)))
    kept = math.prod(image.shape) * most
    kept += 2 * candidates * min(sketch or 0, columns)
    classes = classes_of(model, image)
    return (numbers + kept) * np.dtype(image.dtype).itemsize + 16 * candidates * (classes + 2)


def _alone(part: Part) -> int:
    """Numbers that one layer takes for one image, while its gradient's length is computed."""
    if part.form == "rows":
        return part.columns + (part.unit.kept("patches", 1) if part.by_rule else 0)
    places = part.unit.pixels if part.form == "pixels" else part.unit.positions
    return 2 * places**2 + part.unit.kept(part.form, 1)


def _timed_twice(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first time, which compiles, and of the second."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return spent[0], spent[1]


_REPEATS = 3
_PRODUCT = (1024, 4096)


class Estimate(NamedTuple):
    """The cost of one kernel.

    Attributes:
        examples: images that are differentiated, candidates and labelled ones.
        anchors: images that all others meet; all of them for a whole kernel.
        parameters: P, columns of the Jacobian.
        projections: backward passes through the network for each image, in each pass.
        passes: how often every image is differentiated, each time for a part of the parameters or
            for some of the projections.
        chunk: images differentiated at a time.
        compile_seconds: before the first gradient, once a run.
        gradient_seconds: for all gradients.
        product_seconds: for the products between images.
        peak_gib: what it takes in memory at its highest, beyond what is there before.
    """

    examples: int
    anchors: int
    parameters: int
    projections: int
    passes: int
    chunk: int
    compile_seconds: float
    gradient_seconds: float
    product_seconds: float
    peak_gib: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compile_seconds + self.gradient_seconds + self.product_seconds


def estimate(
    model: Model,
    images: Float[np.ndarray, "batch ..."],
    examples: int,
    request: Request | None = None,
    *,
    anchors: int | None = None,
    sketch: int | None = None,
) -> Estimate:
    """Plan a kernel, measure a chunk of gradients and some products, and scale them up.

    Args:
        model: the network.
        images: a few, as the network takes them; repeated up to a chunk.
        examples: how many images the kernel would be between.
        request: how it would be computed; the defaults if None.
        anchors: how many of them all others meet; all if None.
        sketch: k; None for the exact kernel.

    Raises:
        KernelError: it does not fit in the memory.
    """
    request = request or Request()
    anchors = examples if anchors is None else anchors
    model = cast(model, request.precision)
    dtype = dtype_of(request.precision)
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype)
    # which projections and signs has no part in what they cost
    rng = np.random.default_rng(0)
    problem = problem_of(model, image, examples, anchors, request, rng)

    def repeated(chunk: int) -> jax.Array:
        return jnp.asarray(np.resize(images, (chunk, *images.shape[1:])), dtype)

    if sketch is not None:
        some = repeated(sketch_chunk(problem, request, sketch, problem.result_bytes))
        return _sketch(model, some, problem, sketch, rng)
    made = planned(problem, request)
    some = repeated(made.chunk)
    first, alone, each = _gradients(lambda few: _chunk(model, few, problem, made.passes[0]), some)
    work = [problem.network * (1 + 2 * one.width) + one.forming for one in made.passes]
    return Estimate(
        examples=examples,
        anchors=anchors,
        parameters=sum(unit.columns for unit in problem.units),
        projections=len(problem.directions.projections),
        passes=len(made.passes),
        chunk=made.chunk,
        # parts of one shape are compiled once, so this is what the widest pass takes
        compile_seconds=max(first - alone, 0.0),
        gradient_seconds=each * sum(work) / work[0] * examples,
        product_seconds=_products(model, some, problem, made),
        peak_gib=made.peak_bytes / GIB,
    )


def _sketch(
    model: Model, some: jax.Array, problem: Problem, buckets: int, rng: np.random.Generator
) -> Estimate:
    columns = sum(unit.columns for unit in problem.units)
    signs = jnp.asarray(random_signs(columns, buckets, given(rng, "a sketch")))
    projections = jnp.asarray(problem.directions.projections, some.dtype)

    def fold(few: jax.Array) -> object:
        own = (*model[1:], few, projections[:1], signs)
        return sketched(model.function, problem.units, buckets, together(), *own)

    first, alone, each = _gradients(fold, some)
    rows = len(projections) * (problem.rows_an_example if problem.directions.square else 1)
    return Estimate(
        examples=problem.examples,
        anchors=problem.anchors,
        parameters=columns,
        projections=len(projections),
        passes=1,
        chunk=len(some),
        compile_seconds=max(first - alone, 0.0),
        gradient_seconds=each * len(projections) * problem.examples,
        product_seconds=_product_rate(problem) * problem.pairs * buckets * rows,
        peak_gib=(problem.result_bytes + sketch_bytes(problem, buckets, len(some))) / GIB,
    )


def _gradients(form: Callable[[jax.Array], object], some: jax.Array) -> tuple[float, float, float]:
    """Seconds of a thread's share of a chunk, the first time and again, and an image's of all."""
    threads, share = shared(len(some))

    def work() -> None:
        jax.block_until_ready(form(some[:share]))

    def at_once() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work) for _ in range(threads)]:
                done.result()

    first, alone = _timed(work)
    _, all_of_them = _timed(at_once)
    return first, alone, all_of_them / (threads * share)


def _chunk(model: Model, some: jax.Array, problem: Problem, one: Pass):
    projections = jnp.asarray(problem.directions.projections[slice(*one.projections)], some.dtype)
    square = problem.directions.square
    return compute(model, one.parts, some, projections, square=square, together=together())


def _products(model: Model, some: jax.Array, problem: Problem, made: Plan) -> float:
    """Seconds of all contractions: rows by the rate of a product, factors by tiles of a chunk.

    A device contracts factors too at the rate of a product.
    """
    rate = _product_rate(problem)
    square = problem.directions.square
    total = 0.0
    for one in made.passes:
        parts = [part for part in one.parts if part.form != "rows" and not together()]
        rows = one._replace(parts=tuple(part for part in one.parts if part not in parts))
        total += rate * problem.pairs * rows.contracting(square)
        if parts:
            only = one._replace(parts=tuple(parts))
            store = Store(len(some), only.parts)
            store.put(0, _chunk(model, some, problem, only))
            values = np.zeros((len(some) * problem.rows_an_example,) * 2)
            _, each = _timed(lambda store=store, values=values: store.add_gram(values))
            total += each * problem.pairs / (len(some) ** 2 / 2)
    return total


def _product_rate(problem: Problem) -> float:
    """Seconds for one multiplication of a Gram matrix."""
    rows = np.random.default_rng(0).normal(size=_PRODUCT).astype(dtype_of(problem.precision))
    _, each = _timed(lambda: gram(rows))
    return each / (rows.shape[0] ** 2 / 2 * rows.shape[1])


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first time, which compiles, and of the fastest of some more."""
    first, *more = (_seconds(work) for _ in range(1 + _REPEATS))
    return first, min(more)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def posterior_seconds(sizes: Sizes, classes: int, decision: Decision, cost: Estimate) -> float:
    """Seconds of the posterior and of one criterion, by the rates of products on this machine.

    Args:
        sizes: of the query.
        classes: C.
        decision: how S is held.
        cost: of its kernel.
    """
    each = classes if decision.form == "full" else 1
    labelled, candidates = sizes.labelled * each, sizes.candidates * each
    sample = (sizes.sample or sizes.candidates) * each
    rows = np.random.default_rng(0).normal(size=_PRODUCT)
    _, product = _timed(lambda: rows @ rows.T)
    rate = product / (rows.shape[0] ** 2 / 2 * rows.shape[1])
    _, sweep = _timed(lambda: np.sqrt(rows * rows + 1.0))
    touching = sweep / rows.size
    work = labelled**3 / 6 + labelled**2 * candidates / 2 + sample * candidates * labelled
    if decision.form == "features" and sizes.sketch is not None:
        dimensions = sizes.sketch * cost.projections
        work += sample * candidates * dimensions / 2  # float32: twice as fast
    work += sample * candidates * classes
    return rate * work + touching * sample * candidates


_LABELLED, _CANDIDATES, _DIMENSIONS = 8, 512, 64


def seconds_a_look(
    criterion: str, options: Options, classes: int, sample: int, candidates: int
) -> float:
    """How long all scores take once, beyond what compiles and what makes S.

    A random problem of 512 candidates is scored, and scaled by the number of pairs.

    Args:
        criterion: one of `CRITERIA`.
        options: of the criterion.
        classes: C.
        sample: M.
        candidates: U.
    """
    rng = np.random.default_rng(0)
    features = Features(rng.normal(size=(_LABELLED + _CANDIDATES, _DIMENSIONS)), "float64")
    targets = np.eye(classes)[rng.integers(classes, size=_LABELLED)]
    f_l, f_u = (rng.normal(size=(rows, classes)) for rows in (_LABELLED, _CANDIDATES))
    made = posterior(features, targets, f_l, f_u, ridge=1.0)
    outlook(criterion, features, made, options, targets=targets).scores()
    # anew, for one may remember its scores
    seen = outlook(criterion, features, made, options, targets=targets)
    start = time.perf_counter()
    seen.scores()
    spent = time.perf_counter() - start
    return spent * sample * candidates / _CANDIDATES**2
