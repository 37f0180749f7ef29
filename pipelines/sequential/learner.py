"""The linearised network as a learner: labels go in one at a time, predictions come out.

From a linearisation and answers to G at candidates and test images after each of them, how far the
parameters have moved for it, and how far rounding has led astray (docs/sequential.md).

What training leaves to the linearised network: a kernel, logits, the labels it was trained on.

From these to a posterior at the candidates and at test images, or to the same of a few of them.
Candidates are places 0, 1, … among a kernel's images after the labelled ones; test images follow
them, are predicted and never queried.

What questions stand on and what was said to them: the state that is saved and restored.

Strategies of the sequential mode, by name: what each sees from where the labels are.

From a posterior of the linearised network to scores: every look-ahead criterion by its outlook;
random and the classical scores from the linearised network's own predictions.

The next question: which open candidate to ask for, and how the network stands while it is asked.

From the scores of a learner and what was said so far to one data-set index.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import entr

from bridge.weights import Weights
from kernel.covariance import Cross, Features, Given, Kernel
from kernel.lookahead import outlook, rebased
from kernel.options import CRITERIA, Options
from kernel.posterior import Posterior, absorb_block, posterior
from pipelines.errors import PipelineError
from pipelines.strategies.base import probabilities
from pipelines.strategies.options import KernelConfig, LookAheadConfig
from trainer.errors import lookup


@dataclass(frozen=True, eq=False)
class Linearisation:
    """What training left: all that the linearised network depends on.

    Attributes:
        kernel: between the labelled images, the candidates and the test images, in this order.
        targets: float64 (labelled, classes), one-hot.
        labelled_logits: f_L, float64 (labelled, classes).
        logits: float64 (candidates + tests, classes), of the network.
        sample: places of the candidates over which changes are summed.
        candidates: how many of the rows may be queried.
        keep: S is held; False streams it from features.
        ridge: λ, in units of the kernel.
    """

    kernel: Given
    targets: np.ndarray
    labelled_logits: np.ndarray
    logits: np.ndarray
    sample: np.ndarray
    candidates: int
    keep: bool = True
    ridge: float = 0.0

    def posterior(self) -> Posterior:
        """Given the labelled set; changes refer to G from the start.

        Raises:
            KernelError: as `kernel.posterior.posterior`.
        """
        made = posterior(
            self.kernel,
            self.targets,
            self.labelled_logits,
            self.logits,
            sample=self.sample,
            keep=self.keep,
            ridge=self.ridge,
        )
        return rebased(made)

    def only(self, candidates: np.ndarray, tests: np.ndarray) -> "Linearisation":
        """The same with a few candidates, all of them in the sample, and a few test images.

        Args:
            candidates: their places; for a kernel between anchors, of the sample.
            tests: their places.
        """
        labelled = len(self.targets)
        places = np.concatenate([candidates, tests])
        rows = np.concatenate([np.arange(labelled), labelled + places])
        return Linearisation(
            kernel=_between(self.kernel, rows, labelled + len(candidates), labelled, self.sample),
            targets=self.targets,
            labelled_logits=self.labelled_logits,
            logits=self.logits[places],
            sample=np.arange(len(candidates)),
            candidates=len(candidates),
            ridge=self.ridge,
        )


def _between(
    kernel: Given, rows: np.ndarray, anchors: int, labelled: int, sample: np.ndarray
) -> Given:
    """The kernel of some of its images; the first of them are the anchors of a `Cross`."""
    if isinstance(kernel, Features):
        return Features(kernel.values[rows], kernel.precision)
    if isinstance(kernel, Cross):
        own = rows[:anchors].copy()  # anchors lie in the order of the sample
        own[labelled:] = labelled + np.searchsorted(sample, own[labelled:] - labelled)
        values = kernel.values[np.ix_(own, rows)]
        return Cross(values, kernel.diagonal[rows], kernel.precision)
    values = kernel.values[rows]
    return Kernel(values[:, :, rows] if values.ndim == 4 else values[:, rows], kernel.precision)


class Event(NamedTuple):
    """What was said of an image, by its data-set index: a label, or None to set it aside."""

    image: int
    label: int | None


@dataclass(frozen=True, eq=False)
class Grounds:
    """What an asker stands on; nothing of it changes with an answer.

    Attributes:
        linearisation: what training left.
        candidates: data-set indices, in the order of the places.
        labelled: {data-set index: class} that the network was trained on.
        test_labels: of the test images; empty without any.
        classes: how many there are.
        norm: ‖θ‖ of the trainable parameters.
        strategy: how the next image is chosen.
        options: of look-ahead criteria.
        loss: of the training.
        seed: of the random strategy and of ties.
        diagnostics: of the kernel, JSON-able.
        weights: of the network.
    """

    linearisation: Linearisation
    candidates: np.ndarray
    labelled: Mapping[int, int]
    test_labels: np.ndarray
    classes: int
    norm: float
    strategy: str
    options: Options
    loss: str
    seed: int
    diagnostics: dict[str, Any]
    weights: Weights


LOOKED_AT = 8  # candidates, and as many test images, at which rounding is measured
CHECK_EVERY = 25  # answers from one measurement of rounding to the next
TOLERANCE = 1e-6  # rounding beyond which everything is factorised anew


class View(Protocol):
    """What a strategy sees from where the labels are; `kernel.lookahead.Outlook` is one."""

    @property
    def posterior(self) -> Posterior:
        """Given the labels so far."""
        ...

    def scores(self) -> np.ndarray:
        """One score a place, higher = query first."""
        ...

    def absorb(self, candidates: np.ndarray, label_rows: np.ndarray) -> "View":
        """The view with the true labels of some candidates; this one is consumed."""
        ...


Viewer = Callable[[Given, Posterior, np.ndarray], View]
"""Kernel, posterior and the one-hot labels of the labelled set → what a strategy sees."""


class Answer(NamedTuple):
    """A label that was given: the place of the candidate, the class."""

    place: int
    label: int


class Learner:
    """A linearised network that has absorbed some answers.

    It follows from the linearisation and the answers, in their order, to the last bit: one that is
    made again and told the same is the same.

    Attributes:
        start: what training left.
        answers: absorbed so far, in their order.
        view: what the strategy sees from here.
        moved: ‖Δθ‖², how far the linearised network's parameters have gone since the training for
            the sake of the answers: the sum of (y − G_q)ᵀ(S_qq + λI)⁻¹(y − G_q), to which a
            determined candidate adds nothing.
        rounding: as last measured, by `measure`.
        refreshed: how often rounding was above the tolerance and everything factorised anew.
    """

    def __init__(
        self,
        start: Linearisation,
        viewer: Viewer,
        answers: Sequence[Answer] = (),
        tolerance: float = TOLERANCE,
    ):
        """Condition on the labelled set, then absorb answers one by one.

        Args:
            start: what training left.
            viewer: makes what the strategy sees.
            answers: those to begin with.
            tolerance: rounding beyond which everything is factorised anew.

        Raises:
            KernelError: as `kernel.posterior.posterior` and `kernel.posterior.absorb_block`.
        """
        self.start = start
        self.answers: list[Answer] = []
        self.moved, self.rounding, self.refreshed = 0.0, 0.0, 0
        self._viewer, self._tolerance = viewer, tolerance
        self.view = self._afresh()
        for answer in answers:
            self.tell(answer)

    @property
    def predictions(self) -> np.ndarray:
        """G, float64 (candidates + tests, classes)."""
        return self.view.posterior.predictions

    @property
    def determined(self) -> np.ndarray:
        """Of which places no label could change anything any more, bool (candidates + tests,)."""
        rows = np.asarray(self.view.posterior.determined).reshape(len(self.start.logits), -1)
        return np.all(rows, axis=1)

    def tell(self, answer: Answer) -> None:
        """Absorb one answer; now and then measure rounding, and refresh past the tolerance.

        Raises:
            KernelError: as `kernel.posterior.absorb_block`.
        """
        self.moved += self._step(answer)
        self.answers.append(answer)
        self.view = self.view.absorb(*self._rows([answer]))
        if len(self.answers) % CHECK_EVERY == 0:
            self.rounding = self.measure()
            if self.rounding > self._tolerance:
                del self.view  # so that there are never two of them in memory
                self.view = self._afresh()
                self.refreshed += 1

    def measure(self) -> float:
        """How far rounding has led the recursion from what factorising anew gives.

        At a few candidates and test images: the largest difference of S, in units of the largest s
        before any answer, or of G, in units of its largest entry or of 1.
        """
        start = self.start
        told = np.array(list(dict.fromkeys(answer.place for answer in self.answers)), np.int64)
        others = np.setdiff1d(start.sample, told)
        few = others[np.unique(np.linspace(0, len(others), LOOKED_AT, endpoint=False).astype(int))]
        ends = np.linspace(start.candidates, len(start.logits), LOOKED_AT, endpoint=False)
        tests = np.unique(ends[: len(start.logits) - start.candidates].astype(np.int64))
        asked = np.concatenate([told, few])
        small = start.only(asked, tests).posterior()
        scale = max(float(small.variance.max(initial=0.0)), np.finfo(np.float64).tiny)
        own = {place: number for number, place in enumerate(asked.tolist())}
        _, label_rows = self._rows(self.answers)
        small = absorb_block(
            small, np.array([own[answer.place] for answer in self.answers]), label_rows
        )
        current = self.view.posterior
        places = np.concatenate([asked, tests])
        each = len(current.variance) // len(start.logits)  # rows of a place
        rows, small_rows = _rows(places, each), np.arange(len(places) * each)
        columns = _rows(few, each), _rows(np.arange(len(told), len(asked)), each)
        pairs = [
            (current.variance[rows], small.variance, scale),
            (
                current.covariance.columns(columns[0])[rows],
                small.covariance.columns(columns[1])[small_rows],
                scale,
            ),
            (
                current.predictions[places],
                small.predictions,
                max(1.0, float(np.abs(small.predictions).max())),
            ),
        ]
        return max(float(np.abs(a - b).max(initial=0.0)) / unit for a, b, unit in pairs)

    def _step(self, answer: Answer) -> float:
        """(y − G_q)ᵀ(S_qq + λI)⁻¹(y − G_q), over the directions that are not determined."""
        posterior = self.view.posterior
        each = len(posterior.variance) // len(posterior.logits)
        rows = _rows(np.array([answer.place]), each)
        residual = np.eye(posterior.logits.shape[1])[answer.label]
        residual = residual - posterior.predictions[answer.place]
        is_open = ~posterior.determined[rows]
        if not is_open.any():
            return 0.0
        if each == 1:
            return float(residual @ residual / (posterior.variance[rows[0]] + posterior.ridge))
        block = posterior.covariance.columns(rows)[rows][np.ix_(is_open, is_open)]
        block = block + posterior.ridge * np.eye(len(block))
        return float(residual[is_open] @ np.linalg.solve(block, residual[is_open]))

    def _afresh(self) -> View:
        """From the kernel, with all answers in one block."""
        view = self._viewer(self.start.kernel, self.start.posterior(), self.start.targets)
        return view.absorb(*self._rows(self.answers)) if self.answers else view

    def _rows(self, answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
        """Places and one-hot labels."""
        classes = self.start.targets.shape[1]
        places = np.array([answer.place for answer in answers], np.int64)
        return places, np.eye(classes)[[answer.label for answer in answers]]


def _rows(places: np.ndarray, each: int) -> np.ndarray:
    """Rows of S of some places: one each, or one a class for the kind `full`."""
    return (np.asarray(places, np.int64)[:, None] * each + np.arange(each)).reshape(-1)


PLAIN: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "entropy": lambda p: entr(p).sum(axis=1),
        "margin": lambda p: -np.diff(np.sort(p, axis=1)[:, -2:], axis=1)[:, 0],
        "least_confident": lambda p: 1 - p.max(axis=1),
    }
)
NAMES = (*CRITERIA, "random", *PLAIN)


@dataclass(frozen=True)
class Plain:
    """A strategy that looks at predictions only.

    Attributes:
        posterior: given the labels so far.
        score: G → one score a place.
    """

    posterior: Posterior
    score: Callable[[np.ndarray], np.ndarray]

    def scores(self) -> np.ndarray:
        """One score a place."""
        return self.score(self.posterior.predictions)

    def absorb(self, candidates: np.ndarray, label_rows: np.ndarray) -> "Plain":
        """With true labels."""
        return replace(self, posterior=absorb_block(self.posterior, candidates, label_rows))


def looks_ahead(strategy: str) -> bool:
    """Whether it asks what a label would change, so that determined candidates are of no use."""
    return strategy in CRITERIA


def options_of(
    strategy: str, lookahead: LookAheadConfig, kernel: KernelConfig, seed: int
) -> Options:
    """Of a strategy that asks one question at a time; what is said of batches is left aside.

    Raises:
        PipelineError: a criterion that this kernel does not serve.
    """
    if looks_ahead(strategy):
        replace(lookahead, batch="top").check(strategy, kernel)
    return lookahead.criterion_options(kernel.reference, seed)


def viewer(strategy: str, options: Options, loss: str, rng: np.random.Generator) -> Viewer:
    """What makes the views of a strategy.

    Args:
        strategy: one of `NAMES`.
        options: of look-ahead criteria.
        loss: of the training; it decides how predictions become probabilities.
        rng: draws the order of `random`, once.

    Raises:
        UnknownNameError: no such strategy.
    """
    lookup(dict.fromkeys(NAMES), strategy, "sequential strategy")
    if strategy in CRITERIA:
        return lambda kernel, posterior, targets: outlook(
            strategy, kernel, posterior, options, targets=targets
        )
    seed = int(rng.integers(2**63))

    def score(predictions: np.ndarray) -> np.ndarray:
        if strategy == "random":
            return np.random.default_rng(seed).random(len(predictions))
        return PLAIN[strategy](probabilities(predictions, loss))

    def make(kernel: Given, posterior: Posterior, targets: np.ndarray) -> View:
        del kernel, targets
        return Plain(posterior, score)

    return make


class Exhausted(PipelineError):
    """No candidate is left that is worth a question."""


class Question(NamedTuple):
    """Which image to label next.

    Attributes:
        image: its data-set index.
        score: the strategy's, higher = sooner; comparable with others at the same moment only.
        predicted: the class that the linearised network would give it.
    """

    image: int
    score: float
    predicted: int


class Standing(NamedTuple):
    """Where the linearised network stands.

    Attributes:
        labelled: how many labels it has, those of the training included.
        answered: how many since the training.
        foreseen: how many of these it predicted before it was told.
        accuracy: on the test images; None without any.
        drift: ‖Δθ‖/‖θ‖, how far its parameters have moved for the answers.
        rounding: the recursion's, as last measured; see `Learner.measure`.
        refreshed: how often it was above the tolerance and everything was factorised anew.
    """

    labelled: int
    answered: int
    foreseen: int
    accuracy: float | None
    drift: float
    rounding: float
    refreshed: int


def next_question(
    grounds: Grounds, events: Sequence[Event], learner: Learner, ties: np.ndarray
) -> Question:
    """The open candidate with the highest score.

    Args:
        grounds: what does not change with an answer.
        events: what was said since the training.
        learner: stands where they led.
        ties: (candidates,), an order by which equal scores are broken.

    Raises:
        Exhausted: every candidate is labelled, set aside or determined by the labels so far.
        PipelineError: scores that are not numbers.
    """
    candidates = grounds.candidates
    said = {event.image for event in events}
    is_open = np.array([index not in said for index in candidates.tolist()], bool)
    if not is_open.any():
        raise Exhausted(
            f"all {len(candidates)} candidates are labelled or set aside: train again to draw "
            "others."
        )
    if looks_ahead(grounds.strategy):
        left = int(is_open.sum())
        is_open &= ~learner.determined[: len(candidates)]
        if not is_open.any():
            raise Exhausted(
                f"the labels so far determine all {left} candidates that are left (they are "
                "duplicates, or the kernel has no more directions), so that look-ahead cannot "
                "tell them apart: train again, choose another kernel kind, or a larger sketch."
            )
    scores = np.asarray(learner.view.scores(), np.float64)[: len(candidates)]
    if np.isnan(scores[is_open]).any():
        bad = candidates[is_open & np.isnan(scores)][:5].tolist()
        raise PipelineError(f"the scores of images {bad} are not numbers.")
    best = int(np.lexsort((ties, -scores, ~is_open))[0])
    predicted = int(learner.predictions[best].argmax())
    return Question(int(candidates[best]), float(scores[best]), predicted)
