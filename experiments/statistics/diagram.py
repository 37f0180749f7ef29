"""Average ranks and tests of pairs → a critical-difference diagram, after Demšar 2006, Figure 1.

Black on white, so that nothing is lost in grey. A bar joins arms that could not be told apart:
those with a dot on it, and not what it only passes.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from scikit_posthocs import critical_difference_diagram

from experiments.statistics.friedman import Friedman
from pipelines.errors import PipelineError
from pipelines.report.intervals import LEVEL

_INK, _SIZE = "#1a1a1a", 9.0
_WORDS: dict[str, Any] = {"fontsize": _SIZE, "color": _INK}
_TOP = 2.9  # of the axes; a row of labels is 1, and the ranks are at 0
TESTS = ("p_nemenyi", "p_holm", "p")


def draw(axes: Axes, found: Friedman, pairs: pd.DataFrame, test: str = "p_nemenyi") -> None:
    """Draw the diagram; the best rank is on the left.

    Args:
        axes: empty ones; what belongs around them, such as a caption, is for the caller.
        found: of `friedman`.
        pairs: of `post_hoc`, of the same blocks.
        test: the column of `pairs` by which two arms are joined: `p_nemenyi`, `p_holm` (paired
            t-tests, corrected) or `p` (not corrected). Only with Nemenyi's is the critical
            difference drawn, which belongs to it.

    Raises:
        PipelineError: an unknown test.
    """
    if test not in TESTS:
        raise PipelineError(f"no test {test!r}: choose from {', '.join(TESTS)}.")
    names = [str(name) for name in found.ranks.index]
    ranks = pd.Series(found.ranks.to_numpy(dtype=float), index=names)
    matrix = significance(pairs, names, test)
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
    left = axes.get_yaxis_transform()
    axes.text(
        -0.01, 0, "average rank\n(1 is best)", ha="right", va="center", transform=left, **_WORDS
    )
    if test == "p_nemenyi":
        best = float(ranks.iloc[0])
        axes.plot([best, best + found.critical], [1.6, 1.6], color=_INK, linewidth=1.2, marker="|")
        said = f"critical difference {found.critical:.2f} (Nemenyi, α = {LEVEL})"
        axes.text(best, 1.95, said, va="bottom", **_WORDS)


def significance(pairs: pd.DataFrame, names: list[str], test: str) -> pd.DataFrame:
    """A column of the tests of pairs as a symmetric table, arms × arms, 1 on the diagonal."""
    matrix = pd.DataFrame(1.0, index=names, columns=names)
    for arm, other, p in zip(pairs["arm"], pairs["other"], pairs[test], strict=True):
        if arm in matrix and other in matrix:
            matrix.loc[arm, other] = matrix.loc[other, arm] = p
    return matrix
