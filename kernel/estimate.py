"""What a kernel would cost on this machine, from a few gradients measured on it.

From a model and a handful of images to seconds and memory for a kernel between many.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.gradients import parameter_sizes, per_example_gradients
from kernel.model import Model
from kernel.ntk import CHUNK, GIB, Precision, cast, gram, parameter_groups

_REPEATS = 3


class Estimate(NamedTuple):
    """The cost of the kernel `single` between `examples` images; `trace` takes C times as long.

    Attributes:
        examples: images in the kernel, candidates and labelled ones.
        parameters: P, columns of the Jacobian.
        passes: how often every image is differentiated, each time for a part of the parameters.
        compile_seconds: before the first gradient, once a run.
        gradient_seconds: for all gradients.
        gram_seconds: for the products of the Jacobian with itself.
        jacobian_gib: GiB of the whole Jacobian, if it were kept.
    """

    examples: int
    parameters: int
    passes: int
    compile_seconds: float
    gradient_seconds: float
    gram_seconds: float
    jacobian_gib: float


def estimate(
    model: Model,
    images: Float[np.ndarray, "batch ..."],
    examples: int,
    *,
    precision: Precision = "float32",
    memory_gib: float = 4.0,
) -> Estimate:
    """Measure a chunk of gradients and a small product, and scale them up.

    Args:
        model: the network.
        images: a few, as the network takes them; repeated up to a chunk.
        examples: how many images the kernel would be between.
        precision: of gradients and products.
        memory_gib: GiB that the Jacobian may take at a time.

    Raises:
        KernelError: not even one parameter fits in the memory.
    """
    model = cast(model, precision)
    columns = sum(parameter_sizes(model.params))
    groups = parameter_groups(model, examples, precision, memory_gib)
    chunk = jnp.asarray(np.resize(images, (CHUNK, *images.shape[1:])), precision)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), precision)
    classes = jax.eval_shape(model.function, model.params, model.frozen, one).shape[1]
    direction = jnp.eye(1, classes, dtype=precision)[0]

    def gradients() -> jax.Array:
        return per_example_gradients(model, chunk, direction, groups[0])

    first = _seconds(gradients)
    each = min(_seconds(gradients) for _ in range(_REPEATS))
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(1024, 4096)), precision)
    product = min(_seconds(lambda: gram(rows)) for _ in range(_REPEATS))
    return Estimate(
        examples=examples,
        parameters=columns,
        passes=len(groups),
        compile_seconds=max(first - each, 0.0),
        gradient_seconds=each * len(groups) * examples / CHUNK,
        gram_seconds=product * (examples / rows.shape[0]) ** 2 * columns / rows.shape[1],
        jacobian_gib=examples * columns * np.dtype(precision).itemsize / GIB,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start
