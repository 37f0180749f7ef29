"""What every strategy is given, what it returns, and how the best candidates are picked.

Indices are those of the whole data set everywhere; a strategy never sees places in a subset.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from bridge.mirror import Mirror
from pipelines.errors import PipelineError
from pipelines.numbered import numbered
from pipelines.stages import Stages
from pipelines.strategies.albl_config import ALBLConfig
from pipelines.strategies.bald_config import BaldConfig
from pipelines.strategies.baseline_config import BaselineConfig
from pipelines.strategies.dynamics_config import DynamicsConfig
from pipelines.strategies.held import PROBE, Held, Pair, T, predicted
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.lookahead_config import LookAheadConfig
from pipelines.strategies.probabilities import probabilities
from trainer.networks.loss_prediction import LossPrediction
from trainer.piecewise import Piecewise
from trainer.predict import logits
from trainer.train_config import TrainConfig

__all__ = ["PROBE", "Query", "Situation", "Strategy", "top"]


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
        candidates: int64 (candidates,), data-set indices that may be queried, ascending.
        images: data-set indices → images as the network takes them, float32.
        mirror: the certified JAX mirror of the network and its certificate, JSON-able.
        kernel: how a look-ahead kernel is computed.
        stages: where time, memory and progress are noted.
        network: the trained network itself, in eval mode; whoever trains it on trains a copy.
        train: how it was trained.
        folder: where a kernel keeps its finished chunks; None keeps none.
        ask: data-set indices → their true labels, while a batch is being chosen; None where
            nobody answers before the batch is complete.
        lookahead: how candidates are looked ahead from, and how a batch is made of the scores.
        baseline: how the look-ahead baselines are computed.
        dynamics: how dynamicAL scores candidates, and how it makes a batch.
        bald: how BALD samples what the network might answer.
        albl: which strategies ALBL chooses between, and how it learns.
        history: the earlier rounds, first to last: `indices`, `diagnostics` and what else the
            record of a run has of them.
        companion: the loss prediction module that was trained along; None where none was.
        test: test images by their places, as the network takes them, and all their labels, on
            which a model that is not the network can be tried; None where there are none.
        shared: the seed of what strategies that are asked together all read, such as a kernel's
            projections; None where one is asked alone, which may use its arrays up.
        answered: f_L and f_U, float32 (labelled, classes) and (candidates, classes), where they are
            known already; None asks the network when somebody looks at them.
        held: what `once` keeps; copies by `dataclasses.replace` hold the same.
    """

    labelled: np.ndarray
    labels: np.ndarray
    candidates: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]
    mirror: Callable[[], tuple[Mirror, dict[str, Any]]]
    kernel: KernelConfig
    stages: Stages
    network: nn.Module
    train: TrainConfig
    folder: Path | None = None
    ask: Callable[[np.ndarray], np.ndarray] | None = None
    lookahead: LookAheadConfig = LookAheadConfig()
    baseline: BaselineConfig = BaselineConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    bald: BaldConfig = BaldConfig()
    albl: ALBLConfig = ALBLConfig()
    history: tuple[Mapping[str, Any], ...] = ()
    companion: LossPrediction | None = None
    test: tuple[Callable[[np.ndarray], np.ndarray], np.ndarray] | None = None
    shared: int | None = None
    answered: Pair | None = None
    held: Held = field(default_factory=Held, repr=False, compare=False)

    def __post_init__(self):
        """Refuse logits that no strategy can make scores of.

        Raises:
            PipelineError: some are not finite.
        """
        both = (self.labelled, self.candidates)
        for indices, rows in zip(both, self.answered or (), strict=self.answered is not None):
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                raise PipelineError(
                    f"the logits of images {indices[~finite][:5].tolist()} are not finite: train "
                    "the network anew, with a lower learning rate if that is why."
                )

    def once(self, need: str, make: Callable[[], T]) -> T:
        """What was computed for a need in this round, by `make` if nobody asked before.

        It is of this network, these labelled images and these candidates: a copy of the situation
        with others of them computes its own.
        """
        return self.held.once(need, (self.network, self.labelled, self.candidates), make)

    def logits(self) -> Pair:
        """f_L, float32 (labelled, classes), and f_U, (candidates, classes), eval-mode logits.

        Raises:
            NetworkError: the network does not return one row of finite logits an image.
        """
        return self.labelled_logits, self.candidate_logits

    @property
    def labelled_logits(self) -> np.ndarray:
        """f_L."""
        if self.answered is not None:
            return self.answered[0]
        return self.once("labelled logits", lambda: self._predicted(self.labelled))

    @property
    def candidate_logits(self) -> np.ndarray:
        """f_U."""
        if self.answered is not None:
            return self.answered[1]
        return self.once("candidate logits", lambda: self._predicted(self.candidates))

    def _predicted(self, indices: np.ndarray) -> np.ndarray:
        with self.stages("predict"), numbered(indices):
            return logits(self.network, Piecewise(self.images, indices))

    @property
    def probabilities(self) -> np.ndarray:
        """p, float64 (candidates, classes), by the rule that fits the loss."""
        return probabilities(self.candidate_logits, self.train.loss)

    def features(self) -> Pair:
        """Penultimate features h_L, float32 (labelled, width), and h_U, (candidates, width).

        Raises:
            NetworkError: no layer makes the logits (`trainer.penultimate.find_head`).
        """

        def make() -> Pair:
            with self.stages("predict"):
                return predicted(self.network, self.images, self.labelled, self.candidates)[1]

        return self.once("features", make)


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
