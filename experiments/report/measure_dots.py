"""Quantities measured at one place only → a figure: a panel for each, a row for each kernel.

From the means of `measured` to dots on a common scale of names, where `measure_pictures` would draw
curves of a single point.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.statistics.outcomes import having
from pipelines.report.drawing import INK, SMALL, canvas, finish, name_width, short
from pipelines.report.looks import look

_ROW = 0.19  # inches
_COLUMNS, _LONGEST = 4, 40  # panels beside each other, characters of a name
_LEAST = 0.1  # that an axis spans, lest it show differences that nobody would care for
_COLOUR = look("mlmoc").colour  # rows have names: nothing else tells them apart


def single(table: pd.DataFrame) -> bool:
    """Whether nothing was measured at more than one x, and something of more than one name."""
    xs = table.groupby(["measure", "line", "state"], sort=False)["x"].size()
    return int(np.max(xs.to_numpy())) == 1 and len(set(table["line"])) > 1


def dots(table: pd.DataFrame, caption: str) -> Figure:
    """A panel for each measure with a row for each kernel or way to choose.

    Args:
        table: rows of `measured`.
        caption: what stands below.
    """
    measures, lines = (
        [str(name) for name in dict.fromkeys(table[column])] for column in ("measure", "line")
    )
    columns = min(_COLUMNS, len(measures))
    shape = (math.ceil(len(measures) / columns), columns)
    names = [short(line, _LONGEST) for line in lines]
    left = 0.2 + name_width(lines, _LONGEST)
    figure, axes = canvas(
        caption, _ROW * len(lines) + 0.12, left=left, top=0.4, shape=shape, gaps=(0.7, 0.22)
    )
    for place, one in enumerate(axes):
        if place >= len(measures):
            one.remove()
            continue
        own = having(table, measure=[measures[place]])
        for row in own.to_dict("records"):
            y = lines.index(str(row["line"]))
            if np.isfinite(row["low"]):
                one.plot([row["low"], row["high"]], [y, y], color=_COLOUR, linewidth=1.4)
            one.plot(row["mean"], y, "o", color=_COLOUR, markersize=4.8, zorder=3)
        _finished(one, measures[place], len(lines))
        shown = names if place % columns == 0 else [""] * len(names)
        one.set_yticks(range(len(lines)), shown, parse_math=False)
    return figure


def _finished(axes: Axes, measure: str, rows: int) -> None:
    finish(axes, "", "", "")
    axes.set_title(
        measure[:1].upper() + measure[1:], fontsize=SMALL + 1, color=INK, loc="left", weight="bold"
    )
    axes.set_ylim(rows - 0.4, -0.6)
    low, high = axes.get_xlim()
    margin = max(0.05 * (high - low), (_LEAST - high + low) / 2)
    axes.set_xlim(low - margin, high + margin)
    if low < 0 < high:
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.tick_params(axis="y", length=0)
