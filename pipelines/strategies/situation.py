"""What every strategy is given, what it returns, and how the best candidates are picked.

Indices are those of the whole data set everywhere; a strategy never sees places in a subset.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from bridge.mirror import Mirror
from kernel.lookahead import REFERENCES
from kernel.ntk import KINDS
from pipelines.errors import PipelineError
from pipelines.stages import Stages
from trainer.tables import lookup


@dataclass(frozen=True)
class KernelConfig:
    """How look-ahead strategies compute and use the kernel.

    Attributes:
        kind: single (∇f¹·∇f¹, the paper's text), sum, trace (C times the cost) or full (C² times
            the memory).
        reference: MLMOC compares with the trained network (`network`, the paper's) or with the
            linearised network fitted to the labels (`linearised`, free of drift).
        ridge: λ ≥ 0 added to the diagonal of the labelled block, in units of the kernel.
        precision: of gradients and their contraction; factorisations are in float64 always.
        memory_gib: what the Jacobian may take; less means more passes, never another result.
        chunk: images differentiated at a time; few on a CPU, hundreds on a GPU.
    """

    kind: Literal["single", "sum", "trace", "full"] = "single"
    reference: Literal["network", "linearised"] = "network"
    ridge: float = 0.0
    precision: Literal["float32", "float64"] = "float32"
    memory_gib: float = 4.0
    chunk: int = 8

    def __post_init__(self):
        """Refuse values that no kernel can be computed with."""
        lookup(dict.fromkeys(KINDS), self.kind, "kernel kind")
        lookup(dict.fromkeys(REFERENCES), self.reference, "reference")
        lookup(dict.fromkeys(("float32", "float64")), self.precision, "precision")
        for name, least in (("ridge", 0), ("chunk", 1)):
            if getattr(self, name) < least:
                raise PipelineError(
                    f"kernel.{name} must be {least} or more, not {getattr(self, name)}."
                )
        if not self.memory_gib > 0:
            raise PipelineError(f"kernel.memory_gib must be above 0, not {self.memory_gib}.")


class Query(NamedTuple):
    """What to label next, and why.

    Attributes:
        indices: int64 (batch,), data-set indices, best first.
        scores: float64 (batch,), the score of each; higher = query first.
        candidates: int64 (candidates,), data-set indices of everything that was scored.
        candidate_scores: float64 (candidates,).
        diagnostics: what the strategy wants recorded, JSON-able.
    """

    indices: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray
    candidate_scores: np.ndarray
    diagnostics: dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """The state of the labelling that a strategy looks at.

    Attributes:
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,), the class of each.
        candidates: int64 (candidates,), data-set indices that may be queried.
        labelled_logits: f_L, float32 (labelled, classes).
        candidate_logits: f_U, float32 (candidates, classes).
        probabilities: p, float64 (candidates, classes), by the rule that fits the loss.
        images: data-set indices → images as the network takes them, float32.
        mirror: the certified JAX mirror of the network and its certificate, JSON-able.
        kernel: how a look-ahead kernel is computed.
        stages: where time, memory and progress are noted.
    """

    labelled: np.ndarray
    labels: np.ndarray
    candidates: np.ndarray
    labelled_logits: np.ndarray
    candidate_logits: np.ndarray
    probabilities: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]
    mirror: Callable[[], tuple[Mirror, dict[str, Any]]]
    kernel: KernelConfig = field(default_factory=KernelConfig)
    stages: Stages = field(default_factory=Stages)


class Strategy(Protocol):
    """Scores every candidate and picks a batch."""

    def __call__(self, situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        """Pick `batch_size` of the candidates; all its randomness is drawn from `rng`."""
        ...


def top(
    situation: Situation,
    scores: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    diagnostics: dict[str, Any] | None = None,
) -> Query:
    """The candidates with the highest scores; ties are broken at random, by the seed.

    Args:
        situation: holds the candidates.
        scores: (candidates,), higher = query first.
        batch_size: how many to pick.
        rng: breaks ties.
        diagnostics: what is recorded beside them.

    Raises:
        PipelineError: more are asked for than there are candidates, or a score is not a number.
    """
    with situation.stages("select"):
        return _top(
            situation.candidates, np.asarray(scores, np.float64), batch_size, rng, diagnostics
        )


def _top(candidates, scores, batch_size, rng, diagnostics) -> Query:
    if not 1 <= batch_size <= len(scores):
        raise PipelineError(
            f"a query of {batch_size} images was asked for and there are {len(scores)} candidates."
        )
    if np.isnan(scores).any():
        bad = candidates[np.isnan(scores)][:5].tolist()
        raise PipelineError(f"the scores of images {bad} are not numbers.")
    best = np.lexsort((rng.permutation(len(scores)), -scores))[:batch_size]
    return Query(
        indices=candidates[best],
        scores=scores[best],
        candidates=candidates,
        candidate_scores=scores,
        diagnostics=diagnostics or {},
    )
