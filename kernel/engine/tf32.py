"""TF32: products of float32 numbers of which an NVIDIA GPU multiplies the leading eleven bits.

From a request for it to the arithmetic of gradients and of the products between images, and from a
few images to the error that it makes in their kernel. Only those products are ever in TF32, and
only where it is asked for: gradients stay in float32.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from kernel.engine.devices import mesh
from kernel.engine.plan import plan
from kernel.engine.problem import Request, cast, chunk_of, problem_of
from kernel.engine.progress import Progress
from kernel.engine.sharded import sharded_sweep
from kernel.errors import KernelError
from kernel.kinds import PRECISIONS, Precision, dtype_of
from kernel.model import Model

# Images between which the error is measured, at most.
BLOCK = 64


class Arithmetic(NamedTuple):
    """What a kernel is computed in.

    Attributes:
        gradients: their dtype.
        products: precision of the products between images, for `jax.default_matmul_precision`.
    """

    gradients: Precision
    products: str


_ARITHMETIC: dict[str, Arithmetic] = {
    name: Arithmetic(dtype_of(name), "tensorfloat32" if name == "tf32" else "highest")
    for name in PRECISIONS
}


def arithmetic(name: str) -> Arithmetic:
    """The arithmetic of a name.

    Raises:
        KernelError: unknown name; TF32 where there is no GPU.
    """
    if name not in _ARITHMETIC:
        raise KernelError(f"unknown arithmetic {name!r}; known: {', '.join(_ARITHMETIC)}.")
    backend = jax.default_backend()
    if name == "tf32" and backend != "gpu":
        raise KernelError(
            f"TF32 is arithmetic of NVIDIA GPUs and this process computes on {backend!r}; use "
            "float32."
        )
    return _ARITHMETIC[name]


def product_error(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    request: Request,
    rng: np.random.Generator | None = None,
    *,
    quick: str = "tf32",
    exact: str = "float32",
) -> float:
    """How much a kernel in one arithmetic differs from the same in another.

    Args:
        model: the network.
        images: the first `BLOCK` of them are used.
        request: kind, probes, chunk and memory of the kernel; its precision has no part in it.
        rng: where random projections come from, the same for both.
        quick: the arithmetic judged.
        exact: that by which it is judged.

    Returns:
        ‖Θ_quick − Θ_exact‖_F / ‖Θ_exact‖_F.

    Raises:
        KernelError: an arithmetic that is unknown or not to be had here; whatever a kernel refuses.
    """
    both = [arithmetic(name) for name in (quick, exact)]
    some = images[:BLOCK]
    image = jax.ShapeDtypeStruct(some.shape[1:], "float32")
    # once, so that both have the same random projections
    problem = problem_of(cast(model, "float32"), image, len(some), len(some), request, rng)
    over: Mesh = mesh(1)
    found = []
    for own in both:
        stated = problem._replace(precision=own.gradients)
        made = plan(stated, request.memory_gib, min(chunk_of(request), len(some)))
        values, _ = sharded_sweep(
            cast(model, own.gradients),
            np.asarray(some, own.gradients),
            stated,
            made,
            Progress(stated, made, None),
            over,
            own.products,
        )
        found.append(values)
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))
