"""ALBL: a bandit that learns from round to round which strategy to follow (Hsu & Lin, AAAI 2015).

In a round every arm with a batch of its own names it, best first. Then b images are drawn one after
another: an arm k with probability p_k, and of it the first image of its batch that was not drawn
before. So an arm's advice is one image at a time, q_a = Σ_k p_k [arm k is at a], an image is never
drawn twice, and nothing has to be normalised again. The arm `random` advises all candidates that
are left alike, with 1/left each. p stays as it is within a round: rewards come when the labels are
in and the network is trained again. Then all draws of the round before get the same reward

    r = Σ_t [y_t = f(x_t)]/q_t / Σ_t 1/q_t    over all images drawn so far,

the importance-weighted accuracy of the retrained network, and the weights are computed anew from
the p, q, advice and reward that the records of the rounds hold, so that an interrupted run learns
the same. The default arms are those of BADGE's published comparison (Ash et al. 2020).

The bandit is Exp4.P (Beygelzimer et al. 2011). Arms and experts are the same here, so that both
numbers are N. With T draws in all and δ: p_min = √(ln N / (N·T)), at most 1/N;

    p = (1 − N·p_min) · w/Σw + p_min,    q = pᵀ·advice,

where advice[k] is the distribution over images that arm k would draw from. Image a was drawn and
gave the reward r: ŷ_k = r · advice[k,a] / q_a, v̂_k = 1/p_k, and

    w_k ← w_k · exp( p_min/2 · (ŷ_k + v̂_k · √(ln(N/δ) / (N·T))) ).

Weights are kept as their logarithms, which cannot overflow.

The score of a candidate is Σ_k p_k [it is in the batch of arm k] (for random b/U): how much of the
advice asks for it. The batch holds the drawn images, sorted by that. Cost: those of the arms, which
share what they need, and O(b·N) for the draws.

Differences from Hsu & Lin, and from others:

- They divide the weighted sum by n·T, which estimates a test accuracy where every image can be
  drawn. With arms that each name one image the sum is of the order of N and the quotient, of the
  order of N/n, teaches nothing; divided by the sum of the weights it is an accuracy.
- They retrain after every image, here after a batch.
- A draw of an image that is labelled already, which they allow and reward, does not occur.
- In BADGE's comparison one arm chooses the whole batch, and p_min is 1/(10·N).

A network that fits its labels predicts the drawn images right whichever arm advised them: the
reward is then near 1 throughout, and weights part by which arms were drawn, hardly by which were
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
    recorded = line["diagnostics"]
    if list(recorded.get("arms", ())) != list(arms):
        raise PipelineError(
            f"an earlier round was drawn from the arms {', '.join(recorded.get('arms', ()))} and "
            f"albl.arms are {', '.join(arms)}: what was learned of those says nothing of these. "
            "Give the same arms, or leave the earlier rounds out of history."
        )
    try:
        made = Drawn(
            np.asarray(line["indices"], np.int64),
            np.asarray(recorded["probabilities"], np.float64),
            np.asarray(recorded["advised"], np.float64),
            np.asarray(recorded["drawn"], np.float64),
            recorded["reward"],
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


def reward_of(context: QueryContext, past: Sequence[Drawn]) -> float | None:
    """Importance-weighted accuracy on everything drawn and labelled so far; None without any."""
    if not past:
        return None
    right = context.labelled_logits.argmax(axis=1) == context.labels
    known = dict(zip(context.labelled.tolist(), right.tolist(), strict=True))
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


def log_weights_after(
    past: Sequence[Drawn], reward: float | None, draws: int, delta: float, arms: int
) -> np.ndarray:
    """The weights of arms, ln w, after all earlier rounds, the last of which has this reward."""
    logs = np.zeros(arms)
    rewards = [*(one.reward for one in past[1:]), reward]
    for one, earned in zip(past, rewards, strict=False):
        if earned is not None:
            logs = update_log_weights(
                logs,
                one.probabilities,
                one.advised,
                one.drawn,
                earned,
                draws=draws,
                delta=delta,
            )
    return logs


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
    past = rounds_of(context.resources.history, arms)
    draws = settings.budget or sum(len(one.indices) for one in past) + batch_size
    reward = reward_of(context, past)
    logs = log_weights_after(past, reward, draws, settings.delta, len(arms))
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
    return Query(
        indices=context.candidates[positions],
        scores=scores[positions],
        candidates=context.candidates,
        candidate_scores=scores,
        diagnostics=diagnostics,
    )


def _advice(
    context: QueryContext,
    batch_size: int,
    rngs: Sequence[np.random.Generator],
    shared_rng: np.random.Generator,
) -> list[np.ndarray | None]:
    """Positions among the candidates of each arm's batch, best first; None advises all alike."""
    arms = context.options.albl.arms
    shared = [need for arm in arms for need in STRATEGIES[arm].needs & _SHARED]
    seed = context.resources.shared_seed
    if seed is None and len(set(shared)) < len(shared):
        seed = int(shared_rng.integers(2**63))
    resources = replace(context.resources, oracle=None, shared_seed=seed)
    context = replace(context, resources=resources)
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
        # no arm is at its end: of its batch_size images fewer were drawn before
        heads = [None if batch is None else batch[left[batch]][0] for batch in batches]
        arm = int(rng.choice(len(p), p=p))
        head = heads[arm]
        position = int(rng.choice(np.flatnonzero(left))) if head is None else int(head)
        share = 1 / (candidates - number)
        advised[number] = [share if head is None else head == position for head in heads]
        positions[number], left[position] = position, False
        taken[arm] += 1
    return positions, advised, taken
