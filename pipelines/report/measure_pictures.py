"""Measured quantities → figures: a panel for each, value against width, query size or epoch.

From the means of `measured` and the caption that stands below.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from pipelines.report.drawing import INK, LEFT, SMALL, WIDTH, canvas, finish, name_width, short
from pipelines.report.looks import Look, looks
from pipelines.report.measures import INITIAL, TRAINED
from pipelines.report.study_pictures import Looked
from pipelines.statistics.intervals import interval
from pipelines.statistics.outcomes import having

_SPREAD = 30.0  # values that differ by more than so many times are shown on a logarithmic axis
_OFFSET = 0.012  # of a panel: how far points of one x are apart, so that intervals are seen


def measured(measures: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95% interval over seeds of each value that was measured.

    Args:
        measures: of `pipelines.report.results`, of one subject.

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


def families(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The table in parts that make one figure each: measures of the same lines on the same axis."""
    alike: dict[tuple[str, frozenset[str]], list[str]] = {}
    for measure in dict.fromkeys(table["measure"]):
        own = having(table, measure=[measure])
        lines = frozenset(map(str, own["line"]))
        alike.setdefault((str(own["axis"].iloc[0]), lines), []).append(str(measure))
    return [having(table, measure=names) for names in alike.values()]


def panels(table: pd.DataFrame, caption: str) -> Figure:
    """One family: a panel for each measure, a line for each kernel or way to choose.

    What was measured of a trained network is drawn filled and whole, of an untrained one hollow and
    dotted.

    Args:
        table: of `measured`, one of `families`.
        caption: what stands below.
    """
    names = [str(name) for name in dict.fromkeys(table["measure"])]
    lines = [str(name) for name in dict.fromkeys(table["line"])]
    looked = looks(lines)
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) / columns)
    handles = _handles(table, lines, looked)
    across = _columns([str(handle.get_label()) for handle in handles])
    top = 0.42 + 0.19 * math.ceil(len(handles) / across) if handles else 0.42
    height = 3.0 if len(names) == 1 else 1.9 if columns == 2 else 1.5
    gaps = (0.75, 0.72)
    figure, axes = canvas(caption, height, top=top, left=LEFT, shape=(rows, columns), gaps=gaps)
    for place, one in enumerate(axes):
        if place < len(names):
            own = having(table, measure=[names[place]])
            _panel(one, own, lines, looked, columns)
        else:
            one.remove()
    if handles:
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.1 / WIDTH, 1 - 0.04 / figure.get_size_inches()[1]),
            ncols=across,
            frameon=False,
            fontsize=SMALL,
            handlelength=2.6,
            columnspacing=1.2,
            borderaxespad=0,
        )
    return figure


def _panel(
    axes: Axes, own: pd.DataFrame, lines: Sequence[str], looked: Looked, columns: int
) -> None:
    here = [name for name in lines if name in set(own["line"])]
    states = list(dict.fromkeys(own["state"]))
    places, ticks = _places(own)
    span = max(places.values()) - min(places.values()) or 1.0
    for number, (name, state) in enumerate((n, s) for n in here for s in states):
        rows = having(own, line=[name], state=[state]).sort_values("x")
        if rows.empty:
            continue
        style = _style(looked(name), state)
        shift = (number - (len(here) * len(states) - 1) / 2) * _OFFSET * span
        x = np.array([places[float(value)] for value in rows["x"].fillna(-1)]) + shift
        mean, low, high = (rows[end].to_numpy(dtype=float) for end in ("mean", "low", "high"))
        axes.plot(x, mean, linewidth=1.4, markersize=4.5, zorder=3, **style)
        axes.vlines(x, low, high, color=style["color"], linewidth=1.1, zorder=2)
    values = own["mean"].to_numpy(dtype=float)
    if (values > 0).all() and values.max() / values.min() > _SPREAD:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if values.min() < 0 < values.max():
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    _limits(axes, own)
    axis = str(own["axis"].iloc[0])
    title = str(own["measure"].iloc[0])
    finish(axes, title[:1].upper() + title[1:], axis.capitalize(), "", SMALL + 1.5)
    axes.title.set_fontsize(SMALL + (1.5 if len(title) < 60 // columns else 0))
    axes.set_xlim(min(places.values()) - 0.08 * span, max(places.values()) + 0.08 * span)
    axes.set_xticks([places[value] for value in ticks], [f"{max(value, 0):g}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if axes.get_yscale() == "log":
        axes.yaxis.set_minor_formatter(NullFormatter())
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


def _handles(table: pd.DataFrame, lines: Sequence[str], looked: Looked) -> list[Line2D]:
    """Of the legend: the lines if they have names, then the states if there are two."""
    named = [name for name in lines if name]
    style = {"linewidth": 1.4, "markersize": 4.5}
    made = [
        Line2D([], [], label=short(name, 40), **style, **_style(looked(name), TRAINED))
        for name in named
    ]
    if {INITIAL, TRAINED} <= set(table["state"]):
        plain = Look(INK, "o")
        for state, words in ((INITIAL, "at initialisation"), (TRAINED, "trained")):
            made.append(Line2D([], [], label=words, **style, **_style(plain, state)))
    return made


def _columns(labels: Sequence[str]) -> int:
    """How many entries of a legend fit beside each other."""
    return max(1, min(len(labels), int((WIDTH - 0.3) / (name_width(labels) + 0.6))))
