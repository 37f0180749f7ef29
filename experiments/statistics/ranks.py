"""Several methods at once: Friedman's test, average ranks, tests of pairs, their diagram.

The procedure of Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7,
2006; a block is one task with one seed.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scikit_posthocs import critical_difference_diagram, posthoc_nemenyi_friedman
from scipy import stats

from experiments.statistics.significance import LEVEL, holm, p_against
from pipelines.core.errors import PipelineError
from pipelines.report.curves import interval

_BLOCK = "a block is one task (data set, network and settings) with one seed"
_INK, _SIZE = "#1a1a1a", 9.0
_TOP = 2.9  # of the axes; a row of labels is 1, and the ranks are at 0


class Friedman(NamedTuple):
    """Friedman's test of the hypothesis that all methods are equal.

    Attributes:
        blocks: complete ones, in which every method has a run.
        dropped: blocks left out because a method had no run in them.
        ranks: average rank of each method, best first; 1 is the highest accuracy.
        chi2: Friedman's statistic, corrected for ties (scipy's).
        p: of it.
        uncorrected: the statistic as Demšar gives it, equal to `chi2` without ties.
        f: Iman and Davenport's F of `uncorrected`, less conservative; infinite where all blocks
            rank the methods alike.
        f_p: of it, with k − 1 and (k − 1)(n − 1) degrees of freedom.
        critical: Nemenyi's critical difference of two average ranks, α = .05.
        unit: definition of a block.
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


def _complete(blocks: pd.DataFrame) -> pd.DataFrame:
    """The blocks in which every method has a run, without the methods that have no run at all."""
    there = blocks.dropna(axis="columns", how="all")
    kept = there.dropna()
    if there.shape[1] < 3 or len(kept) < 2:
        raise PipelineError(
            f"Friedman's test needs three methods or more and two blocks or more in which each has "
            f"a run, and there are {there.shape[1]} methods ({', '.join(map(str, there.columns))}) "
            f"and {len(kept)} such blocks ({_BLOCK}): wait for more runs, or compare two methods "
            "by their paired difference."
        )
    return kept


def friedman(blocks: pd.DataFrame) -> Friedman:
    """Test whether the methods differ at all.

    Args:
        blocks: blocks × methods, higher is better, of `curves.blocks`.

    Raises:
        PipelineError: fewer than three methods or two complete blocks.
    """
    kept = _complete(blocks)
    n, k = kept.shape
    values = kept.to_numpy(dtype=float)
    ranks = stats.rankdata(-values, axis=1).mean(axis=0)
    # χ²_F = 12n / (k(k + 1)) · [Σ_j R_j² − k(k + 1)²/4], Demšar, section 3.2.2
    plain = 12 * n / (k * (k + 1)) * (float((ranks**2).sum()) - k * (k + 1) ** 2 / 4)
    if (values == values[:, :1]).all():  # ties only, for which scipy returns 0/0
        chi2, p = 0.0, 1.0
    else:
        found = stats.friedmanchisquare(*values.T)
        chi2, p = float(found.statistic), float(found.pvalue)
    # F_F = (n − 1) χ²_F / (n(k − 1) − χ²_F)
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
        unit=_BLOCK,
    )


def critical_difference(methods: int, blocks: int, alpha: float = LEVEL) -> float:
    """Nemenyi's critical difference of two average ranks, q √(k(k+1)/6n), q of Demšar's Table 5.

    Args:
        methods: k.
        blocks: n.
        alpha: family-wise error rate.
    """
    q = float(stats.studentized_range.isf(alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def post_hoc(blocks: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods, after Friedman's test.

    The paired t-tests use all blocks that both methods have a run in, Nemenyi's the complete ones.
    Holm corrects for all pairs of the table.

    Args:
        blocks: blocks × methods, higher is better, fractions.

    Returns:
        A row a pair, in the order of the columns: method, other, n, mean (method minus other), low,
        high (95% interval, not corrected), p (paired t), p_holm, p_nemenyi (NaN where Friedman's
        test cannot be made).
    """
    try:
        nemenyi = posthoc_nemenyi_friedman(_complete(blocks))
    except PipelineError:
        nemenyi = pd.DataFrame()
    rows = []
    for method, other in itertools.combinations(blocks.columns, 2):
        difference = (blocks[method] - blocks[other]).dropna().to_numpy(dtype=float)
        ranked = method in nemenyi and other in nemenyi
        p_nemenyi = float(nemenyi.loc[method, other]) if ranked else math.nan
        rows.append((method, other, *interval(difference), p_against(difference), p_nemenyi))
    columns = ["method", "other", "n", "mean", "low", "high", "p", "p_nemenyi"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(7, "p_holm", holm(table["p"].tolist()))
    return table


def draw(axes: Axes, found: Friedman, pairs: pd.DataFrame) -> None:
    """Draw the critical-difference diagram (Demšar, Figure 1) by Nemenyi's test, best rank left.

    A bar joins the methods with a dot on it, which are statistically indistinguishable; those that
    it only passes are not among them. Black on white, so that nothing is lost in greyscale.

    Args:
        axes: empty ones.
        found: of `friedman`.
        pairs: of `post_hoc`, of the same blocks.
    """
    names = [str(name) for name in found.ranks.index]
    ranks = pd.Series(found.ranks.to_numpy(dtype=float), index=names)
    matrix = pd.DataFrame(1.0, index=names, columns=names)
    for method, other, p in zip(pairs["method"], pairs["other"], pairs["p_nemenyi"], strict=True):
        if method in matrix and other in matrix:
            matrix.loc[method, other] = matrix.loc[other, method] = p
    critical_difference_diagram(
        ranks,
        matrix,
        alpha=LEVEL,
        ax=axes,
        label_fmt_left="{label}  {rank:.2f} ",
        label_fmt_right=" {rank:.2f}  {label}",
        label_props={"fontsize": _SIZE, "parse_math": False},
        marker_props={"s": 14},
        elbow_props={"linewidth": 0.9},
        crossbar_props={"color": _INK, "linewidth": 2.2, "marker": "o", "markersize": 5.5},
        color_palette=dict.fromkeys(names, _INK),
        text_h_margin=0.02 * len(names),
    )
    axes.tick_params(labelsize=_SIZE)
    axes.set_ylim(top=_TOP)
    text: dict[str, Any] = {"fontsize": _SIZE, "color": _INK}
    left = {"ha": "right", "va": "center", "transform": axes.get_yaxis_transform(), **text}
    axes.text(-0.01, 0, "average rank\n(1 is best)", **left)
    best = float(ranks.iloc[0])
    axes.plot([best, best + found.critical], [1.6, 1.6], color=_INK, linewidth=1.2, marker="|")
    label = f"critical difference {found.critical:.2f} (Nemenyi, α = {LEVEL})"
    axes.text(best, 1.95, label, va="bottom", **text)
