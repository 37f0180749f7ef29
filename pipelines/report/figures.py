"""Figures of the report on runs: accuracy, difference from random, fit, time of a query.

Each drawing function takes a table of `pipelines.report.curves` and a caption with n, seeds and
settings, so that a figure can leave the page it came with; `figures` draws a whole group.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.report import curves
from pipelines.report.curves import REFERENCE, Group, strategies
from pipelines.report.drawing import (
    COLOURS,
    INK,
    LEFT,
    NORMAL,
    QUIET,
    SMALL,
    Style,
    canvas,
    finish,
    frame,
    label_ticks,
    line,
    name_curves,
    name_width,
    png,
    short,
    style_of,
)
from pipelines.report.page import duration, seed_ranges

DOTS = 200  # an inch: 1400 pixels across
_LABELS, _POINTS = "Number of labels", "Accuracy minus random (points)"
_DIFFERENCE = "Difference from random, same seed"
_TOGETHER = 4  # bands of differences in one axes; more get a panel each
_MOST_BANDS = 6  # bands of accuracies in one axes; more are left out
UNBANDED = "Means over seeds; their intervals are in the other figures"
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
    """Whether `accuracy` draws the intervals: few enough curves for their bands."""
    return len(strategies(curve)) <= _MOST_BANDS


def accuracy(curve: pd.DataFrame, caption: str, style: Callable[[str], Style] = style_of) -> Figure:
    """Test accuracy in percent against the number of labels, mean over seeds.

    With 95% bands where `banded`.
    """
    names = strategies(curve)
    figure, (axes,) = canvas(caption, 3.4, right=0.62 + name_width(names))
    for name in names:
        line(axes, curve, name, 100.0, 0.12 if banded(curve) else 0.0, style=style)
    shown = curve if banded(curve) else curve.assign(low=curve["mean"], high=curve["mean"])
    low, high = frame(shown, 100.0)
    axes.set_ylim(low, min(high, 100.5))
    label_ticks(axes, curve, 8)
    finish(axes, "Test accuracy", _LABELS, "Test accuracy (%)")
    name_curves(axes, curve, 100.0, 3.4, style)
    return figure


def difference(
    curve: pd.DataFrame, caption: str, style: Callable[[str], Style] = style_of
) -> Figure:
    """Paired difference from random in percentage points, mean and 95% band over seeds.

    With more than four strategies each has a panel, the others' means in grey behind.
    """
    names = strategies(curve)
    if len(names) > _TOGETHER:
        return _difference_panels(curve, caption, style)
    figure, (axes,) = canvas(caption, 3.4, right=0.62 + name_width(names))
    axes.axhline(0, color=style_of("random").colour, linewidth=1.2, zorder=1)
    for name in names:
        line(axes, curve, name, 100.0, 0.14, style=style)
    axes.set_ylim(*frame(curve, 100.0, include=[0.0]))
    label_ticks(axes, curve, 8)
    finish(axes, _DIFFERENCE, _LABELS, _POINTS)
    name_curves(axes, curve, 100.0, 3.4, style)
    return figure


def _difference_panels(curve: pd.DataFrame, caption: str, style: Callable[[str], Style]) -> Figure:
    names, columns = strategies(curve), 3 if len(strategies(curve)) <= 9 else 4
    rows = math.ceil(len(names) / columns)
    figure, panels = canvas(
        caption, 1.3, top=0.62, left=0.75, shape=(rows, columns), gaps=(0.36, 0.2)
    )
    limits = frame(curve, 100.0, include=[0.0])
    for index, axes in enumerate(panels):
        if index >= len(names):
            axes.remove()
            continue
        for other in names:
            own = curve[curve["strategy"] == other]
            if other != names[index]:
                axes.plot(own["labelled"], own["mean"] * 100, color=QUIET, linewidth=0.8, zorder=1)
        axes.axhline(0, color=style_of("random").colour, linewidth=1.2, zorder=1)
        line(axes, curve, names[index], 100.0, 0.18, 3.5, style)
        axes.set_ylim(*limits)
        label_ticks(axes, curve, 12 // columns)
        finish(axes, short(names[index]), "", "", size=SMALL + 1)
        if index % columns:
            axes.tick_params(labelleft=False)
        if index + columns < len(names):
            axes.tick_params(labelbottom=False)
    first, last = panels[0].get_position(), panels[columns * rows - columns].get_position()
    inch = 1 / figure.get_size_inches()[1]
    titles: list[tuple[float, float, str, dict[str, Any]]] = [
        (0.02, (first.y1 + last.y0) / 2, _POINTS, {"rotation": 90, "va": "center"}),
        ((first.x0 + 1) / 2, last.y0 - 0.4 * inch, _LABELS, {"ha": "center"}),
        (first.x0, 1 - 0.24 * inch, _DIFFERENCE, {"weight": "bold", "fontsize": NORMAL + 1}),
    ]
    for x, y, text, font in titles:
        figure.text(x, y, text, {"color": INK, "fontsize": NORMAL} | font)
    return figure


def training(
    fit: pd.DataFrame, residual: pd.DataFrame, unfitted: pd.DataFrame, caption: str
) -> Figure:
    """Training accuracy and residual against the number of labels; means over seeds.

    Args:
        fit: curve of the training accuracy.
        residual: curve of the rms residual on the labelled set.
        unfitted: the rows of the tidy table whose fit did not reach its labels.
        caption: text below the figure.
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
        seconds: strategies × stages, of `curves.query_seconds`.
        caption: text below the figure.
    """
    names, stages = [str(name) for name in seconds.index], [str(name) for name in seconds]
    columns = 6
    top = 0.36 + 0.2 * math.ceil(len(stages) / columns)
    left = max(0.35 + name_width(names), LEFT)
    figure, (axes,) = canvas(caption, 0.2 + 0.28 * len(names), left=left, top=top)
    rows, start = range(len(names)), np.zeros(len(names))
    others = iter(COLOURS * len(stages))
    for stage in stages:
        width = seconds[stage].fillna(0.0).to_numpy(dtype=float)
        colour = _STAGES.get(stage) or next(others)
        axes.barh(rows, width, 0.66, start, label=stage, color=colour, edgecolor="white")
        start = start + width
    ends = axes.barh(rows, start, 0.66, alpha=0)
    totals = list(map(duration, start.tolist()))
    axes.bar_label(ends, totals, padding=4, fontsize=SMALL, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(float(start.max()) * 1.12, 1e-6))
    finish(axes, "", "Seconds (median)", "")
    axes.set_yticks(rows, [short(name) for name in names], parse_math=False)
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


def figures(group: Group, rounds: pd.DataFrame) -> list[tuple[str, str, bytes]]:
    """(name, alternative text, PNG) of each figure that the records allow."""
    names, setup = strategies(rounds), _setup(group)
    learning, differences = curves.curve(rounds), curves.difference(rounds)
    seeds = _seeds({name: curves.by_seed(rounds, name) for name in names})
    pairs = _seeds({name: curves.minus_random(rounds, name) for name in names if name != REFERENCE})
    interval = "Mean and 95% confidence (Student t)"
    over_seeds = f"{interval} over seeds{_bands(learning)}" if banded(learning) else UNBANDED
    caption = f"{setup} {over_seeds}; {seeds}"
    alt = "Test accuracy against the number of labels"
    made = [("accuracy", alt, accuracy(learning, caption))]
    if len(differences):
        caption = f"{setup} {interval} of paired differences{_bands(differences)}; {pairs}"
        alt = "Accuracy minus that of random against the number of labels"
        made.append(("difference", alt, difference(differences, caption)))
    seconds = curves.query_seconds(rounds)
    if seconds.size:
        caption = f"{setup} Medians over seeds and rounds, without training and evaluation; {seeds}"
        alt = "Median seconds of a query by strategy and stage"
        made.append(("time", alt, query_time(seconds, caption)))
    unfitted = rounds.loc[~rounds["fitted"].astype(bool)]
    crosses = "; crosses: single fits that did not reach their labels" if len(unfitted) else ""
    fit, residual = (curves.curve(rounds, name) for name in ("train_accuracy", "residual_rms"))
    caption = f"{setup} Means over seeds{crosses}; {seeds}"
    alt = "Training accuracy and residual against the number of labels"
    made.append(("training", alt, training(fit, residual, unfitted, caption)))
    return [(name, f"{alt}, {group.title}", png(figure, DOTS)) for name, alt, figure in made]


def _setup(group: Group) -> str:
    """The group's title and the settings that every caption states."""
    prefix = "network_args."
    stated = [
        f"{key.removeprefix(prefix)} {value}"
        for key, value in group.settings.items()
        if key.startswith(prefix)
    ]
    counts = {"initial": "initial labels", "query": "a query", "subset": "candidates"}
    for key, word in counts.items():
        if group.settings.get(key) is not None:
            stated.append(f"{group.settings[key]} {word}")
    return f"{group.title}: {', '.join(stated)}." if stated else f"{group.title}."


def _bands(curve: pd.DataFrame) -> str:
    return ", no band where n = 1" if 1 in set(curve["n"]) else ""


def _seeds(tables: dict[str, pd.DataFrame]) -> str:
    """N and seeds of each strategy, once if they are the same for all."""
    by_name = {}
    for name, table in tables.items():
        n, listed = len(table), seed_ranges(" ".join(map(str, table.index)))
        by_name[name] = f"n = {n} (seed{'s' if n > 1 else ''} {listed})" if n else "n = 0"
    if len(set(by_name.values())) == 1:
        return f"{next(iter(by_name.values()))}."
    return ", ".join(f"{name} {text}" for name, text in by_name.items()) + "."
