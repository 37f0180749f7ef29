"""Exp4.P, the bandit of ALBL (Beygelzimer et al. 2011; Hsu & Lin 2015), as pure functions.

From weights of arms to the probability of each arm and of each image, and from a reward to new
weights. Arms and experts are the same here, so that both numbers are N.

With T draws in all and δ: p_min = √(ln N / (N·T)), at most 1/N;

    p = (1 − N·p_min) · w/Σw + p_min,    q = pᵀ·advice,

where advice[k] is what arm k would draw, a distribution over images. Image a was drawn and gave the
reward r: ŷ_k = r · advice[k,a] / q_a, v̂_k = 1/p_k, and

    w_k ← w_k · exp( p_min/2 · (ŷ_k + v̂_k · √(ln(N/δ) / (N·T))) ).

Weights are kept as their logarithms, which cannot overflow.
"""

import math

import numpy as np


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


def rewarded(
    log_weights: np.ndarray,
    probabilities: np.ndarray,
    advised: np.ndarray,
    drawn: np.ndarray,
    reward: float,
    *,
    draws: int,
    delta: float,
) -> np.ndarray:
    """The weights ln w after draws that were made with the same p and got the same reward.

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
    seen = (reward * advised / drawn[:, None]).sum(axis=0)
    surely = len(drawn) / probabilities * math.sqrt(math.log(arms / delta) / (arms * draws))
    return log_weights + least_probability(arms, draws) / 2 * (seen + surely)


def weighted_accuracy(right: np.ndarray, drawn: np.ndarray) -> float:
    """Importance-weighted accuracy, Σ_t [y_t = f(x_t)]/q_t divided by Σ_t 1/q_t.

    Args:
        right: bool (images,), whether each drawn image is predicted as it is labelled; at least
            one.
        drawn: float64 (images,), q of each when it was drawn.
    """
    return float(np.average(right, weights=1 / drawn))
