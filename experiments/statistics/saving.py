"""Curves of runs → how many labels an arm saves at equal accuracy, and what its queries cost.

A curve is read between two measurements by a straight line, and an accuracy counts as reached where
the curve first comes up to it: for the arm and for the reference alike, since a rule that looks
back, such as "stays above", would depend on how far a run went. Of two arms that are alike the
reference comes out a little ahead, since it reaches the accuracy that it ends with for certain.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from experiments.statistics.outcomes import (
    REFERENCE,
    TRIAL,
    blocks,
    each,
    having,
    means,
    need,
    wide,
)
from pipelines.report.intervals import CONFIDENCE, geometric, interval


class Median(NamedTuple):
    """A median and its 95% interval from the order of the values, which asks for no distribution.

    The ends are NaN where there are too few values for one: fewer than six.
    """

    n: int
    median: float
    low: float
    high: float


def labels_saved(
    curves: pd.DataFrame, reference: str = REFERENCE, target: float | None = None
) -> pd.DataFrame:
    """How many labels fewer than the reference each run needed, paired by subject and seed.

    Args:
        curves: subject, arm, seed, labelled, test_accuracy.
        reference: the arm that labels are saved against.
        target: the accuracy, a fraction; without, the one that the reference's run of the same
            seed ends with at the last number of labels.

    Returns:
        A row for each run of another arm whose reference is there: subject, arm, seed, target,
        labels (needed to reach it), reference_labels, saved (the difference; negative where more
        were needed) and censored: that the run never reached it, so that its labels are the last
        that it had and it saved fewer than it says. A target that the reference does not reach
        itself gives no row.

    Raises:
        PipelineError: a column is missing, or a round is there twice.
    """
    need(curves, [*TRIAL, "labelled", "test_accuracy"])
    runs = wide(curves)
    rows = []
    for (subject, seed, arm), run in zip(runs.index.to_list(), runs.to_numpy(), strict=True):
        if arm == reference or (subject, seed, reference) not in runs.index:
            continue
        labels = np.asarray(runs.columns, dtype=float)
        own = _Curve.of(labels, run)
        other = _Curve.of(labels, runs.loc[(subject, seed, reference)].to_numpy(dtype=float))
        aim = float(other.accuracy[-1]) if target is None else target
        theirs, ours = other.reaches(aim), own.reaches(aim)
        if math.isnan(theirs):
            continue
        censored = math.isnan(ours)
        needed = float(own.labels[-1]) if censored else ours
        rows.append((subject, arm, seed, aim, needed, theirs, theirs - needed, censored))
    columns = [*TRIAL, "target", "labels", "reference_labels", "saved", "censored"]
    return pd.DataFrame(rows, columns=columns)


class _Curve(NamedTuple):
    labels: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, accuracy: np.ndarray) -> "_Curve":
        there = ~np.isnan(accuracy)
        return cls(labels[there], accuracy[there])

    def reaches(self, aim: float) -> float:
        """Labels at which the curve first comes up to an accuracy; NaN where it never does."""
        up = np.flatnonzero(self.accuracy >= aim)
        if not up.size:
            return math.nan
        last = int(up[0])
        if last == 0:
            return float(self.labels[0])
        ends = slice(last - 1, last + 1)
        return float(np.interp(aim, self.accuracy[ends], self.labels[ends]))


def saving(saved: pd.DataFrame) -> pd.DataFrame:
    """The savings of each subject and arm over its seeds.

    Args:
        saved: of `labels_saved`.

    Returns:
        A row for each: subject, arm, n, reached (how many runs reached the accuracy), median, low
        and high (its 95% interval), reference_labels (their median) and share (of the median in
        that). A run that never reached the accuracy counts as the least of all, so that the median
        is NaN where half of them or more did not, and an end of its interval likewise.
    """
    rows = []
    for subject, arm, own in each(saved):
        lost = own["censored"].to_numpy(dtype=bool)
        values = np.where(lost, -math.inf, own["saved"].to_numpy(dtype=float))
        n, middle, low, high = median(values)
        theirs = float(np.median(own["reference_labels"].to_numpy(dtype=float)))
        reached = n - int(lost.sum())
        rows.append((subject, arm, n, reached, middle, low, high, theirs, middle / theirs))
    columns = ["subject", "arm", "n", "reached", *Median._fields[1:], "reference_labels", "share"]
    return pd.DataFrame(rows, columns=columns)


def median(values: np.ndarray) -> Median:
    """The median and its interval between two order statistics, of at least 95%.

    Args:
        values: (n,), −∞ for one of which only is known that it is less than all others.
    """
    ordered, n = np.sort(values), len(values)
    if n == 0:
        return Median(0, math.nan, math.nan, math.nan)
    middle = ordered[[(n - 1) // 2, n // 2]].mean()
    # the largest rank r of which P(Binomial(n, ½) < r) is 2.5% or less
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    ends = (ordered[rank - 1], ordered[n - rank]) if rank else (math.nan, math.nan)
    return Median(n, *(float(x) if math.isfinite(x) else math.nan for x in (middle, *ends)))


def costs(curves: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """What an arm's queries cost against what they gained.

    Args:
        curves: subject, arm, seed, round, labelled, test_accuracy, query_seconds (NaN where
            nothing was queried).
        reference: the arm that accuracy is gained against.

    Returns:
        A row for each subject and arm: subject, arm, n (runs), queries, seconds, seconds_low and
        seconds_high (geometric mean of a query's seconds, over the runs' own geometric means),
        median_seconds (of all queries; the first one of a process also compiles), pairs, gained,
        gained_low and gained_high (average accuracy minus the reference's, paired by seed,
        fractions; 0 for the reference itself, without an interval).

    Raises:
        PipelineError: a column is missing, or a round is there twice.
    """
    need(curves, [*TRIAL, "round", "query_seconds"])
    asked = pd.DataFrame(curves[curves["query_seconds"].to_numpy(dtype=float) > 0])
    rows = []
    for subject, arm, own in each(asked):
        logs = own.assign(log=np.log(own["query_seconds"].to_numpy(dtype=float)))
        n, seconds, low, high = geometric(np.exp(means(logs, ["seed"], "log")))
        both = having(curves, subject=[subject], arm=[arm, reference])
        gained = (0, 0.0, math.nan, math.nan)
        if arm != reference:
            table = blocks(both, arms=[arm, reference]).dropna()
            gained = interval(table[arm] - table[reference])
        usual = float(np.median(own["query_seconds"].to_numpy(dtype=float)))
        rows.append((subject, arm, n, len(own), seconds, low, high, usual, *gained))
    columns = ["subject", "arm", "n", "queries", "seconds", "seconds_low", "seconds_high"]
    columns += ["median_seconds", "pairs", "gained", "gained_low", "gained_high"]
    return pd.DataFrame(rows, columns=columns)
