"""The picture: from what was measured to the bytes of one PNG.

A column a state, a row a measure, a line a kernel; markers and dashes tell kernels apart in grey
too. Regression is drawn from 0, because from the logits of a network that has fitted its labels
nothing is left to fit. Nothing here touches matplotlib's global state.
"""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.approximation.comparison import ZERO
from experiments.approximation.config import INITIAL, TRAINED
from experiments.approximation.run import Found
from experiments.approximation.tables import by_width, kinds, rows, series_of
from pipelines.report.drawing import INK, SMALL, canvas, finish

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#882255", "#e69f00", "#56b4e9", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "X", "P")
_DASHES = ("-", "--", ":", "-.")
_TITLES = {INITIAL: "at initialisation", TRAINED: "after training"}
_HEIGHT, _TOP = 1.55, 0.62  # inches; the legend is above the titles


def picture(found: Found) -> bytes:
    """Errors against width, and n^(−1/2) beside the first of them."""
    table, config = rows(found), found.config
    states = [state for state in _TITLES if state in config.states]
    measures = [
        ("frobenius error", "Frobenius\nerror", ""),
        ("largest eigenvalue error", "error of λ_max", ""),
        ("condition number ratio", "κ over that\nof full", ""),
    ]
    error = "regression error"
    for ridge in config.ridges:
        label = f"regression from\n0, λ = {ridge:g}"
        measures.append((error, label, series_of("", ridge, ZERO)))
    data = found.widths[0].subject.dataset
    side = data.image_shape[1]
    caption = (
        f"K ⊗ I against full, {data.name} {side}×{side}, {config.network}, {config.initial} "
        f"labels, {config.test} test images, seed {config.seed}: one network a width. λ in units "
        "of the mean diagonal of full; errors are relative to full. Dots: width^(−1/2)."
    )
    shape = (len(measures), len(states))
    figure, axes = canvas(
        caption, _HEIGHT, left=0.95, right=0.15, top=_TOP, shape=shape, gaps=(0.3, 0.62)
    )
    widths = [own.subject.width or 1 for own in found.widths]
    for row, (measure, label, suffix) in enumerate(measures):
        panels = axes[row * len(states) : (row + 1) * len(states)]
        for panel, state in zip(panels, states, strict=True):
            for number, kind in enumerate(kinds(found)):
                x, values = by_width(table, state, measure, kind + suffix)
                panel.plot(np.where(np.isfinite(x), x, 1), values, **_look(number))
            last = row == len(measures) - 1
            name = config.width_argument if last and config.widths else ""
            title, y = "" if row else _TITLES[state], "" if panel is not panels[0] else label
            finish(panel, title, name, y, size=10)
            panel.yaxis.label.set_fontsize(SMALL)
            _scales(panel, widths, last)
            if not row:
                _guide(panel, widths)
        _same_limits(panels)
        _ticks(panels)
    handles = [Line2D([], [], label=kind, **_look(n)) for n, kind in enumerate(kinds(found))]
    figure.legend(
        handles=handles, loc="upper center", ncols=len(handles), fontsize=SMALL, frameon=False
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, metadata={"Software": None})
    return out.getvalue()


def _look(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "markersize": 4.5,
        "linewidth": 1.4,
    }


def _scales(panel: Axes, widths: list[int], named: bool) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(widths, [str(width) for width in widths] if named else ["" for _ in widths])


def _ticks(panels: list[Axes]) -> None:
    """Decades, or 1, 2 and 5 where there are few of them."""
    low, high = panels[0].get_ylim()
    for panel in panels:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())


def _guide(panel: Axes, widths: list[int]) -> None:
    """A fall as width^(−1/2) below the first points."""
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in panel.get_lines()]
    starts = [float(values[0]) for values in drawn if len(values)]
    if len(widths) < 2 or not starts:
        return
    x = np.array(widths, np.float64)
    panel.plot(x, 0.8 * min(starts) * np.sqrt(x[0] / x), color=INK, linestyle=(0, (1, 2)), lw=1)


def _same_limits(panels: list[Axes]) -> None:
    ends = [panel.get_ylim() for panel in panels]
    for panel in panels:
        panel.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
