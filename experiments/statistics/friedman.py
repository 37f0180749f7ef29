"""Blocks of runs → Friedman's test, average ranks, and the tests of every pair after it.

The procedure of Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7,
2006; a block is one subject with one seed, which is said in the result.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scikit_posthocs import posthoc_nemenyi_friedman
from scipy import stats

from experiments.statistics.outcomes import BLOCK
from pipelines.errors import PipelineError
from pipelines.report.intervals import LEVEL, holm, interval, p_against


class Friedman(NamedTuple):
    """Friedman's test that all arms are alike.

    Attributes:
        blocks: complete ones, in which every arm has a run.
        dropped: blocks left out because an arm had no run in them.
        ranks: average rank of each arm, best first; 1 is the highest accuracy.
        chi2: Friedman's statistic, corrected for ties (scipy's).
        p: of it.
        uncorrected: the statistic as Demšar gives it, which is `chi2` where there are no ties.
        f: Iman and Davenport's F of `uncorrected`, less conservative; infinite where all blocks
            rank the arms alike.
        f_p: of it, with k − 1 and (k − 1)(n − 1) degrees of freedom.
        critical: Nemenyi's critical difference of two average ranks, α = .05.
        unit: what a block is, in words.
    """

    blocks: int
    dropped: int
    ranks: pd.Series
    chi2: float
    p: float
    uncorrected: float
    f: float
    f_p: float
    critical: float
    unit: str


def complete(blocks: pd.DataFrame) -> pd.DataFrame:
    """The blocks in which every arm has a run; arms without any run are left out first.

    Raises:
        PipelineError: fewer than three arms or two such blocks, which no ranks can tell apart.
    """
    there = blocks.dropna(axis="columns", how="all")
    kept = there.dropna()
    if there.shape[1] < 3 or len(kept) < 2:
        raise PipelineError(
            f"Friedman's test needs three arms or more and two blocks or more in which each has a "
            f"run, and there are {there.shape[1]} arms ({', '.join(map(str, there.columns))}) and "
            f"{len(kept)} such blocks ({BLOCK}): wait for more runs, or compare two arms by their "
            f"paired difference."
        )
    return kept


def friedman(blocks: pd.DataFrame) -> Friedman:
    """Whether the arms differ at all.

    Args:
        blocks: blocks × arms, higher is better, as `outcomes.blocks` gives them.

    Raises:
        PipelineError: see `complete`.
    """
    kept = complete(blocks)
    n, k = kept.shape
    values = kept.to_numpy(dtype=float)
    ranks = stats.rankdata(-values, axis=1).mean(axis=0)
    plain = 12 * n / (k * (k + 1)) * (float((ranks**2).sum()) - k * (k + 1) ** 2 / 4)
    if (values == values[:, :1]).all():  # nothing but ties, of which scipy makes 0/0
        chi2, p = 0.0, 1.0
    else:
        found = stats.friedmanchisquare(*values.T)
        chi2, p = float(found.statistic), float(found.pvalue)
    left = n * (k - 1) - plain
    f = (n - 1) * plain / left if left > 1e-9 else math.inf
    return Friedman(
        blocks=n,
        dropped=len(blocks) - n,
        ranks=pd.Series(ranks, index=kept.columns).sort_values(kind="stable"),
        chi2=chi2,
        p=p,
        uncorrected=plain,
        f=f,
        f_p=float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))),
        critical=critical_difference(k, n),
        unit=BLOCK,
    )


def critical_difference(arms: int, blocks: int, alpha: float = LEVEL) -> float:
    """Nemenyi's: two average ranks further apart than q·√(k(k+1)/6n) differ; q of Demšar's Table 5.

    Args:
        arms: k.
        blocks: n.
        alpha: the chance that any pair is called different where all are alike.
    """
    q = float(stats.studentized_range.isf(alpha, arms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(arms * (arms + 1) / (6 * blocks))


def post_hoc(blocks: pd.DataFrame) -> pd.DataFrame:
    """Every pair of arms, after Friedman's test.

    The paired t-tests are of all blocks that both arms have a run in, Nemenyi's of the complete
    ones. Holm corrects for all pairs of the table.

    Args:
        blocks: blocks × arms, higher is better, fractions.

    Returns:
        A row a pair, in the order of the columns: arm, other, n, mean (arm minus other), low,
        high (95% interval, not corrected), p (paired t), p_holm, p_nemenyi (NaN where Friedman's
        test cannot be made).
    """
    try:
        nemenyi = posthoc_nemenyi_friedman(complete(blocks))
    except PipelineError:
        nemenyi = pd.DataFrame()
    rows = []
    for arm, other in itertools.combinations(blocks.columns, 2):
        difference = (blocks[arm] - blocks[other]).dropna().to_numpy(dtype=float)
        ranked = arm in nemenyi and other in nemenyi
        rows.append(
            {
                "arm": arm,
                "other": other,
                **interval(difference)._asdict(),
                "p": p_against(difference),
                "p_nemenyi": float(nemenyi.loc[arm, other]) if ranked else math.nan,
            }
        )
    columns = ["arm", "other", "n", "mean", "low", "high", "p", "p_nemenyi"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(7, "p_holm", holm(table["p"].tolist()))
    return table
