"""What a kernel would cost on this machine: its plan, with seconds from a little work measured.

From a model and a handful of images to passes, memory and seconds for a kernel between many,
before any of it is computed.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.engine.ahead import shared
from kernel.engine.chunking import planned, sketch_chunk
from kernel.engine.devices import together
from kernel.engine.plan import GIB, Pass, Plan, Problem
from kernel.engine.problem import Request, cast, problem_of
from kernel.engine.sketches import sketch_bytes
from kernel.engine.store import Store
from kernel.kinds import dtype_of, given
from kernel.layers.passes import compute, sketched
from kernel.layers.sketch import random_signs
from kernel.model import Model
from kernel.ntk import gram
from kernel.pool import Decision, Sizes

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
