"""What a query by dynamicAL would cost on this machine, from a few images timed.

From a model, images and the sizes of a query to seconds and memory, before any of it is computed.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.dynamics.chunks import chunk_size
from kernel.dynamics.criterion import cotangents, measure
from kernel.dynamics.gradients import total
from kernel.dynamics.sketches import folded, folding
from kernel.dynamics.squares import cheapest, singly
from kernel.engine.ahead import shared
from kernel.engine.chunking import passing_chunk
from kernel.engine.plan import GIB
from kernel.engine.problem import Request, problem_of
from kernel.kinds import classes_of
from kernel.layers.observing import Part
from kernel.model import Model

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


def cost(
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
    summed = _timed(lambda: total(model, some, own, chunk=chunk))
    direction = total(model, some, own, chunk=chunk)
    looks = [_timed(lambda: measure(model, some, logits, direction, loss, chunk=chunk))]
    if sketch is not None:
        how = folding(model, image, sketch, np.random.default_rng(0))
        looks.append(_timed(lambda: folded(model, some, own, how, chunk=chunk)))
    each = 1 / (share * threads * (1 + _TIMED))  # of an image, of what was timed
    return Cost(
        chunk=share * threads,
        compile_seconds=sum(max(first - again, 0.0) for first, again in (summed, *looks)),
        labelled_seconds=summed[1] * each * labelled,
        candidate_seconds=sum(again for _, again in looks) * each * candidates,
        peak_gib=peak_bytes(model, image, labelled, candidates, block, sketch, chunk) / GIB,
    )


def peak_bytes(
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


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first time, which compiles, and of the second."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return spent[0], spent[1]
