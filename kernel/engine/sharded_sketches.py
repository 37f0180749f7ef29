"""Sketched gradients of a set of images, on the devices of a mesh.

From a network and images to Φ with Θ ≈ ΦΦᵀ, each device with its slice of every wave of images.
"""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from kernel.engine.devices import collected, everywhere, spread, together
from kernel.engine.plan import Problem
from kernel.engine.programs import sketch_on
from kernel.engine.progress import Report
from kernel.engine.scratch import Scratch
from kernel.engine.sharded import check_wave
from kernel.engine.sketches import Sketches, finished, room
from kernel.engine.waves import waves
from kernel.kinds import given
from kernel.layers.sketch import random_signs
from kernel.model import Model


def sharded_sketches(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    buckets: int,
    chunk: int,
    rng: np.random.Generator | None,
    report: Report | None,
    mesh: Mesh,
    scratch: Scratch | None = None,
) -> Sketches:
    """`kernel.engine.sketches.sketches`, each device with its slice of every wave.

    Args:
        model: in the precision of the problem.
        images: all of them, in every process.
        problem: what is computed.
        buckets: k.
        chunk: images that one device differentiates at a time.
        rng: where the signs come from; in the same state in every process.
        report: told how many images are done, and of how many.
        mesh: the devices, along one axis.
        scratch: where finished waves are kept, and taken up from.

    Raises:
        KernelError: a sketch of no or too many dimensions; no generator; gradients that are not
            finite.
    """
    columns = sum(unit.columns for unit in problem.units)
    signs = everywhere(random_signs(columns, buckets, given(rng, "a sketch")), mesh)
    projections = problem.directions.projections.astype(problem.precision)
    weights = everywhere(tuple(model[1:]), mesh)
    scale = np.dtype(problem.precision).type(problem.directions.scale**0.5)
    scratch = scratch or Scratch()
    found, done = room(scratch, len(images), problem, buckets)
    for wave in waves(0, len(images), chunk, mesh.size):
        if wave.stop <= done:
            continue
        some = spread(images[wave.places], mesh)
        # one projection at a time: what one image leaves in the network is what takes memory
        for number in range(len(projections)):
            one = everywhere(projections[number : number + 1], mesh)
            folded = sketch_on(
                mesh,
                model.function,
                problem.units,
                buckets,
                together(),
                *weights,
                some,
                one,
                signs,
            )
            check_wave(model, images, wave, folded.finite, projections)
            own = collected(folded.rows)[: wave.images, 0]
            found.features[wave.start : wave.stop, number] = own * scale
            found.logits[wave.start : wave.stop] = collected(folded.logits)[: wave.images]
        finished(scratch, wave.stop)
        if report is not None:
            report(float(wave.stop), float(len(images)))
    return found
