"""The dissimilar batch in the slowest obvious way, for the tests of dynamicAL."""

import numpy as np


def by_hand(scores, rows, batch_size, order):
    """One pick after another, every cosine anew."""
    picks, values = [], []
    for _ in range(batch_size):
        best = -np.inf, -1
        for u in range(len(scores)):
            if u in picks:
                continue
            share = max(
                (
                    (rows[u] @ rows[q]) ** 2 / (rows[u] @ rows[u]) / (rows[q] @ rows[q])
                    for q in picks
                ),
                default=0.0,
            )
            now = scores[u] - abs(scores[u]) * share
            if best[1] < 0 or (now, -order[u]) > (best[0], -order[best[1]]):
                best = now, u
        picks.append(best[1])
        values.append(best[0])
    return picks, values
