"""One network as it is measured: its mirror in JAX, logits, loss gradients and kernel.

From a module in eval mode to arrays, each computed when it is first asked for, and once.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torch import nn

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from experiments.dynamics.subject import Subject
from kernel.contract import Scratch, key_of, planned, sketch_bytes, sketch_chunk
from kernel.covariance import Kernel
from kernel.diagnostics import normalised
from kernel.dynamics import Measured, cotangents, measure
from kernel.errors import KernelError
from kernel.gradients import squared_length, total
from kernel.model import Model, Params, dtype_of
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import GIB, cast, enough, problem_of
from pipelines.progress import Stages, generator, numbered
from pipelines.strategies.base import PROBE
from trainer.predict import logits

# Matrices of the size of the kernel between images that measuring holds beside it.
_BESIDE = 3


@dataclass(frozen=True)
class State:
    """A network at some point of its training.

    Attributes:
        subject: whose images it is measured on.
        network: in eval mode.
        untrained: the mirror of the network with any weights.
        stages: where time and progress are noted.
        scratch: where an interrupted kernel goes on; None keeps nothing.
    """

    subject: Subject
    network: nn.Module
    untrained: Mirror
    stages: Stages
    scratch: Path | None = None

    @cached_property
    def mirror(self) -> tuple[Mirror, dict[str, Any]]:
        """The mirror with the network's weights, and its certificate, JSON-able."""
        with self.stages("certificate"):
            own = self.untrained.with_weights(weights_of(self.network))
            probe = self.subject.images[-PROBE:]
            return own, certify(self.network, own, probe).summary()

    @cached_property
    def model(self) -> Model:
        """What gradients are taken of."""
        return cast(self.mirror[0].model(), self.subject.config.precision)

    @cached_property
    def logits(self) -> np.ndarray:
        """Float32 (labelled + candidates, classes)."""
        with numbered(self.subject.both):
            return logits(self.network, self.subject.images)

    @cached_property
    def cotangents(self) -> np.ndarray:
        """∂ℓ/∂f, float64 (labelled + candidates, classes).

        Of labelled images with their labels; of candidates, which a query would not know the labels
        of, with their pseudo-labels.
        """
        count, loss = len(self.subject.labelled), self.subject.config.train.loss
        pseudo = self.logits.argmax(axis=1)
        labels = np.where(np.arange(len(pseudo)) < count, self.subject.labels, pseudo)
        return cotangents(self.logits, labels, loss)

    @cached_property
    def direction(self) -> Params:
        """g_S, the summed loss gradient of the labelled set."""
        count = len(self.subject.labelled)
        with numbered(self.subject.labelled):
            return total(self.model, self.subject.images[:count], self.cotangents[:count])

    @property
    def dynamics(self) -> float:
        """G(S) = ‖g_S‖²."""
        return squared_length(self.direction)

    @cached_property
    def measured(self) -> Measured:
        """‖g_u‖² and g_u·g_S of the candidates."""
        count, loss = len(self.subject.labelled), self.subject.config.train.loss
        with self.stages("gradients") as advance, numbered(self.subject.candidates):
            images, outputs = self.subject.images[count:], self.logits[count:]
            return measure(self.model, images, outputs, self.direction, loss, progress=advance)

    def best(self, size: int) -> np.ndarray:
        """The query of dynamicAL with γ = 2, its largest Δ: bool (candidates,)."""
        deltas = self.measured.delta()
        found = np.zeros(len(deltas), bool)
        found[np.argsort(-deltas, kind="stable")[:size]] = True
        return found

    @cached_property
    def kernel(self) -> Kernel:
        """Between labelled images, then candidates; divided by the mean of its diagonal."""
        config, images = self.subject.config, self.subject.images
        # the same stream at every state: they do not differ by its draws
        rng = generator(config.seed, "dynamics kernel")
        kept = Scratch()
        if self.scratch is not None:
            key = key_of((*self.model[1:], images), (config.request, config.sketch))
            kept = Scratch(self.scratch, key)
        with self.stages("kernel") as advance, numbered(self.subject.both):
            kernel = empirical_ntk(
                self.model,
                images,
                config.kind,
                probes=config.probes,
                sketch=config.sketch,
                rng=rng,
                precision=config.precision,
                memory_gib=config.memory_gib,
                progress=advance,
                scratch=kept,
            )
            return normalised(kernel)


def check_memory(
    model: Model, image: tuple[int, ...], examples: int, request: Request, sketch: int | None
) -> float:
    """GiB that the kernel and what is made of it take at their highest.

    Args:
        model: the network.
        image: shape of one image.
        examples: how many images there are.
        request: how the kernel is computed.
        sketch: dimensions that gradients are folded to.

    Raises:
        KernelError: more than the request allows.
    """
    one = jax.ShapeDtypeStruct(image, dtype_of(request.precision))
    rng = np.random.default_rng(0)  # which projections has no part in sizes
    problem = problem_of(cast(model, request.precision), one, examples, examples, request, rng)
    if sketch is None:
        computing = planned(problem, request).peak_bytes
    else:
        chunk = sketch_chunk(problem, request, sketch, problem.result_bytes)
        computing = problem.result_bytes + sketch_bytes(problem, sketch, chunk)
    needed = max(computing, problem.result_bytes + _BESIDE * 8 * examples**2)
    if needed > request.memory_gib * GIB:
        raise KernelError(
            f"the kernel of {examples:,} images, and what is measured with it, needs "
            f"{enough(float(needed))} GiB and {request.memory_gib:g} GiB are given: give as much "
            "as memory_gib, take fewer candidates (subset), or another kind than full."
        )
    return needed / GIB
