"""The settings of the look-ahead kernel, checked when they are made."""

from dataclasses import dataclass
from typing import Literal

from kernel.engine.problem import Request
from kernel.lookahead import REFERENCES
from kernel.ntk import KINDS, PRECISIONS, PROBES
from pipelines.errors import PipelineError
from trainer.tables import lookup


@dataclass(frozen=True)
class KernelConfig:
    """How look-ahead strategies compute and use the kernel.

    Attributes:
        kind: single (∇f¹·∇f¹, the paper's text), sum, trace (C times the cost), rademacher (trace
            by random projections, `probes` times the cost) or full (C² times the memory).
        probes: projections of the logits that rademacher takes.
        sketch: dimensions that gradients are folded to before they are contracted; None keeps them
            whole. The error is about 1/√sketch; memory and products shrink to sketch columns.
        sample: candidates, drawn anew each cycle, over which the change of the network is summed;
            None sums over all of them. The kernel is then computed between these and all others
            only, for pools whose whole kernel does not fit.
        reference: MLMOC compares with the trained network (`network`, the paper's) or with the
            linearised network fitted to the labels (`linearised`, free of drift).
        ridge: λ ≥ 0 added to the diagonal of the labelled block, in units of the kernel.
        precision: of gradients and their contraction; factorisations are in float64 always. tf32
            is for NVIDIA GPUs: gradients in float32, products between images in TF32.
        memory_gib: what kernel and posterior may take beyond what is in memory before; less means
            more passes, never another result, and too little is refused beforehand.
        chunk: images differentiated at a time; None chooses for the machine.
        devices: how many GPUs or other devices the kernel is spread over; None for all.
    """

    kind: Literal["single", "sum", "trace", "rademacher", "full"] = "single"
    probes: int = PROBES
    sketch: int | None = None
    sample: int | None = None
    reference: Literal["network", "linearised"] = "network"
    ridge: float = 0.0
    precision: Literal["float32", "float64", "tf32"] = "float32"
    memory_gib: float = 4.0
    chunk: int | None = None
    devices: int | None = None

    def __post_init__(self):
        """Refuse values that no kernel can be computed with."""
        lookup(dict.fromkeys(KINDS), self.kind, "kernel kind")
        lookup(dict.fromkeys(REFERENCES), self.reference, "reference")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        for name in ("sketch", "sample", "chunk", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PipelineError(f"kernel.{name} must be 1 or more, or none, not {value}.")
        for name, least in (("ridge", 0), ("probes", 1)):
            if getattr(self, name) < least:
                raise PipelineError(
                    f"kernel.{name} must be {least} or more, not {getattr(self, name)}."
                )
        if not self.memory_gib > 0:
            raise PipelineError(f"kernel.memory_gib must be above 0, not {self.memory_gib}.")
        if self.precision == "tf32" and self.sketch is not None:
            raise PipelineError(
                "kernel.precision is tf32, which is for products between whole gradients, and "
                "kernel.sketch leaves none: use float32, or no sketch."
            )

    @property
    def request(self) -> Request:
        """What the kernel engine is asked for."""
        return Request(
            self.kind, self.probes, self.precision, self.chunk, self.memory_gib, self.devices
        )
