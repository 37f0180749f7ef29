"""From logits to class probabilities, by the rule that fits the loss of the training."""

import numpy as np
from scipy.special import softmax


def simplex_projection(logits: np.ndarray) -> np.ndarray:
    """The nearest point of the probability simplex to each row, in Euclidean distance.

    For a network trained with L2 on one-hot labels the logits already estimate probabilities.

    Args:
        logits: (examples, classes).

    Returns:
        float64 (examples, classes): max(f − t, 0) with t such that each row sums to 1 (Held,
        Wolfe, Crowder 1974, by sorting).
    """
    descending = -np.sort(-np.asarray(logits, np.float64), axis=1)
    excess = np.cumsum(descending, axis=1) - 1
    ranks = np.arange(1, logits.shape[1] + 1)
    support = (descending * ranks > excess).sum(axis=1)
    shift = excess[np.arange(len(logits)), support - 1] / support
    return np.maximum(logits - shift[:, None], 0.0)


def probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
    """p(c|x), float64 (examples, classes): simplex projection for `l2`, softmax otherwise."""
    if loss == "l2":
        return simplex_projection(logits)
    return softmax(np.asarray(logits, np.float64), axis=1)
