"""All passes of a plan over the images, on one CPU.

From a plan to the kernel between the anchors and all images. The anchors come first: their rows are
kept and contracted with each other; every other image is met by them and let go.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.engine.ahead import in_order, shared
from kernel.engine.plan import Pass, Plan, Problem
from kernel.engine.progress import Progress
from kernel.engine.scratch import Scratch
from kernel.engine.spare import Spare
from kernel.engine.store import Store
from kernel.layers.diagnosis import not_finite
from kernel.layers.passes import Chunk, compile_ahead, compute
from kernel.model import Model


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
