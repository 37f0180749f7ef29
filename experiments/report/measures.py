"""Figures of measured quantities: value against width, query size or epoch, or one value a row."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from experiments.drawing import styles
from experiments.report.results import INITIAL, TRAINED
from experiments.statistics.curves import having
from pipelines.report.curves import interval
from pipelines.report.drawing import (
    INK,
    LEFT,
    SMALL,
    WIDTH,
    Style,
    canvas,
    finish,
    name_width,
    short,
    style_of,
)

_SPREAD = 10.0  # largest over smallest value from which an axis is logarithmic
_MOST_LINES, _OVERLAID = 8, 3  # lines of one figure; lines up to which both states share a panel
_STATES = {INITIAL: "at initialisation", TRAINED: "trained"}
_OFFSET = 0.012  # of a panel's width, between points of one x, so that their intervals are seen
_ROW = 0.19  # inches: height of a row of `dots`
_NAME = 40  # characters
_SPAN = 0.1  # least span of an axis of `dots`, so that negligible differences look it
_DOT = style_of("mlmoc").colour
_TITLE: dict[str, Any] = {"fontsize": SMALL + 1, "color": INK, "loc": "left", "weight": "bold"}


def measured(measures: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95% interval over seeds of each measured value.

    Args:
        measures: of `Results`, of one task.

    Returns:
        Columns measure, line (method and series, as far as they tell lines apart), axis, state, x,
        n, mean, low, high; rows in the order measured.
    """
    many = len(set(measures["method"])) > 1
    lines = [
        ", ".join(word for word in (method if many else "", series) if word)
        for method, series in zip(measures["method"], measures["series"], strict=True)
    ]
    keys = ["measure", "line", "axis", "state", "x"]
    grouped = measures.assign(line=lines).groupby(keys, sort=False, dropna=False)["value"]
    rows = [(*key, *interval(values)) for key, values in grouped if isinstance(key, tuple)]
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high"])


class Family(NamedTuple):
    """Measures that share a figure: of the same lines on the same axis.

    Attributes:
        of: common part of the names of its lines, omitted from them; may be empty.
        table: rows of `measured`.
    """

    of: str
    table: pd.DataFrame


def families(table: pd.DataFrame) -> list[Family]:
    """Split a table into figures.

    Lines that are too many for one pair of axes, such as those of each kernel under each ridge, are
    split by the last words of their names. A measure that is 0 throughout has no figure.
    """
    alike: dict[tuple[str, frozenset[str]], list[str]] = {}
    for measure in dict.fromkeys(table["measure"]):
        own = having(table, measure=[measure])
        if bool((own["mean"] != 0).any()):
            lines = frozenset(map(str, own["line"]))
            alike.setdefault((str(own["axis"].iloc[0]), lines), []).append(str(measure))
    return [
        family for measures in alike.values() for family in _split(having(table, measure=measures))
    ]


def _split(table: pd.DataFrame) -> list[Family]:
    parts = table["line"].astype(str).str.partition(", ").set_axis(["line", "comma", "of"], axis=1)
    if len(set(table["line"])) <= _MOST_LINES or "" in set(parts["comma"]):
        return [Family("", table)]
    named = table.assign(line=parts["line"])
    return [Family(of, pd.DataFrame(named[parts["of"] == of])) for of in dict.fromkeys(parts["of"])]


def single(table: pd.DataFrame) -> bool:
    """Whether everything was measured at one x only, and of more than one line."""
    xs = table.groupby(["measure", "line", "state"], sort=False)["x"].size()
    return int(np.max(xs.to_numpy())) == 1 and len(set(table["line"])) > 1


def dots(table: pd.DataFrame, caption: str) -> Figure:
    """A panel for each measure with a row for each line, where curves would be single points.

    Args:
        table: of `measured`.
        caption: text below the figure.
    """
    measures, lines = (list(map(str, dict.fromkeys(table[name]))) for name in ("measure", "line"))
    columns = min(4, len(measures))
    shape = (math.ceil(len(measures) / columns), columns)
    left = 0.2 + name_width(lines, _NAME)
    height = _ROW * len(lines) + 0.12
    figure, axes = canvas(caption, height, left=left, top=0.4, shape=shape, gaps=(0.7, 0.22))
    for index, one in enumerate(axes):
        if index >= len(measures):
            one.remove()
            continue
        for row in having(table, measure=[measures[index]]).to_dict("records"):
            y = lines.index(str(row["line"]))
            if np.isfinite(row["low"]):
                one.plot([row["low"], row["high"]], [y, y], color=_DOT, linewidth=1.4)
            one.plot(row["mean"], y, "o", color=_DOT, markersize=4.8, zorder=3)
        finish(one, "", "", "")
        one.set_title(_capital(measures[index]), **_TITLE)
        one.set_ylim(len(lines) - 0.4, -0.6)
        low, high = one.get_xlim()
        margin = max(0.05 * (high - low), (_SPAN - high + low) / 2)
        one.set_xlim(low - margin, high + margin)
        if low < 0 < high:
            one.axvline(0, color="#999999", linewidth=0.8, zorder=1)
        one.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        one.tick_params(axis="y", length=0)
        names = [short(line, _NAME) if index % columns == 0 else "" for line in lines]
        one.set_yticks(range(len(lines)), names, parse_math=False)
    return figure


def panels(family: Family, caption: str) -> Figure:
    """A panel for each measure, a line for each kernel or strategy.

    Trained networks are drawn with filled markers and solid lines, untrained ones hollow and
    dotted; with many lines in neighbouring panels with the same limits.

    Args:
        family: of `families`.
        caption: text below the figure.
    """
    table = family.table
    names, lines, states = (
        list(map(str, dict.fromkeys(table[column]))) for column in ("measure", "line", "state")
    )
    style = styles(lines)
    apart = len(states) > 1 and len(lines) > _OVERLAID
    cells = [
        (name, own) for name in names for own in ([[s] for s in states] if apart else [states])
    ]
    columns = 2 if apart else min(len(names), 2 if len(names) in (2, 4) else 3)
    handles = _handles(lines, [] if apart else states, style)
    width = name_width([str(handle.get_label()) for handle in handles])
    across = max(1, min(len(handles), int((WIDTH - 0.3) / (width + 0.6))))  # of the legend
    heading = 0.24 if family.of else 0.0
    top = heading + (0.5 if columns < 3 else 0.6) + 0.19 * math.ceil(len(handles) / across)
    height = 3.0 if len(cells) == 1 else 1.5 if columns == 3 or len(cells) > 4 else 1.9
    shape = (math.ceil(len(cells) / columns), columns)
    figure, axes = canvas(caption, height, top=top, left=LEFT, shape=shape, gaps=(0.86, 0.72))
    for one in axes[len(cells) :]:
        one.remove()
    for one, (name, shown) in zip(axes, cells, strict=False):
        _panel(one, having(table, measure=[name]), lines, shown, style)
        words = f"{name}, {_STATES.get(shown[0], shown[0])}" if apart else name
        title = textwrap.fill(_capital(words), {1: 80, 2: 38, 3: 22}[columns])
        one.set_title(title, **_TITLE)
    inch = 1 / figure.get_size_inches()[1]
    if family.of:
        font = {"weight": "bold", "fontsize": SMALL + 2, "color": INK}
        figure.text(0.13 / WIDTH, 1 - 0.2 * inch, family.of, parse_math=False, **font)
    if handles:
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.1 / WIDTH, 1 - (0.04 + heading) * inch),
            ncols=across,
            frameon=False,
            fontsize=SMALL,
            handlelength=2.6,
            columnspacing=1.2,
            borderaxespad=0,
        )
    return figure


def _panel(
    axes: Axes,
    own: pd.DataFrame,
    lines: Sequence[str],
    states: Sequence[str],
    style: Callable[[str], Style],
) -> None:
    x_of, ticks = _positions(own)
    span = max(x_of.values()) - min(x_of.values()) or 1.0
    drawn = [(name, state) for name in lines if name in set(own["line"]) for state in states]
    nearest = min(np.diff(sorted(x_of.values())), default=span)
    offset = min(_OFFSET * span, 0.6 * nearest / len(drawn))
    for number, (name, state) in enumerate(drawn):
        rows = having(own, line=[name], state=[state]).sort_values("x")
        if rows.empty:
            continue
        look = _line(style(name), TRAINED if len(states) == 1 else state)
        shift = (number - (len(drawn) - 1) / 2) * offset
        x = np.array([x_of[float(value)] for value in rows["x"].fillna(-1)]) + shift
        mean, low, high = (rows[end].to_numpy(dtype=float) for end in ("mean", "low", "high"))
        axes.plot(x, mean, linewidth=1.4, markersize=4.5, zorder=3, **look)
        axes.vlines(x, low, high, color=look["color"], linewidth=1.1, zorder=2)
    values = own["mean"].to_numpy(dtype=float)
    if (values > 0).all() and values.max() / values.min() > _SPREAD:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if values.max() / values.min() < 100:  # powers of ten alone would be one tick or none
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if values.min() < 0 < values.max():
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    _limits(axes, own)
    finish(axes, "", str(own["axis"].iloc[0]).capitalize(), "")
    axes.set_xlim(min(x_of.values()) - 0.08 * span, max(x_of.values()) + 0.08 * span)
    axes.set_xticks([x_of[value] for value in ticks], [f"{max(value, 0):g}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if ticks == [-1.0]:
        axes.set_xticks([])


def _limits(axes: Axes, own: pd.DataFrame) -> None:
    """Show all means, and cut intervals that would flatten them."""
    mean = own["mean"].to_numpy(dtype=float)
    low, high = (own[end].fillna(own["mean"]).to_numpy(dtype=float) for end in ("low", "high"))
    log = axes.get_yscale() == "log"
    if log:
        mean, low, high = np.log(mean), np.log(np.maximum(low, mean.min() / 3)), np.log(high)
    room = 0.6 * (np.ptp(mean) or abs(mean[0]) or 1.0)
    bottom = max(low.min(), mean.min() - room)
    top = min(high.max(), mean.max() + room)
    if not log and (mean >= 0).all():
        bottom = max(bottom, 0.0)  # no negative part of the axis for non-negative values
    margin = 0.06 * (top - bottom) or 0.5
    ends = bottom - margin, top + margin
    axes.set_ylim(*(np.exp(ends) if log else ends))


def _positions(own: pd.DataFrame) -> tuple[dict[float, float], list[float]]:
    """Position of each x on the axis, and those with a tick; −1 stands for no x.

    Logarithmic where the positive x spread by more than a factor of 6, with 0 a step to the left.
    """
    values = sorted({float(value) for value in own["x"].fillna(-1)})
    positive = [value for value in values if value > 0]
    if len(positive) > 2 and positive[-1] / positive[0] > 6:
        step = math.log(positive[1] / positive[0])
        x_of = {x: math.log(x) if x > 0 else math.log(positive[0]) - step for x in values}
    else:
        x_of = {x: x for x in values}
    ticks, span = [], (max(x_of.values()) - min(x_of.values())) or 1.0
    for value in values:
        if not ticks or x_of[value] - x_of[ticks[-1]] > 0.09 * span:
            ticks.append(value)
    return x_of, ticks


def _line(style: Style, state: str) -> dict[str, Any]:
    line = {"color": style.colour, "marker": style.marker, "linestyle": style.dash}
    return line | ({"markerfacecolor": "white", "linestyle": ":"} if state == INITIAL else {})


def _handles(
    lines: Sequence[str], states: Sequence[str], style: Callable[[str], Style]
) -> list[Line2D]:
    """Of the legend: the lines if they have names, then the states if two are drawn together."""
    shared: dict[str, Any] = {"linewidth": 1.4, "markersize": 4.5}
    entries = [(short(name, _NAME), _line(style(name), TRAINED)) for name in lines if name]
    if {INITIAL, TRAINED} <= set(states):
        entries += [(words, _line(Style(INK, "o"), state)) for state, words in _STATES.items()]
    return [Line2D([], [], label=label, **shared, **line) for label, line in entries]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
