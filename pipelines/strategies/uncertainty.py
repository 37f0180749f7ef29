"""Random choice and the three classical uncertainty scores (docs/mathematics.md, 4)."""

import numpy as np
from scipy.special import entr

from pipelines.strategies.base import Query, QueryContext, top


def random(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Every candidate alike: the score is a uniform draw."""
    return top(context, rng.random(len(context.candidates)), batch_size, rng)


def entropy(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """−Σ_c p_c ln p_c, in nats."""
    # (33) −Σ p ln p
    return top(context, entr(context.probabilities).sum(axis=1), batch_size, rng)


def margin(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """−(p₁ − p₂), the two largest probabilities of each candidate."""
    ascending = np.sort(context.probabilities, axis=1)
    # (34) −(p₁ − p₂)
    return top(context, ascending[:, -2] - ascending[:, -1], batch_size, rng)


def least_confident(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """1 − p₁."""
    # (35) 1 − p₁
    return top(context, 1 - context.probabilities.max(axis=1), batch_size, rng)
