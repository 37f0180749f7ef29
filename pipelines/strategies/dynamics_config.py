"""The settings of dynamicAL, checked when they are made."""

import math
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import PipelineError
from trainer.tables import lookup

BATCHES = ("top", "dissimilar")


@dataclass(frozen=True)
class DynamicsConfig:
    """How the strategy dynamical scores candidates, and how a batch is made of the scores.

    Attributes:
        gamma: γ of Δ = ‖g_u‖² + γ g_u·g_S, 0 or more; inf is the inner product alone. With the
            paper's 2 it is exactly what the candidate would add to the training dynamics.
        batch: top takes the highest scores (the paper's); dissimilar, which is not the paper's,
            takes one after another, each score less the share of it that a pick has already.
        sketch: of dissimilar: dimensions that gradients are folded to before they are compared.
        precision: of gradients and their lengths.
        chunk: images differentiated at a time; None chooses for the machine.
    """

    gamma: Literal["inf"] | float = 2.0
    batch: Literal["top", "dissimilar"] = "top"
    sketch: int = 1024
    precision: Literal["float32", "float64"] = "float32"
    chunk: int | None = None

    def __post_init__(self):
        """Refuse what nothing can be computed with.

        Raises:
            UnknownNameError: a batch mode or a precision that is not there.
            PipelineError: a number out of range.
        """
        if self.gamma == math.inf:
            object.__setattr__(self, "gamma", "inf")  # JSON has no infinity
        if self.gamma != "inf" and (isinstance(self.gamma, str) or not self.gamma >= 0):
            raise PipelineError(f"dynamics.gamma must be 0 or more, or inf, not {self.gamma}.")
        lookup(dict.fromkeys(BATCHES), self.batch, "batch mode of dynamical")
        lookup(dict.fromkeys(("float32", "float64")), self.precision, "precision")
        for name in ("sketch", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PipelineError(f"dynamics.{name} must be 1 or more, not {value}.")

    @property
    def weight(self) -> float:
        """γ as a number."""
        return math.inf if self.gamma == "inf" else float(self.gamma)
