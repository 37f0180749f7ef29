"""The empirical Neural Tangent Kernel of a network between all images of a set.

From a model and images to Θ(x,x') = J(x)J(x')ᵀ, whole or reduced to a scalar-valued kernel
(docs/mathematics.md, 2). A plan made beforehand (`kernel.engine.plan`) says in which passes; each
entry of the Jacobian is formed once and contracted in whichever form is cheaper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.engine.choice import sketched, swept
from kernel.engine.chunking import planned, sketch_chunk
from kernel.engine.plan import GIB, Problem, enough
from kernel.engine.problem import Request, cast, problem_of
from kernel.engine.progress import Progress, Report
from kernel.engine.scratch import Scratch
from kernel.engine.sketches import sketch_bytes
from kernel.errors import KernelError
from kernel.kinds import KINDS, PRECISIONS, PROBES, Kind, Precision, dtype_of
from kernel.model import Model
from kernel.products import add_gram

__all__ = [
    "KINDS",
    "PRECISIONS",
    "PROBES",
    "Kernel",
    "Kind",
    "Precision",
    "cast",
    "empirical_ntk",
    "gram",
]


class Kernel(NamedTuple):
    """A kernel between the examples of one set.

    Attributes:
        values: float64, (examples, examples) for a scalar-valued kernel K that stands for
            K ⊗ I_C, or (examples, classes, examples, classes) for the kind `full`.
        precision: what gradients and contraction were computed in, by which the rounding of
            `values` is judged.
    """

    values: Float[np.ndarray, "..."]
    precision: Precision


def empirical_ntk(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    kind: str = "single",
    *,
    probes: int = PROBES,
    sketch: int | None = None,
    rng: np.random.Generator | None = None,
    precision: Precision = "float32",
    chunk: int | None = None,
    memory_gib: float = 4.0,
    devices: int | None = None,
    progress: Report | None = None,
    scratch: Scratch | None = None,
) -> Kernel:
    """The kernel of a network between all pairs of images.

    `single` is ∇f¹·∇f¹ of the first logit ([L]), `sum` that of Σ_c f_c/√C ([P]'s pNTK), `trace`
    the mean over classes of Θ_cc, `rademacher` the mean over random ±1 projections r of the logits
    of rᵀΘr/C, unbiased for `trace`, and `full` every entry of Θ.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the examples, as the network takes them, without augmentation.
        kind: which kernel, one of `KINDS`.
        probes: m, how many projections `rademacher` takes.
        sketch: k, the number of dimensions that gradients are folded to before they are
            contracted; None keeps them whole.
        rng: where projections and the signs of a sketch come from.
        precision: of gradients and contraction, one of `PRECISIONS`; the result is stored in
            float64 whichever it is. `tf32` is for NVIDIA GPUs, and for whole gradients.
        chunk: how many examples are differentiated at a time; None chooses for the machine.
        memory_gib: GiB that all of it may take beyond what is in memory before; it decides the
            number of passes.
        devices: how many of the machine's, or of all processes', it is spread over; None for all.
        progress: called with the work done and all work, in one unit.
        scratch: where finished chunks are kept, and taken up from.

    Raises:
        KernelError: unknown kind; a precision that is not to be had here; no images; more devices
            than there are; not even one parameter, or not the sketch, fits in the memory given; a
            sketch of no or too many dimensions; no generator where one is needed; gradients that
            are not finite, with the layer and the images.
    """
    request = Request(kind, probes, precision, chunk, memory_gib, devices)
    model = cast(model, precision)
    images = np.asarray(images, dtype_of(precision))
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    problem = problem_of(model, image, len(images), len(images), request, rng)
    if sketch is None:
        made = planned(problem, request)
        told = Progress(problem, made, progress)
        values, _ = swept(model, images, problem, made, told, devices, scratch)
        values *= problem.directions.scale
    else:
        values = _sketched(model, images, problem, sketch, request, rng, progress, scratch)
    if problem.directions.square:
        classes = problem.rows_an_example
        values = values.reshape(len(images), classes, len(images), classes)
    return Kernel(values, precision)


def _sketched(model, images, problem: Problem, sketch, request: Request, rng, progress, scratch):
    """The kernel of sketched gradients, whole."""
    chunk = sketch_chunk(problem, request, sketch, problem.result_bytes)
    least = problem.result_bytes + sketch_bytes(problem, sketch, chunk)
    if least / GIB > request.memory_gib:
        needed = enough(float(least))
        raise KernelError(
            f"the sketched kernel of {len(images):,} images needs {needed} GiB and "
            f"{request.memory_gib:g} GiB are given: give {needed} GiB, or lower the sketch, "
            "the chunk or the number of images."
        )
    own = (model, images, problem, sketch, chunk, rng, progress, request.devices, scratch)
    return gram(sketched(*own).features.reshape(len(images) * problem.rows_an_example, -1))


def gram(rows: Float[jax.Array | np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows rows"]:
    """J Jᵀ in float64, contracted in J's own dtype, on the device that there is."""
    if jax.default_backend() == "cpu":
        values = np.zeros((len(rows), len(rows)))
        add_gram(values, np.asarray(rows))
        return values
    there = jnp.asarray(rows)  # rows that NumPy holds would be multiplied by the host
    return np.asarray(jnp.matmul(there, there.T, precision="highest"), np.float64)
