"""Euclidean projection on the probability simplex. Imports no JAX."""

import numpy as np
from jaxtyping import Float


def simplex_projection(
    logits: Float[np.ndarray, "rows classes"],
) -> Float[np.ndarray, "rows classes"]:
    """The nearest point of the probability simplex to each row, in Euclidean distance.

    For a network trained with L2 on one-hot labels the logits already estimate probabilities.

    Returns:
        float64: max(f − t, 0) with t such that each row sums to 1 (Held, Wolfe, Crowder 1974, by
        sorting).
    """
    descending = -np.sort(-np.asarray(logits, np.float64), axis=1)
    excess = np.cumsum(descending, axis=1) - 1
    ranks = np.arange(1, logits.shape[1] + 1)
    support = (descending * ranks > excess).sum(axis=1)
    shift = excess[np.arange(len(logits)), support - 1] / support
    return np.maximum(logits - shift[:, None], 0.0)
