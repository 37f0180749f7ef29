"""Drawing of studies' figures: styles of series, legends and limits that several axes share."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.report.drawing import SMALL, Style, cycled, style_of
from pipelines.strategies import STRATEGIES


def styles(names: Iterable[str]) -> Callable[[str], Style]:
    """Styles of several curves: a strategy has its own, any other name the next unused one."""
    names = list(dict.fromkeys(names))
    known = {name: style_of(name) for name in names if name in STRATEGIES}
    used = {(style.colour, style.marker) for style in known.values()}
    unused = (
        style
        for style in map(cycled, itertools.count())
        if (style.colour, style.marker) not in used
    )
    assigned = known | {name: next(unused) for name in names if name not in known}
    return lambda name: assigned.get(name) or style_of(name)


def series_style(
    number: int, *, lines: bool = True, marked: bool = True, hollow: bool = False
) -> dict[str, Any]:
    """Keyword arguments of `Axes.plot` for a series by its number, distinguishable in greyscale."""
    colour, marker, dash = cycled(number)
    return {
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "marker": marker if marked else "",
        "linestyle": dash if lines else "",
        "markersize": 5.0,
        "linewidth": 1.6,
    }


def legend_above(figure: Figure, handles: Sequence[Line2D]) -> Figure:
    """Put a legend in one line above all axes."""
    figure.legend(
        handles=list(handles),
        loc="upper center",
        ncols=len(handles),
        fontsize=SMALL,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.4,
    )
    return figure


def share_y_limits(panels: Sequence[Axes]) -> None:
    """Give axes the limits that show what any of them shows."""
    ends = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
