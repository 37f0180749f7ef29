"""Kendall's rank correlation between two measures of the same sets, with a bootstrap interval."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from kernel.errors import KernelError

RESAMPLES = 1000
_CONFIDENCE = 0.95


class Kendall(NamedTuple):
    """τ-b with the ends of its 95% percentile interval; NaN where either measure is constant."""

    value: float
    low: float
    high: float


def kendall(
    one: Float[np.ndarray, " sets"],
    other: Float[np.ndarray, " sets"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Kendall:
    """Kendall's τ-b, resampling the sets.

    A set that is drawn twice is tied with itself in both measures; τ-b leaves such pairs out.

    Args:
        one: a measure of each set.
        other: another one.
        rng: draws the resamples.
        resamples: how many.

    Raises:
        KernelError: fewer than two sets, or not as many of the one as of the other.
    """
    if len(one) != len(other) or len(one) < 2:
        raise KernelError(
            f"there are {len(one)} values of one measure and {len(other)} of the other: a rank "
            "correlation needs both of the same two sets or more."
        )
    value = _tau(one, other)
    drawn = [
        _tau(one[some], other[some]) for some in rng.integers(len(one), size=(resamples, len(one)))
    ]
    known = np.array([tau for tau in drawn if np.isfinite(tau)])
    if not np.isfinite(value) or not len(known):
        return Kendall(float("nan"), float("nan"), float("nan"))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Kendall(value, float(low), float(high))


def _tau(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.kendalltau(one, other, variant="b").statistic)  # pyright: ignore[reportAttributeAccessIssue]
