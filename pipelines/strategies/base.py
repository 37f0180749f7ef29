"""From a network, images and what is labelled of them to what a strategy looks at.

What is computed once a round, whatever the number of strategies that need it.

From a need and a function to that function's result, and from a network and images to logits and
penultimate features of one forward pass.

From logits to class probabilities, by the rule that fits the loss of the training.

What every strategy is given, what it returns, and how the best candidates are picked.

Indices are those of the whole data set everywhere; a strategy never sees places in a subset.

A row of the strategy table: the function that chooses, and what it has to be given.

What is named in `needs` is checked before anything is trained, and computed once a round whatever
the number of strategies that ask for it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from scipy.special import softmax
from torch import nn

from bridge.mirror import Mirror
from kernel.probabilities import simplex_projection
from pipelines.errors import PipelineError
from pipelines.progress import Stages, numbered
from pipelines.strategies.options import (
    ALBLConfig,
    BaldConfig,
    BaselineConfig,
    DynamicsConfig,
    KernelConfig,
    LookAheadConfig,
)
from trainer.config import TrainConfig
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.predict import Piecewise, Predictions, find_head, logits, predictions, refuse_training

PROBE = 4  # images on which a mirror is certified, and the layer of the logits is looked for
T = TypeVar("T")
Pair = tuple[np.ndarray, np.ndarray]


class Held:
    """What was computed in a round for whichever strategies need it, the latest of each kind."""

    def __init__(self):
        """Nothing yet."""
        self._kept: dict[str, tuple[tuple[object, ...], Any]] = {}

    def once(self, need: str, of: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` gave for the need before, of these very objects, or gives now."""
        kept = self._kept.get(need)
        if kept is None or any(a is not b for a, b in zip(kept[0], of, strict=True)):
            kept = self._kept[need] = (of, make())
        return kept[1]


def probe_of(labelled: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """A few images of a query, int64."""
    return np.concatenate([candidates, labelled])[:PROBE]


def predicted(
    network: nn.Module,
    images: Callable[[np.ndarray], np.ndarray],
    labelled: np.ndarray,
    candidates: np.ndarray,
) -> tuple[Pair, Pair]:
    """Logits of the labelled images and the candidates, and penultimate features of the two.

    Raises:
        NetworkError: no layer makes the logits.
    """
    probe = probe_of(labelled, candidates)
    with numbered(probe):
        head = find_head(network, images(probe))

    def of(indices: np.ndarray) -> Predictions:
        with numbered(indices):
            return predictions(network, Piecewise(images, indices), head)

    logits, features = zip(of(labelled), of(candidates), strict=True)
    return logits, features


def probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
    """p(c|x), float64 (examples, classes): simplex projection for `l2`, softmax otherwise."""
    if loss == "l2":
        return simplex_projection(logits)
    return softmax(np.asarray(logits, np.float64), axis=1)


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
            NetworkError: no layer makes the logits (`trainer.predict.find_head`).
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


# What a strategy may need, and who computes it.
NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "logits": "logits of the labelled images and the candidates, by `Situation.logits`",
        "features": "penultimate features of both, in the same forward pass, by `situate`",
        "images": "the images themselves, through `Situation.images`",
        "kernel": "the mirror and its empirical NTK, by `lookahead.kernel_of`",
        "gradients": "the mirror and loss gradients through it, by `kernel.gradients`",
        "infinite": "a kernel of infinite width, by `infinite.analytic`",
        "training": "SGD on copies of the network, by the strategy itself",
        "dropout": "a network with dropout, of which `bald` draws passes",
        "hooks": "a module trained together with the network, by the strategy's own row",
        "draws": "random numbers for more than ties, so that scores are not of the images alone",
        "history": "the earlier rounds of this run, through `Situation.history`",
    }
)


@dataclass(frozen=True)
class Method:
    """A strategy and what it needs; it is called as the strategy itself.

    Attributes:
        choose: situation, batch size and generator → the query.
        needs: names of NEEDS.
    """

    choose: Strategy
    needs: frozenset[str]

    def __post_init__(self):
        """Refuse a need that nobody computes.

        Raises:
            ValueError: it is not in NEEDS.
        """
        unknown = self.needs - set(NEEDS)
        if unknown:
            raise ValueError(f"needs {sorted(unknown)} are not among {', '.join(NEEDS)}")

    def __call__(self, situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        """Choose a batch.

        Raises:
            PipelineError: none are asked for, or more than there are candidates.
        """
        candidates = len(situation.candidates)
        if not 1 <= batch_size <= candidates:
            raise PipelineError(
                f"a query of {batch_size} images was asked for and there are {candidates} "
                "candidates: ask for 1 to that many."
            )
        if "logits" in self.needs:
            situation.logits()  # before other stages, whose seconds are their own
        return self.choose(situation, batch_size, rng)


def method(choose: Strategy, *needs: str) -> Method:
    """A row, written shortly."""
    return Method(choose, frozenset(needs))


def situate(
    network: nn.Module,
    images: Callable[[np.ndarray], np.ndarray],
    pool: Pool,
    labels: np.ndarray,
    candidates: np.ndarray,
    *,
    train: TrainConfig,
    mirror: Callable[[np.ndarray], tuple[Mirror, dict[str, Any]]],
    kernel: KernelConfig,
    stages: Stages,
    needs: Set[str] = frozenset(),
    folder: Path | None = None,
    ask: Callable[[np.ndarray], np.ndarray] | None = None,
    lookahead: LookAheadConfig | None = None,
    baseline: BaselineConfig | None = None,
    dynamics: DynamicsConfig | None = None,
    bald: BaldConfig | None = None,
    albl: ALBLConfig | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    companion: LossPrediction | None = None,
    test: tuple[Callable[[np.ndarray], np.ndarray], np.ndarray] | None = None,
    shared: int | None = None,
) -> Situation:
    """Put together what a strategy looks at.

    Args:
        network: in eval mode.
        images: data-set indices → images as the network takes them.
        pool: what is labelled.
        labels: int64 (labelled,), the class of each of `pool.labelled`.
        candidates: data-set indices, in any order; the situation has them ascending, so that what
            is drawn for one of them does not depend on the order.
        train: how the network was trained; its loss decides how logits become probabilities.
        mirror: a probe batch → the mirror and its certificate; called only to look ahead.
        kernel: how they compute their kernel.
        stages: where time, memory and progress are noted.
        needs: of the strategies that will be asked, so that what can be had of one forward pass
            is; what is not named here and needed all the same is computed when it is.
        folder: where a kernel keeps its finished chunks; None keeps none.
        ask: data-set indices → their true labels, if they can be had while a batch is chosen.
        lookahead: how candidates are looked ahead from; the defaults if None.
        baseline: how the look-ahead baselines are computed; the defaults if None.
        dynamics: how dynamicAL scores candidates; the defaults if None.
        bald: how BALD samples; the defaults if None.
        albl: what ALBL chooses between; the defaults if None.
        history: the earlier rounds, for strategies that learn from them.
        companion: what was trained along with the network, if anything was.
        test: test images by their places, and their labels, if there are any.
        shared: the seed of what several strategies read; None if one is asked alone.

    Raises:
        NetworkError: the network is in train mode; features are needed and no layer makes its
            logits.
    """
    features, candidates = None, np.sort(candidates)
    refuse_training(network)
    answered = None
    if "features" in needs:
        with stages("predict"):
            answered, features = predicted(network, images, pool.labelled, candidates)
    probe = probe_of(pool.labelled, candidates)
    situation = Situation(
        labelled=pool.labelled,
        labels=labels,
        candidates=candidates,
        images=images,
        mirror=functools.cache(lambda: mirror(images(probe))),
        kernel=kernel,
        stages=stages,
        network=network,
        train=train,
        folder=folder,
        ask=ask,
        lookahead=lookahead or LookAheadConfig(),
        baseline=baseline or BaselineConfig(),
        dynamics=dynamics or DynamicsConfig(),
        bald=bald or BaldConfig(),
        albl=albl or ALBLConfig(),
        history=tuple(history),
        companion=companion,
        test=test,
        shared=shared,
        answered=answered,
    )
    if features is not None:
        situation.once("features", lambda: features)
    return situation
