"""What ALBL knows of the earlier rounds of a run: from their records to weights of its arms.

Nothing else is carried from round to round, so that a run that was interrupted learns the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.errors import PipelineError
from pipelines.strategies.exp4p import rewarded, weighted_accuracy
from pipelines.strategies.situation import Situation


class Drawn(NamedTuple):
    """The draws of a round, in the order of its record.

    Attributes:
        indices: int64 (batch,), data-set indices.
        probabilities: float64 (arms,), p.
        advised: float64 (batch, arms), the probability of each image by each arm's advice.
        drawn: float64 (batch,), q of each.
        reward: of the draws of the round before; None in the first, or where no label came in.
    """

    indices: np.ndarray
    probabilities: np.ndarray
    advised: np.ndarray
    drawn: np.ndarray
    reward: float | None


def rounds_of(history: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[Drawn]:
    """The draws of the earlier rounds that were ALBL's.

    Args:
        history: lines of earlier rounds, of any strategies.
        arms: names of the present arms.

    Raises:
        PipelineError: a round of other arms, or not as it was written.
    """
    return [_read(line, arms) for line in history if "advised" in line.get("diagnostics", {})]


def _read(line: Mapping[str, Any], arms: Sequence[str]) -> Drawn:
    """The draws of an earlier round.

    Raises:
        PipelineError: of other arms, or not as it was written.
    """
    said = line["diagnostics"]
    if list(said.get("arms", ())) != list(arms):
        raise PipelineError(
            f"an earlier round was drawn from the arms {', '.join(said.get('arms', ()))} and "
            f"albl.arms are {', '.join(arms)}: what was learned of those says nothing of these. "
            "Give the same arms, or leave the earlier rounds out of history."
        )
    try:
        made = Drawn(
            np.asarray(line["indices"], np.int64),
            np.asarray(said["probabilities"], np.float64),
            np.asarray(said["advised"], np.float64),
            np.asarray(said["drawn"], np.float64),
            said["reward"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"an earlier round of albl cannot be understood ({error!r}): give history as query() "
            "returned it."
        ) from error
    batch = len(made.indices)
    if made.advised.shape != (batch, len(arms)) or made.drawn.shape != (batch,):
        raise PipelineError(
            f"an earlier round of albl has {batch} indices and says who advised "
            f"{len(made.advised)}: give history as query() returned it."
        )
    return made


def reward_of(situation: Situation, past: Sequence[Drawn]) -> float | None:
    """Importance-weighted accuracy on everything drawn and labelled so far; None without any."""
    if not past:
        return None
    right = situation.labelled_logits.argmax(axis=1) == situation.labels
    known = dict(zip(situation.labelled.tolist(), right.tolist(), strict=True))
    drawn = [
        (known[index], q)
        for one in past
        for index, q in zip(one.indices.tolist(), one.drawn.tolist(), strict=True)
        if index in known
    ]
    if not drawn:
        return None
    correct, q = (np.array(column) for column in zip(*drawn, strict=True))
    return weighted_accuracy(correct, q)


def learned(
    past: Sequence[Drawn], reward: float | None, draws: int, delta: float, arms: int
) -> np.ndarray:
    """The weights of arms, ln w, after all earlier rounds, the last of which has this reward."""
    logs = np.zeros(arms)
    rewards = [*(one.reward for one in past[1:]), reward]
    for one, earned in zip(past, rewards, strict=False):
        if earned is not None:
            logs = rewarded(
                logs,
                one.probabilities,
                one.advised,
                one.drawn,
                earned,
                draws=draws,
                delta=delta,
            )
    return logs
