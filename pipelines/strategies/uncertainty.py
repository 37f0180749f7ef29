"""Random choice and the three classical uncertainty scores (docs/mathematics.md, 4).

From class probabilities of the candidates to scores, higher = query first.
"""

import numpy as np
from scipy.special import entr

from pipelines.strategies.base import Query, Situation, top


def random(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Every candidate alike: the score is a uniform draw."""
    return top(situation, rng.random(len(situation.candidates)), batch_size, rng)


def entropy(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """−Σ_c p_c ln p_c, in nats."""
    return top(situation, entr(situation.probabilities).sum(axis=1), batch_size, rng)


def margin(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """−(p₁ − p₂), the two largest probabilities of each candidate."""
    ascending = np.sort(situation.probabilities, axis=1)
    return top(situation, ascending[:, -2] - ascending[:, -1], batch_size, rng)


def least_confident(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """1 − p₁."""
    return top(situation, 1 - situation.probabilities.max(axis=1), batch_size, rng)
