"""The next question: which open candidate to ask for, and how the network stands while it is asked.

From the scores of a learner and what was said so far to one data-set index.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.errors import PipelineError
from pipelines.sequential.grounds import Event, Grounds
from pipelines.sequential.learner import Learner
from pipelines.sequential.views import looks_ahead


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
