"""Aggregates → the figures of the report.

Each function takes a table of `pipelines.report.curves` and the caption that stands below, which
says n, seeds and settings, so that a figure can leave the page it came with.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.report.curves import strategies
from pipelines.report.drawing import (
    INK,
    LEFT,
    NORMAL,
    QUIET,
    SMALL,
    canvas,
    finish,
    frame,
    label_ticks,
    line,
    name_curves,
    name_width,
    short,
)
from pipelines.report.looks import COLOURS, Look, look

_LABELS, _POINTS = "Number of labels", "Accuracy minus random (points)"
_DIFFERENCE = "Difference from random, same seed"
_TOGETHER = 4  # so many bands can be told apart in one pair of axes
_MOST_BANDS = 6  # so many can still be seen
UNBANDED = "Means over seeds; their intervals stand in the other figures"
_STAGES = {
    "predict": "#56b4e9",
    "certificate": "#f0c75e",
    "kernel": "#0072b2",
    "gradients": "#882255",
    "posterior": "#d55e00",
    "score": "#009e73",
    "select": "#cc79a7",
}


def banded(curve: pd.DataFrame) -> bool:
    """Whether the intervals of so many curves can be seen in one pair of axes."""
    return len(strategies(curve)) <= _MOST_BANDS


def accuracy(curve: pd.DataFrame, caption: str, looked: Callable[[str], Look] = look) -> Figure:
    """Test accuracy in percent against the number of labels, mean over seeds.

    With 95% bands where they can be told apart: see `banded`.
    """
    names = strategies(curve)
    figure, (axes,) = canvas(caption, 3.4, right=0.62 + name_width(names))
    for name in names:
        line(axes, curve, name, 100.0, 0.12 if banded(curve) else 0.0, looked=looked)
    shown = curve if banded(curve) else curve.assign(low=curve["mean"], high=curve["mean"])
    low, high = frame(shown, 100.0)
    axes.set_ylim(low, min(high, 100.5))
    label_ticks(axes, curve, 8)
    finish(axes, "Test accuracy", _LABELS, "Test accuracy (%)")
    name_curves(axes, curve, 100.0, 3.4, looked)
    return figure


def difference(curve: pd.DataFrame, caption: str, looked: Callable[[str], Look] = look) -> Figure:
    """Paired difference from random in percentage points, mean and 95% band over seeds.

    A panel for each strategy, the others' means behind, where bands would cover each other.
    """
    names = strategies(curve)
    if len(names) > _TOGETHER:
        return _difference_panels(curve, caption, looked)
    figure, (axes,) = canvas(caption, 3.4, right=0.62 + name_width(names))
    axes.axhline(0, color=look("random").colour, linewidth=1.2, zorder=1)
    for name in names:
        line(axes, curve, name, 100.0, 0.14, looked=looked)
    axes.set_ylim(*frame(curve, 100.0, include=[0.0]))
    label_ticks(axes, curve, 8)
    finish(axes, _DIFFERENCE, _LABELS, _POINTS)
    name_curves(axes, curve, 100.0, 3.4, looked)
    return figure


def _difference_panels(curve: pd.DataFrame, caption: str, looked: Callable[[str], Look]) -> Figure:
    names, columns = strategies(curve), 3 if len(strategies(curve)) <= 9 else 4
    rows = math.ceil(len(names) / columns)
    figure, panels = canvas(
        caption, 1.3, top=0.62, left=0.75, shape=(rows, columns), gaps=(0.36, 0.2)
    )
    limits = frame(curve, 100.0, include=[0.0])
    for place, axes in enumerate(panels):
        if place >= len(names):
            axes.remove()
            continue
        for other in names:
            own = curve[curve["strategy"] == other]
            if other != names[place]:
                axes.plot(own["labelled"], own["mean"] * 100, color=QUIET, linewidth=0.8, zorder=1)
        axes.axhline(0, color=look("random").colour, linewidth=1.2, zorder=1)
        line(axes, curve, names[place], 100.0, 0.18, 3.5, looked)
        axes.set_ylim(*limits)
        label_ticks(axes, curve, 12 // columns)
        finish(axes, short(names[place]), "", "", size=SMALL + 1)
        if place % columns:
            axes.tick_params(labelleft=False)
        if place + columns < len(names):
            axes.tick_params(labelbottom=False)
    first, last = panels[0].get_position(), panels[columns * rows - columns].get_position()
    inch = 1 / figure.get_size_inches()[1]
    titles: list[tuple[float, float, str, dict[str, Any]]] = [
        (0.02, (first.y1 + last.y0) / 2, _POINTS, {"rotation": 90, "va": "center"}),
        ((first.x0 + 1) / 2, last.y0 - 0.4 * inch, _LABELS, {"ha": "center"}),
        (first.x0, 1 - 0.24 * inch, _DIFFERENCE, {"weight": "bold", "fontsize": NORMAL + 1}),
    ]
    for x, y, text, style in titles:
        figure.text(x, y, text, {"color": INK, "fontsize": NORMAL} | style)
    return figure


def training(
    fit: pd.DataFrame, residual: pd.DataFrame, unfitted: pd.DataFrame, caption: str
) -> Figure:
    """Training accuracy and residual against the number of labels; means over seeds.

    Args:
        fit: curve of the training accuracy.
        residual: curve of the rms residual on the labelled set.
        unfitted: the rows of the tidy table whose fit did not reach its labels.
        caption: what stands below.
    """
    names = strategies(fit)
    figure, (left, right) = canvas(caption, 2.3, right=0.62 + name_width(names), shape=(1, 2))
    for axes, curve, column, scale in (
        (left, fit, "train_accuracy", 100.0),
        (right, residual, "residual_rms", 1.0),
    ):
        for name in names:
            line(axes, curve, name, scale, 0.0)
        axes.plot(unfitted["labelled"], unfitted[column] * scale, "x", color="#b00020", zorder=5)
        label_ticks(axes, curve, 6)
    lowest = min([*fit["mean"], *unfitted["train_accuracy"]])
    left.set_ylim(min(100 * lowest - 0.3, 98.8), 100.15)
    right.set_ylim(bottom=0)
    finish(left, "Fit of the labelled set", _LABELS, "Training accuracy (%)")
    finish(right, "Residual", _LABELS, "One-hot minus prediction, rms")
    name_curves(right, residual, 1.0, 2.3)
    return figure


def query_time(seconds: pd.DataFrame, caption: str) -> Figure:
    """Median seconds of a query by strategy, its stages stacked.

    Args:
        seconds: strategies × stages, as `curves.query_seconds` gives them.
        caption: what stands below.
    """
    names, stages = [str(name) for name in seconds.index], [str(name) for name in seconds]
    columns = 6
    top = 0.36 + 0.2 * math.ceil(len(stages) / columns)
    left = max(0.35 + name_width(names), LEFT)
    figure, (axes,) = canvas(caption, 0.2 + 0.28 * len(names), left=left, top=top)
    start, others = np.zeros(len(names)), iter(COLOURS * len(stages))
    for stage in stages:
        width = seconds[stage].fillna(0.0).to_numpy(dtype=float)
        colour = _STAGES.get(stage) or next(others)
        axes.barh(
            range(len(names)), width, 0.66, start, color=colour, label=stage, edgecolor="white"
        )
        start = start + width
    for row, total in enumerate(start.tolist()):
        axes.annotate(
            duration(total),
            (total, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(float(start.max()) * 1.12, 1e-6))
    finish(axes, "", "Seconds (median)", "")
    axes.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        handlelength=1.0,
        columnspacing=1.2,
        borderaxespad=0.1,
        title="Time of one query",
        title_fontproperties={"size": 10.5, "weight": "bold"},
        alignment="left",
        borderpad=0.2,
    )
    return figure


def duration(seconds: float) -> str:
    """Seconds to two or three significant digits, in the unit that suits a person."""
    if not math.isfinite(seconds):
        return "—"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.2g} ms"
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
