"""A batch whose gradients differ from each other: a variant of dynamicAL that is not the paper's.

From the candidates' scores and gradients, folded or whole, to picks, each score less what a pick
already has of it (docs/mathematics.md, 6).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64


class Chosen(NamedTuple):
    """A batch.

    Attributes:
        places: of the picks, in their order.
        scores: of every candidate: of a pick when it was picked, of others after the last.
    """

    places: Int64[np.ndarray, " picks"]
    scores: Float64[np.ndarray, " candidates"]


def dissimilar(
    scores: Float64[np.ndarray, " candidates"],
    rows: Float[np.ndarray, "candidates buckets"],
    batch_size: int,
    order: Int64[np.ndarray, " candidates"],
) -> Chosen:
    """Greedy picks by s(x) − |s(x)| max_q cos²(g_x, g_q), q the picks so far.

    Nothing is left of a positive score where a pick has the same gradient or its opposite, all of
    it where none has anything in common with it. Lengths have no part in the similarity, nor does
    γ, so that it means the same for every score.

    Args:
        scores: s, of every candidate by itself.
        rows: gradients, folded or whole.
        batch_size: how many to pick, at most all.
        order: a permutation of the candidates; of equal scores the lower comes first.
    """
    lengths = np.sqrt(np.einsum("uk,uk->u", rows, rows, dtype=np.float64))
    directions = rows / np.where(lengths > 0, lengths, 1.0)[:, None].astype(rows.dtype)
    shared = np.zeros(len(scores))
    left = np.ones(len(scores), bool)
    final = np.array(scores)
    places = np.zeros(batch_size, np.int64)
    for number in range(batch_size):
        final = np.where(left, scores - np.abs(scores) * shared, final)
        ranked = np.where(left, final, -np.inf)
        ties = np.flatnonzero(left & (ranked == ranked.max()))
        best = ties[np.argmin(order[ties])]
        places[number], left[best] = best, False
        cosines = (directions @ directions[best]).astype(np.float64)
        shared = np.maximum(shared, np.minimum(cosines**2, 1.0))
    return Chosen(places, final)
