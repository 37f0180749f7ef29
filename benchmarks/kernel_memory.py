"""Peak memory of one kernel against its prediction, each in a process of its own.

From a network, a number of images and a budget to GiB predicted and measured.
"""

from typing import NamedTuple

import jax
import numpy as np
from torch import nn

from benchmarks.measuring import apart, watched
from bridge.trace import mirror
from kernel.estimate import estimate_cost
from kernel.model import Model
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import plan_kernel
from trainer.fit import keep_freed_blocks
from trainer.networks import build

ARGUMENTS = {"wide_resnet": {"stages": 1, "widen": 4}}
GREY = {"wide_resnet"}  # networks of one channel and 28 pixels a side; the others take 3 and 32
CLASSES = 10


class Taken(NamedTuple):
    """Memory of one kernel in GiB.

    Attributes:
        budget: what was given.
        passes: with which it was computed.
        predicted: by the plan.
        first: measured, with all that is compiled on the way.
        again: measured the second time.
    """

    budget: float
    passes: int
    predicted: float
    first: float
    again: float


def case(
    name: str, images: int, seed: int, side: int | None
) -> tuple[nn.Module, Model, np.ndarray]:
    """A network with random weights, its mirror in float32 and normal images."""
    rng = np.random.default_rng(seed)
    channels, own = (1, 28) if name in GREY else (3, 32)
    shape = (channels, side or own, side or own)
    network = build(name, shape, CLASSES, rng, ARGUMENTS.get(name, {}))
    given = rng.standard_normal((images, *shape)).astype(np.float32)
    return network, mirror(network, given[:2]).astype("float32").model(), given


def taken(
    name: str, images: int, seed: int, side: int | None, budget: float, sketch: int | None
) -> Taken:
    """Measure one kernel in a new process."""
    return apart(_taken, name, images, seed, side, budget, sketch)


def _taken(
    name: str, images: int, seed: int, side: int | None, budget: float, sketch: int | None
) -> Taken:
    keep_freed_blocks()
    _, model, given = case(name, images, seed, side)
    request = Request(sketch=sketch, memory_gib=budget)
    plan = plan_kernel(model, jax.ShapeDtypeStruct(given.shape[1:], "float32"), images, request)
    estimate_cost(model, given[:2], plan)  # compiles and runs one chunk, as a dry run does

    def kernel() -> None:
        rng = np.random.default_rng(seed)
        empirical_ntk(model, given, request, rng=rng)

    peaks = [watched(kernel)[1].grown for _ in range(2)]
    return Taken(budget, max(len(plan.passes), 1), plan.peak_gib, *peaks)
