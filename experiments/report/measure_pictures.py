"""Measured quantities → figures: a panel for each, value against width, query size or epoch.

From the means of `measured` and the caption that stands below.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from experiments.report.measures import INITIAL, TRAINED
from experiments.report.study_pictures import Looked
from experiments.statistics.outcomes import having
from pipelines.report.drawing import INK, LEFT, SMALL, WIDTH, canvas, finish, name_width, short
from pipelines.report.intervals import interval
from pipelines.report.looks import Look, looks

_SPREAD = 10.0  # values that differ by more than so many times are shown on a logarithmic axis
_MOST_LINES, _OVERLAID = 8, 3  # in one figure; in panels that both states share
_STATES = {INITIAL: "at initialisation", TRAINED: "trained"}
_OFFSET = 0.012  # of a panel: how far points of one x are apart, so that intervals are seen


def measured(measures: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95% interval over seeds of each value that was measured.

    Args:
        measures: of `experiments.report.results`, of one subject.

    Returns:
        Columns measure, line (arm and series, as far as they tell lines apart), axis, state, x, n,
        mean, low, high; rows in the order measured.
    """
    many = len(set(measures["arm"])) > 1
    lines = [
        ", ".join(word for word in (arm if many else "", series) if word)
        for arm, series in zip(measures["arm"], measures["series"], strict=True)
    ]
    keys = ["measure", "line", "axis", "state", "x"]
    grouped = measures.assign(line=lines).groupby(keys, sort=False, dropna=False)["value"]
    rows = [(*key, *interval(values)) for key, values in grouped if isinstance(key, tuple)]
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high"])


class Family(NamedTuple):
    """Measures that make one figure: of the same lines on the same axis.

    Attributes:
        of: what all of its lines have in common and their names therefore lack; may be empty.
        table: rows of `measured`.
    """

    of: str
    table: pd.DataFrame


def families(table: pd.DataFrame) -> list[Family]:
    """The table in parts that make one figure each.

    Lines that are too many for one pair of axes, such as those of each kernel under each ridge, are
    told apart by the last words of their names. A measure that is 0 throughout is left to tables.
    """
    alike: dict[tuple[str, frozenset[str]], list[str]] = {}
    for measure in dict.fromkeys(table["measure"]):
        own = having(table, measure=[measure])
        if bool((own["mean"] != 0).any()):
            lines = frozenset(map(str, own["line"]))
            alike.setdefault((str(own["axis"].iloc[0]), lines), []).append(str(measure))
    found = [having(table, measure=names) for names in alike.values()]
    return [one for own in found for one in _parted(own)]


def _parted(table: pd.DataFrame) -> list[Family]:
    split = {str(line): str(line).partition(", ") for line in table["line"]}
    if len(split) <= _MOST_LINES or not all(comma for _, comma, _ in split.values()):
        return [Family("", table)]
    parts = dict.fromkeys(last for _, _, last in split.values())
    return [
        Family(part, own.assign(line=[split[str(line)][0] for line in own["line"]]))
        for part in parts
        for own in [having(table, line=[line for line, own in split.items() if own[2] == part])]
    ]


def panels(family: Family, caption: str) -> Figure:
    """A panel for each measure, a line for each kernel or way to choose.

    What was measured of a trained network is drawn filled and whole, of an untrained one hollow and
    dotted; where there are many lines, in panels beside each other that have the same limits.

    Args:
        family: see `families`.
        caption: what stands below.
    """
    table = family.table
    names, lines, states = (
        [str(name) for name in dict.fromkeys(table[column])]
        for column in ("measure", "line", "state")
    )
    looked = looks(lines)
    apart = len(states) > 1 and len(lines) > _OVERLAID
    cells = [
        (name, own) for name in names for own in ([[s] for s in states] if apart else [states])
    ]
    columns = 2 if apart else min(len(names), 2 if len(names) in (2, 4) else 3)
    handles = _handles(lines, [] if apart else states, looked)
    across = _columns([str(handle.get_label()) for handle in handles])
    heading = 0.24 if family.of else 0.0
    top = heading + (0.5 if columns < 3 else 0.6)
    top += 0.19 * math.ceil(len(handles) / across) if handles else 0.0
    height = 3.0 if len(cells) == 1 else 1.5 if columns == 3 or len(cells) > 4 else 1.9
    shape = (math.ceil(len(cells) / columns), columns)
    figure, axes = canvas(caption, height, top=top, left=LEFT, shape=shape, gaps=(0.86, 0.72))
    for place, one in enumerate(axes):
        if place < len(cells):
            name, shown = cells[place]
            _panel(one, having(table, measure=[name]), lines, shown, looked)
            words = f"{name}, {_STATES.get(shown[0], shown[0])}" if apart else name
            title = textwrap.fill(words[:1].upper() + words[1:], {1: 80, 2: 38, 3: 22}[columns])
            one.set_title(title, fontsize=SMALL + 1, color=INK, loc="left", fontweight="bold")
        else:
            one.remove()
    inch = 1 / figure.get_size_inches()[1]
    if family.of:
        style = {"weight": "bold", "fontsize": SMALL + 2, "color": INK}
        figure.text(0.13 / WIDTH, 1 - 0.2 * inch, family.of, parse_math=False, **style)
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
    axes: Axes, own: pd.DataFrame, lines: Sequence[str], states: Sequence[str], looked: Looked
) -> None:
    here = [name for name in lines if name in set(own["line"])]
    places, ticks = _places(own)
    span = max(places.values()) - min(places.values()) or 1.0
    drawn = [(name, state) for name in here for state in states]
    nearest = min(np.diff(sorted(places.values())), default=span)
    offset = min(_OFFSET * span, 0.6 * nearest / len(drawn))
    for number, (name, state) in enumerate(drawn):
        rows = having(own, line=[name], state=[state]).sort_values("x")
        if rows.empty:
            continue
        style = _style(looked(name), TRAINED if len(states) == 1 else state)
        shift = (number - (len(drawn) - 1) / 2) * offset
        x = np.array([places[float(value)] for value in rows["x"].fillna(-1)]) + shift
        mean, low, high = (rows[end].to_numpy(dtype=float) for end in ("mean", "low", "high"))
        axes.plot(x, mean, linewidth=1.4, markersize=4.5, zorder=3, **style)
        axes.vlines(x, low, high, color=style["color"], linewidth=1.1, zorder=2)
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
    axes.set_xlim(min(places.values()) - 0.08 * span, max(places.values()) + 0.08 * span)
    axes.set_xticks([places[value] for value in ticks], [f"{max(value, 0):g}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if ticks == [-1.0]:
        axes.set_xticks([])


def _limits(axes: Axes, own: pd.DataFrame) -> None:
    """Show all means, and of intervals as much as does not squash them."""
    mean = own["mean"].to_numpy(dtype=float)
    low, high = (own[end].fillna(own["mean"]).to_numpy(dtype=float) for end in ("low", "high"))
    if axes.get_yscale() == "log":
        mean, low, high = np.log(mean), np.log(np.maximum(low, mean.min() / 3)), np.log(high)
    room = 0.6 * (np.ptp(mean) or abs(mean[0]) or 1.0)
    bottom = max(low.min(), mean.min() - room)
    top = min(high.max(), mean.max() + room)
    if axes.get_yscale() != "log" and (mean >= 0).all():
        bottom = max(bottom, 0.0)  # what is never negative is not shown as if it were
    margin = 0.06 * (top - bottom) or 0.5
    ends = bottom - margin, top + margin
    axes.set_ylim(*(np.exp(ends) if axes.get_yscale() == "log" else ends))


def _places(own: pd.DataFrame) -> tuple[dict[float, float], list[float]]:
    """Where each x is drawn, and which of them have a tick; −1 stands for no x at all.

    Widths and epochs double from one to the next: where they spread far they are drawn evenly.
    """
    values = sorted({float(value) for value in own["x"].fillna(-1)})
    positive = [value for value in values if value > 0]
    if len(positive) > 2 and positive[-1] / positive[0] > 6:
        step = math.log(positive[1] / positive[0])
        places = {x: math.log(x) if x > 0 else math.log(positive[0]) - step for x in values}
    else:
        places = {x: x for x in values}
    ticks, span = [], (max(places.values()) - min(places.values())) or 1.0
    for value in values:
        if not ticks or places[value] - places[ticks[-1]] > 0.09 * span:
            ticks.append(value)
    return places, ticks


def _style(look: Look, state: str) -> dict:
    style = {"color": look.colour, "marker": look.marker, "linestyle": look.dash}
    if state == INITIAL:
        style |= {"markerfacecolor": "white", "linestyle": ":"}
    return style


def _handles(lines: Sequence[str], states: Sequence[str], looked: Looked) -> list[Line2D]:
    """Of the legend: the lines if they have names, then the states if two are drawn together."""
    named = [name for name in lines if name]
    style = {"linewidth": 1.4, "markersize": 4.5}
    made = [
        Line2D([], [], label=short(name, 40), **style, **_style(looked(name), TRAINED))
        for name in named
    ]
    if {INITIAL, TRAINED} <= set(states):
        plain = Look(INK, "o")
        for state, words in _STATES.items():
            made.append(Line2D([], [], label=words, **style, **_style(plain, state)))
    return made


def _columns(labels: Sequence[str]) -> int:
    """How many entries of a legend fit beside each other."""
    return max(1, min(len(labels), int((WIDTH - 0.3) / (name_width(labels) + 0.6))))
