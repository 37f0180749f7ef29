"""All passes of a plan over the images, on one CPU.

From a plan to the kernel between the anchors and all images. The anchors come first: their rows are
kept and contracted with each other; every other image is met by them and let go.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.diagnosis import not_finite
from kernel.model import Model
from kernel.passes import Chunk, compute
from kernel.plan import Pass, Plan, Problem
from kernel.progress import Progress
from kernel.store import Store


def sweep(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first.
        problem: what is computed.
        plan: how.
        progress: told of every chunk and every product.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite.
    """
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    values = np.zeros((anchors * each, total * each))
    diagonal = np.zeros((total - anchors, each, each))
    for one in plan.passes:
        store = Store(anchors, one.parts)
        for start in range(0, anchors, plan.chunk):
            chunk = _chunk(model, images, start, anchors, problem, plan, one)
            store.put(start, chunk)
            progress.formed(one, min(plan.chunk, anchors - start))
        store.add_gram(values[:, : anchors * each])
        progress.contracted(one, anchors / 2)
        for start in range(anchors, total, plan.chunk):
            chunk = _chunk(model, images, start, total, problem, plan, one)
            count = min(plan.chunk, total - start)
            own = slice(start * each, (start + count) * each)
            store.add_cross(values[:, own], chunk, count)
            diagonal[start - anchors : start - anchors + count] += store.diagonal(chunk)[:count]
            progress.formed(one, count)
            progress.contracted(one, count)
    return values, diagonal


def _chunk(
    model: Model,
    images: np.ndarray,
    start: int,
    end: int,
    problem: Problem,
    plan: Plan,
    one: Pass,
) -> Chunk:
    """One chunk; the last is padded with repeats so that one shape is compiled."""
    places = np.minimum(np.arange(start, start + plan.chunk), end - 1)
    projections = problem.directions.projections[slice(*one.projections)]
    chunk = compute(
        model,
        one.parts,
        jnp.asarray(images[places]),
        jnp.asarray(projections, images.dtype),
        square=problem.directions.square,
        together=False,
    )
    finite = np.asarray(chunk.finite)
    if not finite.all():
        bad = sorted(set(places[~finite].tolist()))
        raise not_finite(model, images, bad, projections)
    return chunk
