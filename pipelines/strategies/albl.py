"""ALBL: a bandit that learns from round to round which strategy to follow (Hsu & Lin, AAAI 2015).

Every arm names a batch, best first. Then b images are drawn one after another: an arm k with
probability p_k, and of its batch the first image that was not drawn before. So an arm's advice is
one image at a time, and q_a = Σ_k p_k [arm k is at a]. The arm `random` advises all candidates that
are left, with 1/left each. When the labels are in and the network is trained again, all draws of
the round before get the same reward, the importance-weighted accuracy of the retrained network,

    r = Σ_t [y_t = f(x_t)]/q_t / Σ_t 1/q_t    over all images drawn so far.

The bandit is Exp4.P (Beygelzimer et al. 2011) with an expert an arm. With N arms, T draws in all
and δ: p_min = √(ln N / (N·T)), at most 1/N;

    p = (1 − N·p_min) · w/Σw + p_min,    q = pᵀ·advice,

where advice[k] is the distribution over images that arm k would draw from. Image a was drawn and
gave the reward r: ŷ_k = r · advice[k,a] / q_a, v̂_k = 1/p_k, and

    w_k ← w_k · exp( p_min/2 · (ŷ_k + v̂_k · √(ln(N/δ) / (N·T))) ).

Weights are logarithms, which cannot overflow, and are computed from the records of the earlier
rounds, so that an interrupted run learns the same. The score of a candidate is
Σ_k p_k [it is in the batch of arm k] (for random b/U). Cost: those of the arms, which share what
they need, and O(b·N) for the draws.

Differences from Hsu & Lin: they divide the weighted sum by n·T, which estimates a test accuracy
where every image can be drawn; with arms that each name one image the quotient is of the order of
N/n and teaches nothing. They retrain after every image, here after a batch; and they allow and
reward the draw of a labelled image, which does not occur here. In BADGE's comparison (Ash et al.
2020), whose arms are the default, one arm chooses the whole batch, and p_min is 1/(10·N).

A network that fits its labels predicts the drawn images right whichever arm advised them: the
reward is then near 1 throughout, and weights follow which arms were drawn rather than which were
right. The record holds the reward of every round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pipelines.core.errors import PipelineError
from pipelines.strategies import STRATEGIES
from pipelines.strategies.base import Query, QueryContext


def least_probability(arms: int, draws: int) -> float:
    """p_min: what every arm is drawn with at least.

    Args:
        arms: N, at least 1.
        draws: T, at least 1.
    """
    return min(math.sqrt(math.log(arms) / (arms * draws)), 1 / arms)


def arm_probabilities(log_weights: np.ndarray, least: float) -> np.ndarray:
    """p, float64 (arms,).

    Args:
        log_weights: float64 (arms,), ln w.
        least: p_min.
    """
    weights = np.exp(log_weights - log_weights.max())
    return (1 - len(weights) * least) * weights / weights.sum() + least


def update_log_weights(
    log_weights: np.ndarray,
    probabilities: np.ndarray,
    advised: np.ndarray,
    drawn: np.ndarray,
    reward: float,
    *,
    draws: int,
    delta: float,
) -> np.ndarray:
    """Log weights after draws with the same p and the same reward.

    Args:
        log_weights: float64 (arms,), ln w before.
        probabilities: float64 (arms,), p that they were drawn with.
        advised: float64 (images, arms), the probability of each drawn image by each arm's advice.
        drawn: float64 (images,), q of each.
        reward: r, in [0, 1].
        draws: T.
        delta: δ.
    """
    arms = len(log_weights)
    estimates = (reward * advised / drawn[:, None]).sum(axis=0)
    bonus = len(drawn) / probabilities * math.sqrt(math.log(arms / delta) / (arms * draws))
    return log_weights + least_probability(arms, draws) / 2 * (estimates + bonus)


def weighted_accuracy(right: np.ndarray, drawn: np.ndarray) -> float:
    """Importance-weighted accuracy, Σ_t [y_t = f(x_t)]/q_t divided by Σ_t 1/q_t.

    Args:
        right: bool (images,), whether each drawn image is predicted as it is labelled; at least
            one.
        drawn: float64 (images,), q of each when it was drawn.
    """
    return float(np.average(right, weights=1 / drawn))


_COLUMNS = ("probabilities", "advised", "drawn")


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

    @classmethod
    def of(cls, line: Mapping[str, Any], arms: Sequence[str]) -> "Drawn":
        """Those that a line of the history records.

        Raises:
            PipelineError: of other arms, or not as they were written.
        """
        recorded = line["diagnostics"]
        earlier = ", ".join(recorded.get("arms", ()))
        if earlier != ", ".join(arms):
            raise PipelineError(
                f"an earlier round was drawn from the arms {earlier} and albl.arms are "
                f"{', '.join(arms)}: rewards of those say nothing of these. Give the same arms, or "
                "leave the earlier rounds out of history."
            )
        try:
            columns = [line["indices"], *(recorded[name] for name in _COLUMNS)]
            indices, p, advised, q = (np.asarray(column, np.float64) for column in columns)
            drawn = cls(indices.astype(np.int64), p, advised, q, recorded["reward"])
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineError(
                f"an earlier round of albl cannot be understood ({error!r}): give history as "
                "query() returned it."
            ) from error
        batch = len(indices)
        if p.shape != (len(arms),) or advised.shape != (batch, len(arms)) or q.shape != (batch,):
            raise PipelineError(
                f"an earlier round of albl has {batch} indices, {len(advised)} rows of advice and "
                f"{q.size} probabilities: give history as query() returned it."
            )
        return drawn


def reward_of(context: QueryContext, past: Sequence[Drawn]) -> float | None:
    """Importance-weighted accuracy on everything drawn and labelled so far; None without any."""
    if not past:
        return None
    indices = np.concatenate([one.indices for one in past])
    q = np.concatenate([one.drawn for one in past])
    right = context.labelled_logits.argmax(axis=1) == context.labels
    known = dict(zip(context.labelled.tolist(), right.tolist(), strict=True))
    labelled = np.isin(indices, context.labelled)
    if not labelled.any():
        return None
    return weighted_accuracy(
        np.array([known[index] for index in indices[labelled].tolist()]), q[labelled]
    )


UNIFORM = "random"  # the arm that advises everything alike
_SHARED = {"kernel", "infinite"}  # needs that several arms compute once, with one seed


def albl(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Draw a batch from the advice of the arms.

    Args:
        context: with `history`, the earlier rounds.
        batch_size: how many to draw.
        rng: of the draws, and of arms that draw themselves.

    Raises:
        PipelineError: a history of other arms.
    """
    settings, arms = context.options.albl, context.options.albl.arms
    earlier = context.resources.history
    past = [Drawn.of(line, arms) for line in earlier if "advised" in line.get("diagnostics", {})]
    draws = settings.budget or sum(len(one.indices) for one in past) + batch_size
    reward = reward_of(context, past)
    logs = np.zeros(len(arms))
    for one, earned in zip(past, [*(one.reward for one in past[1:]), reward], strict=False):
        if earned is not None:
            rewarded = (one.probabilities, one.advised, one.drawn, earned)
            logs = update_log_weights(logs, *rewarded, draws=draws, delta=settings.delta)
    p = arm_probabilities(logs, least_probability(len(arms), draws))
    *arm_rngs, draw_rng, shared_rng = rng.spawn(len(arms) + 2)
    batches = _advice(context, batch_size, arm_rngs, shared_rng)
    with context.progress("select"):
        positions, advised, taken = _draw(batches, p, len(context.candidates), batch_size, draw_rng)
        uniform = batch_size / len(context.candidates)
        wanted = np.full((len(arms), len(context.candidates)), uniform)
        for arm, batch in enumerate(batches):
            if batch is not None:
                wanted[arm] = np.isin(np.arange(wanted.shape[1]), batch)
        scores = p @ wanted
        order = np.argsort(-scores[positions], kind="stable")
        positions, advised = positions[order], advised[order]
    weights = np.exp(logs - logs.max())
    diagnostics = {
        "arms": list(arms),
        "budget": draws,
        "weights": (weights / weights.sum()).tolist(),
        "probabilities": p.tolist(),
        "reward": reward,
        "taken": dict(zip(arms, taken, strict=True)),
        "drawn": (advised @ p).tolist(),
        "advised": advised.tolist(),
    }
    return context.query(positions, scores, diagnostics)


def _advice(
    context: QueryContext,
    batch_size: int,
    rngs: Sequence[np.random.Generator],
    shared_rng: np.random.Generator,
) -> list[np.ndarray | None]:
    """Positions among the candidates of each arm's batch, best first; None advises all alike."""
    arms = context.options.albl.arms
    shared = [need for arm in arms for need in STRATEGIES[arm].needs & _SHARED]
    if context.resources.shared_seed is None and len(set(shared)) < len(shared):
        seed = int(shared_rng.integers(2**63))
        context = replace(context, resources=replace(context.resources, shared_seed=seed))
    order = np.argsort(context.candidates)
    batches: list[np.ndarray | None] = []
    for arm, rng in zip(arms, rngs, strict=True):
        if arm == UNIFORM:
            batches.append(None)
            continue
        chosen = STRATEGIES[arm](context, batch_size, rng).indices
        batches.append(order[np.searchsorted(context.candidates, chosen, sorter=order)])
    return batches


def _draw(
    batches: Sequence[np.ndarray | None],
    p: np.ndarray,
    candidates: int,
    batch_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Positions drawn, their probabilities by each arm's advice, and draws of each arm."""
    left = np.ones(candidates, bool)
    advised = np.zeros((batch_size, len(batches)))
    positions = np.zeros(batch_size, np.int64)
    taken = [0] * len(batches)
    for number in range(batch_size):
        # every arm has an image left: fewer than batch_size were drawn before
        heads = [None if batch is None else batch[left[batch]][0] for batch in batches]
        arm = int(rng.choice(len(p), p=p))
        head = heads[arm]
        position = int(rng.choice(np.flatnonzero(left))) if head is None else int(head)
        share = 1 / (candidates - number)
        advised[number] = [share if head is None else head == position for head in heads]
        positions[number], left[position] = position, False
        taken[arm] += 1
    return positions, advised, taken
