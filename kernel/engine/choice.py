"""Which engine computes: NumPy's products on one CPU, or the devices of a mesh.

From the same request to the same numbers either way, so that callers name only how many devices.
"""

import jax
import numpy as np
from jaxtyping import Float

from kernel.engine.devices import mesh_unless_host
from kernel.engine.plan import Plan, Problem
from kernel.engine.progress import Progress, Report
from kernel.engine.scratch import Scratch
from kernel.engine.sharded import sharded_sweep
from kernel.engine.sharded_sketches import sharded_sketches
from kernel.engine.sketches import Sketches, sketches
from kernel.engine.sweep import sweep
from kernel.engine.tf32 import arithmetic
from kernel.errors import KernelError
from kernel.model import Model


def swept(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
    devices: int | None = None,
    scratch: Scratch | None = None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """`kernel.engine.sweep.sweep` on so many devices; all if None.

    In the scratch devices of a mesh keep finished passes, and several processes nothing.

    Raises:
        KernelError: more devices than there are; a precision that is not to be had here; gradients
            that are not finite.
    """
    products = arithmetic(problem.precision).products
    mesh = mesh_unless_host(devices)
    if mesh is None:
        return sweep(model, images, problem, plan, progress, scratch)
    return sharded_sweep(model, images, problem, plan, progress, mesh, products, _own(scratch))


def sketched(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    buckets: int,
    chunk: int,
    rng: np.random.Generator | None,
    report: Report | None = None,
    devices: int | None = None,
    scratch: Scratch | None = None,
) -> Sketches:
    """`kernel.engine.sketches.sketches` on so many devices; all if None.

    Several processes keep nothing in the scratch.

    Raises:
        KernelError: more devices than there are; TF32, of whose products a sketch has none; a
            sketch of no or too many dimensions; no generator; gradients that are not finite.
    """
    if problem.precision == "tf32":
        raise KernelError(
            "TF32 is for products between whole gradients, and a sketch has none: use float32 "
            "with a sketch."
        )
    mesh = mesh_unless_host(devices)
    if mesh is None:
        return sketches(model, images, problem, buckets, chunk, rng, report, scratch)
    return sharded_sketches(
        model, images, problem, buckets, chunk, rng, report, mesh, _own(scratch)
    )


def _own(scratch: Scratch | None) -> Scratch | None:
    """None where processes would write over each other, or differ in what they take up."""
    return scratch if jax.process_count() == 1 else None
