"""Settings of a kernel and of look-ahead criteria, and the names that they may take.

Imports no JAX: a command line is parsed and refused before JAX is loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

from kernel.errors import KernelError

Kind = Literal["single", "sum", "trace", "rademacher", "full"]
KINDS: tuple[Kind, ...] = ("single", "sum", "trace", "rademacher", "full")
# Arithmetic of a kernel; `tf32` has arrays of float32, of which an NVIDIA GPU multiplies the
# leading eleven bits in the products between images.
Precision = Literal["float32", "float64", "tf32"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float64", "tf32")
# Random projections of the logits for `rademacher`.
PROBES = 4

# Criteria that score candidates by what their labels would change (docs/mathematics.md, 4).
CRITERIA = (
    "mlmoc",
    "emoc",
    "eer",
    "flip",
    "ev_gp",
    "loss_change",
    "max_det",
    "max_herding",
    "uherding",
    "ntkcpl",
)
# Those that read the kernel too, or no more of S than columns: for them S is made when it is read.
STREAMED = frozenset({"max_det", "max_herding", "uherding", "ntkcpl"})
# Those that are greedy by themselves: each pick counts for the next.
GREEDY = frozenset({"max_det", "max_herding", "uherding"})

Reference = Literal["network", "linearised"]
REFERENCES: tuple[Reference, ...] = ("network", "linearised")
LabelRule = Literal["simplex", "softmax", "one_hot"]
LABEL_RULES: tuple[LabelRule, ...] = ("simplex", "softmax", "one_hot")
Uncertainty = Literal["margin", "entropy"]
UNCERTAINTIES: tuple[Uncertainty, ...] = ("margin", "entropy")
CALIBRATED, ADAPTIVE = "calibrated", "adaptive"
# Softmax of logits that estimate one-hot labels: a lead of 0.5 is odds of e⁵.
BETA = 10.0


@dataclass(frozen=True)
class Request:
    """How a kernel is computed.

    Attributes:
        kind: single (∇f¹·∇f¹, the paper's text), sum, trace (C times the cost), rademacher (trace
            by random projections, `probes` times the cost) or full (C² times the memory).
        probes: projections of the logits that rademacher takes.
        precision: of gradients and their contraction; factorisations are in float64 always. tf32
            is for NVIDIA GPUs: gradients in float32, products between images in TF32.
        sketch: dimensions that gradients are folded to before they are contracted; None keeps them
            whole. The error is about 1/√sketch; memory and products shrink to sketch columns.
        chunk: images differentiated at a time; None chooses for the machine.
        memory_gib: what kernel and posterior may take beyond what is in memory before; less means
            more passes, never another result, and too little is refused beforehand.
        devices: how many GPUs or other devices the kernel is spread over; None for all.
    """

    kind: Kind = "single"
    probes: int = PROBES
    precision: Precision = "float32"
    sketch: int | None = None
    chunk: int | None = field(default=None, metadata={"identity": False})
    memory_gib: float = field(default=4.0, metadata={"identity": False})
    devices: int | None = field(default=None, metadata={"identity": False})


@dataclass(frozen=True)
class CriterionOptions:
    """How look-ahead criteria score candidates; each reads what it needs.

    Attributes:
        labels: what label a candidate would get, for emoc and eer (and for uherding without a
            temperature): by the projection of its logits on the simplex, by softmax(beta·), or
            the most likely one alone (one_hot).
        beta: of softmax(beta·), for the rule softmax and for the entropies of eer.
        uncertainty: of uherding: 1 − (p₁ − p₂) or the entropy.
        temperature: of uherding's probabilities: calibrated on the labelled set, or a number; None
            takes the rule of `labels`.
        radius: of the coverage of max_herding and uherding: None covers by the normalised kernel
            k̂ itself, a number σ by exp(−(2 − 2k̂)/σ²), adaptive by one as wide as the smallest
            distance between different labelled images.
        clusters: of ntkcpl; None takes ten a class, and at most one for every two images.
    """

    labels: LabelRule = "simplex"
    beta: float = BETA
    uncertainty: Uncertainty = "margin"
    temperature: Literal["calibrated"] | float | None = "calibrated"
    radius: Literal["adaptive"] | float | None = None
    clusters: int | None = None

    def __post_init__(self):
        """Refuse what no criterion can be computed with.

        Raises:
            KernelError: an unknown name, or a number out of range.
        """
        _known("rule of labels", self.labels, LABEL_RULES)
        _known("uncertainty", self.uncertainty, UNCERTAINTIES)
        _above_zero("beta", self.beta)
        for name, word in (("temperature", CALIBRATED), ("radius", ADAPTIVE)):
            value = getattr(self, name)
            if isinstance(value, str):
                _known(name, value, (word, "a number above 0", "none"))
            elif value is not None:
                _above_zero(name, value)
        if self.clusters is not None and self.clusters < 2:
            raise KernelError(f"clusters must be 2 or more, or none, not {self.clusters}.")


@dataclass(frozen=True)
class Options(CriterionOptions):
    """Inputs of a criterion in one query.

    Attributes:
        reference: a change of the outputs is one from the trained network, f_L (`network`), or from
            the linearised network fitted to the labels, f^lin_L (`linearised`). From the first
            true label on that is absorbed, both are the linearised network as it then is.
        seed: of ntkcpl's clustering.
    """

    reference: Reference = "network"
    seed: int = 0

    def __post_init__(self):
        """Refuse what no criterion can be computed with.

        Raises:
            KernelError: an unknown name, or a number out of range.
        """
        super().__post_init__()
        _known("reference", self.reference, REFERENCES)
        if self.seed < 0:
            raise KernelError(f"seed must be 0 or more, not {self.seed}.")


def _known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise KernelError(f"unknown {name} {value!r}; known: {', '.join(known)}.")


def _above_zero(name: str, value: float | int) -> None:
    if not 0 < value < float("inf"):
        raise KernelError(f"{name} must be a number above 0, not {value}.")
