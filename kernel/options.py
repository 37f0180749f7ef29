"""Settings of a kernel and of look-ahead criteria, and the names that they may take.

Imports no JAX: a command line is parsed and refused before JAX is loaded.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kernel.errors import KernelError

Kind = Literal["single", "sum", "trace", "rademacher", "full"]
KINDS: tuple[Kind, ...] = ("single", "sum", "trace", "rademacher", "full")
# What a kernel is computed in; `tf32` has arrays of float32, of which an NVIDIA GPU multiplies the
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


class Request(NamedTuple):
    """How a kernel is to be computed.

    Attributes:
        kind: one of `KINDS`.
        probes: m, how many projections `rademacher` takes.
        precision: of gradients and contraction, one of `PRECISIONS`.
        chunk: images differentiated at a time; None chooses for the machine.
        memory_gib: GiB that it may take beyond what is in memory before.
        devices: how many it is spread over; None for all.
    """

    kind: str = "single"
    probes: int = PROBES
    precision: Precision = "float32"
    chunk: int | None = None
    memory_gib: float = 4.0
    devices: int | None = None


@dataclass(frozen=True)
class Options:
    """How criteria look ahead; each reads what it needs.

    Attributes:
        reference: a change of the outputs is one from the trained network, f_L (`network`), or from
            the linearised network fitted to the labels, f^lin_L (`linearised`). From the first
            true label on that is absorbed, both are the linearised network as it then is.
        labels: what label a candidate would get: by the projection of its logits on the simplex
            (`simplex`), their softmax(β·) (`softmax`), or the most likely one (`one_hot`). Read by
            EMOC and EER, and by UHerding without a temperature.
        beta: β > 0 of softmax(β·), of EER's entropies and of the rule `softmax`.
        uncertainty: of UHerding: 1 minus the `margin` of the two largest probabilities, or their
            `entropy`.
        temperature: of UHerding's probabilities softmax(·/temperature): `calibrated` on the
            labelled set; a number; None takes the rule `labels`.
        radius: of the coverage of MaxHerding and UHerding: None covers by the normalised kernel k̂
            itself; a number σ > 0 by exp(−(2 − 2k̂)/σ²); with `adaptive` σ is the smallest distance
            between different labelled images.
        clusters: of NTKCPL; None takes ten a class, and at most one for every two images.
        seed: of NTKCPL's clustering.
    """

    reference: str = "network"
    labels: str = "simplex"
    beta: float = BETA
    uncertainty: str = "margin"
    temperature: str | float | None = CALIBRATED
    radius: str | float | None = None
    clusters: int | None = None
    seed: int = 0

    def __post_init__(self):
        """Refuse what no criterion can be computed with.

        Raises:
            KernelError: an unknown name, or a number out of range.
        """
        _known("reference", self.reference, REFERENCES)
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
        if self.seed < 0:
            raise KernelError(f"seed must be 0 or more, not {self.seed}.")


def _known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise KernelError(f"unknown {name} {value!r}; known: {', '.join(known)}.")


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise KernelError(f"{name} must be a number above 0, not {value}.")
