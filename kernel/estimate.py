"""Cost of a planned kernel on this machine, from a little work that is timed."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.jacobian import differentiate, random_signs, sketch_gradients
from kernel.linalg import on_host
from kernel.model import Model, dtype_of
from kernel.ntk import gram
from kernel.plan import Plan, cast, threads_of

_REPEATS = 3
_PRODUCT = (1024, 4096)


class Cost(NamedTuple):
    """Seconds that a kernel would take.

    Attributes:
        compile_seconds: before the first gradient, once a run.
        gradient_seconds: for all gradients.
        product_seconds: for the products between images.
        posterior_seconds: for the posterior and one criterion on it; 0 for a kernel alone.
    """

    compile_seconds: float
    gradient_seconds: float
    product_seconds: float
    posterior_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)


def estimate_cost(
    model: Model, images: Float[np.ndarray, "batch ..."], plan: Plan, labelled: int | None = None
) -> Cost:
    """Time a chunk of gradients and a product of matrices, and scale them up.

    Args:
        model: the network.
        images: a few, as the network takes them; repeated up to a chunk.
        plan: of the kernel, or of the query if there are labelled images.
        labelled: L; None for a kernel alone.
    """
    problem, dtype = plan.problem, dtype_of(plan.request.precision)
    rows = np.random.default_rng(0).normal(size=_PRODUCT).astype(dtype)
    rate = timed(lambda: gram(rows))[1] / (_PRODUCT[0] ** 2 / 2 * _PRODUCT[1])
    after = 0.0 if labelled is None else rate * _posterior_work(plan, labelled)
    if plan.head is not None:
        dense = 0.0 if plan.form == "features" else rate * problem.pairs * plan.features
        return Cost(0.0, 0.0, dense, after)
    threads, share = threads_of(plan.chunk)
    some = jnp.asarray(np.resize(images, (share, *images.shape[1:])), dtype)
    form = _forming(cast(model, plan.request.precision), some, plan)

    def on_all_threads() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: jax.block_until_ready(form()), range(threads)))

    first, alone = timed(form)
    each = timed(on_all_threads)[1] / (threads * share)
    per_pass = [problem.network * (1 + 2 * one.width) + one.forming for one in plan.passes]
    # of one projection where gradients are sketched, else of the first pass
    times = len(problem.directions.projections)
    if per_pass:
        times = sum(per_pass) / per_pass[0]
    products = plan.contracting_work
    if plan.request.sketch is not None and plan.form != "features":
        width = problem.rows_an_example if problem.directions.square else 1
        products = problem.pairs * plan.request.sketch * len(problem.directions.projections) * width
    return Cost(
        compile_seconds=max(first - alone, 0.0),
        gradient_seconds=each * times * problem.examples,
        product_seconds=rate * products,
        posterior_seconds=after,
    )


def _forming(model: Model, some: jax.Array, plan: Plan) -> Callable[[], object]:
    """Gradients of some images in the first pass, or in one projection of a sketch."""
    problem = plan.problem
    projections = jnp.asarray(problem.directions.projections, some.dtype)
    if plan.request.sketch is not None:
        rng = np.random.default_rng(0)  # which signs has no part in what they cost
        signs = jnp.asarray(random_signs(problem.columns, plan.request.sketch, rng))
        how = (model.function, problem.groups, plan.request.sketch, not on_host())
        return lambda: sketch_gradients(*how, *model[1:], some, projections[:1], signs)
    one, square = plan.passes[0], problem.directions.square
    own = projections[slice(*one.projections)]
    how = {"square": square, "together": not on_host()}
    return lambda: differentiate(model, one.blocks, some, own, **how)


def _posterior_work(plan: Plan, labelled: int) -> float:
    """Multiplications of K_LL's factor, A, S and a sum over S for every class."""
    problem = plan.problem
    classes = problem.directions.projections.shape[1]
    each = problem.rows_an_example
    l, u = labelled * each, (problem.examples - labelled) * each
    m = (problem.anchors - labelled) * each
    streamed = plan.features if plan.form == "features" else 0
    return l**3 / 6 + l**2 * u / 2 + m * u * (l + streamed + 8 * classes)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first time, which compiles, and of the fastest of some more."""
    seconds = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:])
