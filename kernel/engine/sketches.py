"""Sketched gradients of a set of images: one row of features an image, whose products are a kernel.

From a network and images to Φ with Θ ≈ ΦΦᵀ, in one pass and in memory of Φ's own size: what a pool
too large for its kernel is worked with (docs/mathematics.md, 2). The pass goes through the network,
so its logits are had without going there again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.engine.ahead import in_order, shared
from kernel.engine.plan import Problem, chunk_bytes
from kernel.engine.progress import Report
from kernel.engine.scratch import Scratch
from kernel.kinds import given
from kernel.layers.diagnosis import not_finite
from kernel.layers.passes import compile_sketched, sketched
from kernel.layers.sketch import random_signs
from kernel.model import Model


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
