"""Student's t-tests against a bound, equivalence, Holm's correction, geometric means.

Tests agree with the intervals of `pipelines.report.curves`: a bound has p < .05 exactly where
the 95% interval excludes it.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from pipelines.report.curves import ROUNDING, Interval, interval, standard_error

LEVEL = 0.05  # of p: 1 − CONFIDENCE


def geometric(values: Iterable[float]) -> Interval:
    """Geometric mean of positive values, with the interval of the mean of their logarithms."""
    n, *found = interval(math.log(value) for value in values)
    return Interval(n, *(math.exp(value) for value in found))


def p_against(values: Iterable[float], bound: float = 0.0) -> float:
    """Two-sided p of the t-test that the mean is `bound`; NaN for fewer than two values.

    Of identical values it is 1 where they equal the bound and 0 otherwise, as their interval, a
    single point, would have it.
    """
    array = np.fromiter(values, dtype=np.float64)
    if array.size < 2:
        return math.nan
    away, error = abs(float(array.mean()) - bound), standard_error(array)
    if error == 0:
        return float(away <= ROUNDING * abs(array).max())
    return 2 * float(stats.t.sf(away / error, array.size - 1))


def p_within(values: Iterable[float], low: float, high: float) -> float:
    """Two one-sided t-tests that the mean is not within two bounds: the larger p, doubled.

    Doubled, so that it is below .05 exactly where the 95% interval lies within the bounds;
    Schuirmann's test of equivalence uses the 90% interval.
    """
    array = np.fromiter(values, dtype=np.float64)
    if array.size < 2:
        return math.nan
    mean, error = float(array.mean()), standard_error(array)
    inside = min(mean - low, high - mean)
    if error == 0:
        return float(inside <= ROUNDING * abs(array).max())
    return min(1.0, 2 * float(stats.t.sf(inside / error, array.size - 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p by Holm's step-down method; the order is kept, and NaN, no test, stays NaN."""
    array = np.array(p, dtype=float)
    order = np.argsort(array)[: np.count_nonzero(~np.isnan(array))]  # NaN is sorted last
    # max over j ≤ i of (m − j + 1) p_(j), for the sorted p_(1) ≤ … ≤ p_(m)
    scaled = np.arange(len(order), 0, -1) * array[order]
    array[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return array.tolist()
