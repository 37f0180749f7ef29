"""ALBL: learn from round to round which strategy to follow (Hsu & Lin, AAAI 2015).

From a situation and the earlier rounds of its run to a batch that is drawn from what several
strategies, the arms, would query. The bandit is Exp4.P (`exp4p`, with its formulas), the reward the
importance-weighted accuracy of the retrained network on the images that were drawn.

In a round every arm with a batch of its own names it, best first. Then b images are drawn one after
another: an arm k with probability p_k, and of it the first image of its batch that was not drawn
before. So an arm's advice is one image at a time, q_a = Σ_k p_k [arm k is at a], an image is never
drawn twice, and nothing has to be made to sum to 1 again. The arm `random` advises all candidates
that are left alike, with 1/left each. p stays as it is within a round: rewards come when the labels
are in and the network is trained again. Then all draws of the round before get the same reward

    r = Σ_t [y_t = f(x_t)]/q_t / Σ_t 1/q_t    over all images drawn so far,

and the weights are made anew from all rounds, each with the p, q, advice and reward that its record
holds, so that a run that was interrupted goes on as if it had not been. The default arms are those
of BADGE's published comparison (Ash et al. 2020), least_confident and coreset.

The score of a candidate is Σ_k p_k [it is in the batch of arm k] (for random b/U): how much
of the advice asks for it. The batch holds what was drawn, sorted by that. Cost: those of the arms,
which share what they need, and O(b·N) for the draws.

What is done otherwise than Hsu & Lin, and than others:

- They divide the weighted sum by n·T, which estimates a test accuracy where every image can be
  drawn. With arms that each name one image the sum is of the order of N and the quotient, of the
  order of N/n, teaches nothing; divided by the sum of the weights it is an accuracy.
- They retrain after every image, here after a batch.
- A draw of an image that is labelled already, which they allow and reward, does not occur.
- In BADGE's comparison one arm chooses the whole batch, and p_min is 1/(10·N).

A network that fits its labels predicts the drawn images right whichever arm advised them: the
reward is then near 1 throughout, and weights part by who was drawn, hardly by who was right. The
record holds the reward of every round.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.errors import PipelineError
from pipelines.strategies.albl_memory import learned, reward_of, rounds_of
from pipelines.strategies.exp4p import arm_probabilities, least_probability
from pipelines.strategies.lookahead_config import LookAheadConfig
from pipelines.strategies.method import Method
from pipelines.strategies.situation import Query, Situation, Strategy
from trainer.tables import lookup

UNIFORM = "random"  # the arm that advises everything alike
_SHARED = {"kernel", "infinite"}  # what several arms compute once, with one seed


def over(rows: Mapping[str, Method]) -> Strategy:
    """The strategy `albl`, whose arms are among these rows of the table of strategies."""

    def choose(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        return albl(situation, batch_size, rng, rows)

    return choose


def albl(
    situation: Situation,
    batch_size: int,
    rng: np.random.Generator,
    rows: Mapping[str, Method],
) -> Query:
    """Draw a batch from the advice of the arms `situation.albl` names.

    Args:
        situation: with `history`, the earlier rounds.
        batch_size: how many to draw.
        rng: of the draws, and of arms that draw themselves.
        rows: what the arms' names stand for.

    Raises:
        PipelineError: arms that cannot be, or a history of other arms.
    """
    settings, arms = situation.albl, situation.albl.arms
    check(arms, rows, situation.lookahead)
    past = rounds_of(situation.history, arms)
    draws = settings.budget or sum(len(one.indices) for one in past) + batch_size
    reward = reward_of(situation, past)
    logs = learned(past, reward, draws, settings.delta, len(arms))
    p = arm_probabilities(logs, least_probability(len(arms), draws))
    *arm_rngs, draw_rng, shared_rng = rng.spawn(len(arms) + 2)
    batches = _advice(situation, batch_size, rows, arm_rngs, shared_rng)
    with situation.stages("select"):
        places, advised, taken = _draw(batches, p, len(situation.candidates), batch_size, draw_rng)
        uniform = batch_size / len(situation.candidates)
        wanted = np.full((len(arms), len(situation.candidates)), uniform)
        for arm, batch in enumerate(batches):
            if batch is not None:
                wanted[arm] = np.isin(np.arange(wanted.shape[1]), batch)
        scores = p @ wanted
        order = np.argsort(-scores[places], kind="stable")
        places, advised = places[order], advised[order]
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
        indices=situation.candidates[places],
        scores=scores[places],
        candidates=situation.candidates,
        candidate_scores=scores,
        diagnostics=diagnostics,
    )


def check(arms: Sequence[str], rows: Mapping[str, Method], lookahead: LookAheadConfig) -> None:
    """Refuse arms that cannot be, before anything is computed.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: one that has to be trained along, learns by itself, or asks for labels.
    """
    for arm in arms:
        if arm == "albl":
            raise PipelineError("albl.arms names albl itself: name the strategies it chooses from.")
        if "hooks" in lookup(rows, arm, "strategy").needs:
            raise PipelineError(
                f"albl.arms names {arm}, which trains a module together with the network, and albl "
                "trains none: leave it out."
            )
        if lookahead.batch == "hybrid" and "kernel" in rows[arm].needs:
            raise PipelineError(
                f"lookahead.batch is hybrid, which asks for the labels of every pick of {arm}, and "
                "albl draws only some of them: use top or conditioned."
            )


def _advice(
    situation: Situation,
    batch_size: int,
    rows: Mapping[str, Method],
    rngs: Sequence[np.random.Generator],
    shared_rng: np.random.Generator,
) -> list[np.ndarray | None]:
    """Places among the candidates of each arm's batch, best first; None advises all alike."""
    needs = [need for arm in situation.albl.arms for need in rows[arm].needs & _SHARED]
    seed = situation.shared
    if seed is None and len(set(needs)) < len(needs):
        seed = int(shared_rng.integers(2**63))
    alone = dataclasses.replace(situation, ask=None, shared=seed)
    order = np.argsort(situation.candidates)
    batches: list[np.ndarray | None] = []
    for arm, rng in zip(situation.albl.arms, rngs, strict=True):
        if arm == UNIFORM:
            batches.append(None)
            continue
        chosen = rows[arm](alone, batch_size, rng).indices
        batches.append(order[np.searchsorted(situation.candidates, chosen, sorter=order)])
    return batches


def _draw(
    batches: Sequence[np.ndarray | None],
    p: np.ndarray,
    candidates: int,
    batch_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Places drawn, what each arm's advice gave each of them, and how often each arm was drawn."""
    left = np.ones(candidates, bool)
    advised = np.zeros((batch_size, len(batches)))
    places = np.zeros(batch_size, np.int64)
    taken = [0] * len(batches)
    for number in range(batch_size):
        # no arm is at its end: of its batch_size images fewer were drawn before
        heads = [None if batch is None else batch[left[batch]][0] for batch in batches]
        arm = int(rng.choice(len(p), p=p))
        head = heads[arm]
        place = int(rng.choice(np.flatnonzero(left))) if head is None else int(head)
        share = 1 / (candidates - number)
        advised[number] = [share if head is None else head == place for head in heads]
        places[number], left[place] = place, False
        taken[arm] += 1
    return places, advised, taken
