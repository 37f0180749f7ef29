"""Tables of a study → its figures: differences in one column, costs against gains, answers.

Each takes a table of `experiments.statistics` and a caption that says n, seeds and settings, so
that a figure can leave the page it came with.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.report.placing import place
from experiments.statistics.outcomes import having
from pipelines.report.drawing import (
    INK,
    LEFT,
    SMALL,
    WIDTH,
    canvas,
    finish,
    frame,
    label_ticks,
    line,
    name_curves,
    name_width,
    short,
)
from pipelines.report.looks import Look
from pipelines.report.pictures import duration

Looked = Callable[[str], Look]
_ROW, _NUMBERS = 0.235, 1.85  # inches: a row, the numbers beside it


def forest(table: pd.DataFrame, caption: str, looked: Looked, title: str) -> Figure:
    """Differences from random, one below the other, with their intervals and numbers.

    Args:
        table: subject, arm, n, mean, low, high (fractions); a filled marker is one whose interval
            leaves out 0, a head at the edge of the figure an interval that goes on beyond it.
        caption: what stands below.
        looked: how each arm is drawn.
        title: what is shown.
    """
    subjects = list(dict.fromkeys(table["subject"]))
    rows = len(table) + len(subjects)
    names = [str(name) for name in table["arm"]]
    left = 0.35 + max(name_width(names), 0.6)
    figure, (axes,) = canvas(caption, _ROW * rows + 0.1, left=left, right=_NUMBERS, top=0.46)
    axes.axvline(0, color=looked("random").colour, linewidth=1.2, zorder=1)
    axes.set_xlim(*frame(table, 100.0, include=[0.0]))
    y, ticks = 0.0, []
    text = {"fontsize": SMALL + 0.5, "weight": "bold", "va": "center", "color": INK}
    text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over lines behind it
    width = WIDTH - left - _NUMBERS
    for subject in subjects:
        start = (0.13 - left) / width  # from the edge of the figure, where no line runs through
        across = axes.get_yaxis_transform()
        axes.text(start, y, subject, transform=across, parse_math=False, **text)
        y += 1
        for row in having(table, subject=[subject]).to_dict("records"):
            _interval(axes, row, y, looked)
            ticks.append(y)
            y += 1
    axes.set_ylim(y - 0.4, -0.6)
    finish(axes, title, "Test accuracy minus random's (points)", "")
    axes.set_yticks(ticks, [short(name) for name in names], parse_math=False)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


def _interval(axes: Axes, row: dict, y: float, looked: Looked) -> None:
    mean, low, high = (100 * row[name] for name in ("mean", "low", "high"))
    colour, marker, _ = looked(row["arm"])
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color=colour, linewidth=1.8, zorder=2)
        for end, head in _beyond(low, high, axes.get_xlim(), "<>"):
            axes.plot(end, y, head, color=colour, markersize=5, clip_on=False, zorder=2)
    sure = np.isfinite(low) and (low > 0 or high < 0)
    face = colour if sure else "white"
    axes.plot(mean, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
    ends = f" ({low:+.1f} to {high:+.1f})" if np.isfinite(low) else ""
    said = f"{mean:+.1f}{ends}, n = {row['n']}".replace("-", "−")
    axes.text(
        1.025, y, said, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=INK
    )


def _beyond(low: float, high: float, limits: tuple[float, float], heads: str) -> list:
    """The edges that an interval goes on beyond, each with the marker that says so."""
    ends = zip(limits, heads, (low < limits[0], high > limits[1]), strict=True)
    return [(edge, head) for edge, head, beyond in ends if beyond]


def gain(table: pd.DataFrame, caption: str, looked: Looked) -> Figure:
    """What queries cost against what they gain.

    Args:
        table: arm, seconds (of a query), gained, gained_low, gained_high (fractions); the
            reference gains 0. A head at the edge of the figure: the interval goes on beyond it.
        caption: what stands below.
        looked: how each arm is drawn.
    """
    figure, (axes,) = canvas(caption, 3.5)
    points, bars, colours, names = [], [], [], []
    for row in table.to_dict("records"):
        x, (mean, low, high) = row["seconds"], (100 * row[f"gained{end}"] for end in _ENDS)
        colour, marker, _ = looked(row["arm"])
        axes.plot(x, mean, marker, color=colour, markersize=7, zorder=3)
        if np.isfinite(low):
            axes.plot([x, x], [low, high], color=colour, linewidth=1.3, zorder=2)
            bars.append((x, low, x, high))
            colours.append(colour)
        points.append((x, mean))
        names.append(str(row["arm"]))
    axes.axhline(0, color=looked("random").colour, linewidth=1.2, zorder=1)
    seconds = table["seconds"].to_numpy(dtype=float)
    axes.set_xscale("log")
    room = (name_width(names) + 0.2) / (WIDTH - LEFT - 0.3)  # for a name right of the last point
    first, last = seconds.min() / 1.7, seconds.max()
    axes.set_xlim(first, last * max(2.2, (last / first) ** (room / (1 - room))))
    shown = table.rename(columns={f"gained{end}": n for end, n in zip(_ENDS, _NAMES, strict=True)})
    axes.set_ylim(*frame(shown, 100.0, include=[0.0]))
    for (x, low, _, high), colour in zip(bars, colours, strict=True):
        for end, head in _beyond(low, high, axes.get_ylim(), "v^"):
            axes.plot(x, end, head, color=colour, markersize=5, clip_on=False, zorder=2)
    finish(
        axes,
        "What a query costs, and what it gains",
        "Time of one query",
        "Accuracy minus random's (points)",
    )
    ratio = seconds.max() / seconds.min()
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0) if ratio < 1e3 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    place(axes, points, names, bars)
    return figure


_ENDS, _NAMES = ("", "_low", "_high"), ("mean", "low", "high")


def answers(
    linearised: pd.DataFrame, trained: pd.DataFrame, caption: str, looked: Looked
) -> Figure:
    """Accuracy of the linearised network after each answer, and of the trained ones.

    Args:
        linearised: strategy (the arm), labelled, mean, low, high, after each answer.
        trained: the same after each training, also of arms that ask in batches.
        caption: what stands below.
        looked: how each arm is drawn.
    """
    names = [str(name) for name in dict.fromkeys(trained["strategy"])]
    figure, (axes,) = canvas(caption, 3.6, right=0.62 + name_width(names))
    for name in dict.fromkeys(linearised["strategy"]):
        own = having(linearised, strategy=[name])
        x, mean, low, high = (
            own[column].to_numpy(dtype=float) for column in ("labelled", "mean", "low", "high")
        )
        colour = looked(str(name)).colour
        axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.07, linewidth=0)
        axes.plot(x, 100 * mean, color=colour, linewidth=1.3, zorder=3)
    for name in names:
        line(axes, trained, name, 100.0, 0.0, 5.5, _thin(looked, set(linearised["strategy"])))
    both = pd.concat([linearised, trained])
    axes.set_ylim(*frame(both, 100.0))
    label_ticks(axes, trained, 8)
    finish(axes, "One label at a time", "Number of labels", "Test accuracy (%)")
    name_curves(axes, trained, 100.0, 3.6, looked)
    return figure


def _thin(looked: Looked, sequential: set[str]) -> Looked:
    """Between the trainings of a sequential arm there is the curve of its answers, and no line."""
    return lambda name: looked(name)._replace(dash="") if name in sequential else looked(name)
