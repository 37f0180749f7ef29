"""A linearised network that absorbs labels one at a time (docs/sequential.md).

Candidates are positions 0, 1, … among a kernel's images after the labelled ones; test images follow
them, are predicted and never queried.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

from bridge.weights import Weights
from kernel.covariance import AnyKernel, Cross, Features, Kernel
from kernel.criteria import AcquisitionState, PointwiseState, rebased
from kernel.lookahead import acquisition_state
from kernel.options import CRITERIA, Options
from kernel.posterior import Posterior, absorb, posterior
from pipelines.sequential.config import STRATEGIES
from pipelines.strategies.base import probabilities
from trainer.errors import lookup

CHECKED = 8  # candidates, and as many test images, at which rounding is measured
CHECK_EVERY = 25  # answers from one measurement of rounding to the next
TOLERANCE = 1e-6  # rounding beyond which everything is factorised anew


@dataclass(frozen=True, eq=False)
class Linearisation:
    """The linearised network after training: kernel, logits and labels.

    Attributes:
        kernel: between the labelled images, the candidates and the test images, in this order.
        targets: float64 (labelled, classes), one-hot.
        labelled_logits: f_L, float64 (labelled, classes).
        logits: float64 (candidates + tests, classes), of the network.
        sample: positions of the candidates over which changes are summed.
        candidates: how many of the rows may be queried.
        keep: S is kept in memory; False streams it from features.
        ridge: λ, in units of the kernel.
    """

    kernel: AnyKernel
    targets: np.ndarray
    labelled_logits: np.ndarray
    logits: np.ndarray
    sample: np.ndarray
    candidates: int
    keep: bool = True
    ridge: float = 0.0

    def posterior(self) -> Posterior:
        """The posterior given the labelled set; changes refer to G from the start.

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
        """The same with a few candidates, all of them in the sample, and tests, by position.

        For a kernel between anchors the candidates are of the sample.
        """
        labelled = len(self.targets)
        positions = np.concatenate([candidates, tests])
        rows = np.concatenate([np.arange(labelled), labelled + positions])
        return Linearisation(
            kernel=_submatrix(self.kernel, rows, labelled + len(candidates), labelled, self.sample),
            targets=self.targets,
            labelled_logits=self.labelled_logits,
            logits=self.logits[positions],
            sample=np.arange(len(candidates)),
            candidates=len(candidates),
            ridge=self.ridge,
        )


def _submatrix(
    kernel: AnyKernel, rows: np.ndarray, anchors: int, labelled: int, sample: np.ndarray
) -> AnyKernel:
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
    """A label of an image, by its data-set index; None sets the image aside."""

    image: int
    label: int | None


@dataclass(frozen=True, eq=False)
class SequentialState:
    """Start of a session; nothing of it changes with a label.

    Attributes:
        linearisation: as training left it.
        candidates: data-set indices, by position.
        labelled: {data-set index: class} that the network was trained on.
        test_labels: of the test images; empty without any.
        classes: how many there are.
        norm: ‖θ‖ of the trainable parameters.
        strategy: how the next image is chosen.
        options: of look-ahead criteria.
        loss: of the training.
        seed: of everything random.
        round_number: distinguishes the random streams of successive sessions.
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
    round_number: int
    diagnostics: dict[str, Any]
    weights: Weights


MakeAcquisition = Callable[[AnyKernel, Posterior, np.ndarray], AcquisitionState]
"""Kernel, posterior and one-hot labels of the labelled set → the strategy's state."""

_UNCERTAINTY: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "entropy": lambda p: entr(p).sum(axis=1),
        "margin": lambda p: -np.diff(np.sort(p, axis=1)[:, -2:], axis=1)[:, 0],
        "least_confident": lambda p: 1 - p.max(axis=1),
    }
)


def acquisition_of(
    strategy: str, options: Options, loss: str, rng: np.random.Generator
) -> MakeAcquisition:
    """A strategy by its name; `rng` draws the order of `random`, once.

    Raises:
        UnknownNameError: no such strategy.
    """
    lookup(dict.fromkeys(STRATEGIES), strategy, "sequential strategy")
    if strategy in CRITERIA:
        return lambda kernel, posterior, targets: acquisition_state(
            strategy, kernel, posterior, options, targets=targets
        )
    seed = int(rng.integers(2**63))

    def score(posterior: Posterior, options: Options) -> np.ndarray:
        predictions = posterior.predictions
        if strategy == "random":
            return np.random.default_rng(seed).random(len(predictions))
        return _UNCERTAINTY[strategy](probabilities(predictions, loss))

    return lambda kernel, posterior, targets: PointwiseState(posterior, options, score)


class Answer(NamedTuple):
    """A candidate's label: the position of the candidate, the class."""

    position: int
    label: int


class Learner:
    """A linearised network that has absorbed some answers.

    A function of the linearisation and the answers in their order, to the last bit.

    Attributes:
        linearisation: as training left it.
        answers: absorbed so far, in their order.
        acquisition: state of the strategy, given these answers.
        squared_change: ‖Δθ‖², of the least change of the linearised network's parameters that fits
            the answers; a determined candidate adds nothing.
        rounding: as last measured, by `measure`.
        refreshed: how often rounding was above the tolerance and everything factorised anew.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        make_acquisition: MakeAcquisition,
        answers: Sequence[Answer] = (),
        tolerance: float = TOLERANCE,
    ):
        """Condition on the labelled set, then absorb answers one by one.

        Raises:
            KernelError: as `kernel.posterior.posterior` and `kernel.posterior.absorb`.
        """
        self.linearisation = linearisation
        self.answers: list[Answer] = []
        self.squared_change, self.rounding, self.refreshed = 0.0, 0.0, 0
        self._make_acquisition, self._tolerance = make_acquisition, tolerance
        self.acquisition = self._factorise()
        for answer in answers:
            self.add_label(answer)

    @property
    def predictions(self) -> np.ndarray:
        """G, float64 (candidates + tests, classes)."""
        return self.acquisition.posterior.predictions

    @property
    def determined(self) -> np.ndarray:
        """Positions that no label could change any more, as bool (candidates + tests,)."""
        rows = np.asarray(self.acquisition.posterior.determined)
        return np.all(rows.reshape(len(self.linearisation.logits), -1), axis=1)

    def add_label(self, answer: Answer) -> None:
        """Absorb one answer; now and then measure rounding, and refresh past the tolerance.

        Raises:
            KernelError: as `kernel.posterior.absorb`.
        """
        self.squared_change += self._squared_step(answer)
        self.answers.append(answer)
        self.acquisition = self.acquisition.absorb(*self._label_rows([answer]))
        if len(self.answers) % CHECK_EVERY == 0:
            self.rounding = self.measure()
            if self.rounding > self._tolerance:
                del self.acquisition  # so that there are never two of them in memory
                self.acquisition = self._factorise()
                self.refreshed += 1

    def measure(self) -> float:
        """Rounding of the recursion, against factorising anew.

        At a few candidates and test images: the largest difference of S, in units of the largest s
        before any answer, or of G, in units of its largest entry or of 1.
        """
        start = self.linearisation
        labelled = np.array(list(dict.fromkeys(one.position for one in self.answers)), np.int64)
        others = np.setdiff1d(start.sample, labelled)
        few = others[np.unique(np.linspace(0, len(others), CHECKED, endpoint=False).astype(int))]
        ends = np.linspace(start.candidates, len(start.logits), CHECKED, endpoint=False)
        tests = np.unique(ends[: len(start.logits) - start.candidates].astype(np.int64))
        checked = np.concatenate([labelled, few])
        small = start.only(checked, tests).posterior()
        scale = max(float(small.variance.max(initial=0.0)), np.finfo(np.float64).tiny)
        own = {position: number for number, position in enumerate(checked.tolist())}
        _, label_rows = self._label_rows(self.answers)
        small = absorb(
            small, np.array([own[answer.position] for answer in self.answers]), label_rows
        )
        current = self.acquisition.posterior
        positions = np.concatenate([checked, tests])
        each = len(current.variance) // len(start.logits)  # rows of a position
        rows, small_rows = _rows(positions, each), np.arange(len(positions) * each)
        columns = _rows(few, each), _rows(np.arange(len(labelled), len(checked)), each)
        pairs = [
            (current.variance[rows], small.variance, scale),
            (
                current.covariance.columns(columns[0])[rows],
                small.covariance.columns(columns[1])[small_rows],
                scale,
            ),
            (
                current.predictions[positions],
                small.predictions,
                max(1.0, float(np.abs(small.predictions).max())),
            ),
        ]
        return max(float(np.abs(a - b).max(initial=0.0)) / unit for a, b, unit in pairs)

    def _squared_step(self, answer: Answer) -> float:
        """‖Δθ‖² of one answer, over the directions that are not determined."""
        posterior = self.acquisition.posterior
        each = len(posterior.variance) // len(posterior.logits)
        rows = _rows(np.array([answer.position]), each)
        residual = np.eye(posterior.logits.shape[1])[answer.label]
        residual = residual - posterior.predictions[answer.position]
        is_open = ~posterior.determined[rows]
        if not is_open.any():
            return 0.0
        # (y − G_q)ᵀ (S_qq + λI)⁻¹ (y − G_q)
        if each == 1:
            return float(residual @ residual / (posterior.variance[rows[0]] + posterior.ridge))
        block = posterior.covariance.columns(rows)[rows][np.ix_(is_open, is_open)]
        block = block + posterior.ridge * np.eye(len(block))
        return float(residual[is_open] @ np.linalg.solve(block, residual[is_open]))

    def _factorise(self) -> AcquisitionState:
        """Condition the kernel anew, on all answers in one block."""
        start = self.linearisation
        made = self._make_acquisition(start.kernel, start.posterior(), start.targets)
        return made.absorb(*self._label_rows(self.answers)) if self.answers else made

    def _label_rows(self, answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
        """Positions and one-hot labels."""
        classes = self.linearisation.targets.shape[1]
        positions = np.array([answer.position for answer in answers], np.int64)
        return positions, np.eye(classes)[[answer.label for answer in answers]]


def _rows(positions: np.ndarray, each: int) -> np.ndarray:
    """Rows of S of some positions: one each, or one a class for the kind `full`."""
    return (np.asarray(positions, np.int64)[:, None] * each + np.arange(each)).reshape(-1)
