"""The pictures: from what was measured to the bytes of one PNG a figure.

Colour is never the only sign: markers, fills and dashes tell series apart in grey too. Nothing here
touches matplotlib's global state.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from experiments.dynamics.of_kernel import DYNAMICAL, RANDOM
from experiments.dynamics.run import G_MSE, INITIAL, STATES, TRAINED, Found
from experiments.dynamics.tables import Rows, column, distinct, tables, where
from pipelines.report.drawing import INK, QUIET, SMALL, canvas, finish, frame, label_ticks

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#882255", "#777777", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "X", "P")
_DASHES = ("-", "--", ":", "-.")
_TITLES = {INITIAL: "at initialisation", TRAINED: "after training"}
_HEIGHT, _TOP = 2.3, 0.62  # inches; the legend is above the titles


def pictures(found: Found) -> dict[str, bytes]:
    """PNG by figure, of those that were measured."""
    return {name: _png(_DRAWN[name](found, rows)) for name, rows in tables(found).items()}


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160, metadata={"Software": None})
    return out.getvalue()


def _mmd(found: Found, rows: Rows) -> Figure:
    """B and MMD by size of query, random queries hollow and dynamicAL's filled."""
    sizes = sorted(distinct(rows, "queries"))
    figure, both = _panels(
        f"MMD(S, S ∪ Q) and B(S ∪ Q), {_about(found)}; kernel {found.config.kind} with a mean "
        f"diagonal of 1. Bars: from the least to the largest of {found.config.repeats} random "
        "queries."
    )
    kinds = [(i, name) for i in (0, 1) for name in (RANDOM, DYNAMICAL)]
    for axes, state in zip(both, STATES, strict=True):
        for what, name in kinds:
            measured = ("bound", "mmd")[what]
            own = [
                column(where(rows, network=state, chosen=name, queries=size), measured)
                for size in sizes
            ]
            x = np.arange(len(sizes)) + (0.12 if name == DYNAMICAL else -0.12)
            low, high = ([end(values) for values in own] for end in (np.min, np.max))
            axes.vlines(x, low, high, color=_COLOURS[what], linewidth=1.2, zorder=2)
            look = _look(what, lines=False, hollow=name == RANDOM)
            axes.plot(x, [values.mean() for values in own], zorder=3, **look)
        axes.set_yscale("log")
        _by_size(axes, sizes)
        finish(axes, _TITLES[state], "size of the query, b", "" if axes is both[1] else "value")
    _same_limits(both)
    handles = [
        Line2D(
            [],
            [],
            label=f"{('B', 'MMD')[what]}, {'random' if name == RANDOM else 'dynamicAL’s'} query",
            **_look(what, lines=False, hollow=name == RANDOM),
        )
        for what, name in kinds
    ]
    return _legend(figure, handles)


def _tau(found: Found, rows: Rows) -> Figure:
    """G_MSE against alignment above, Kendall's τ by size of query below."""
    sizes, measures = sorted(distinct(rows, "queries")), distinct(rows, "measure")
    first = found.config.queries[0]
    caption = (
        f"Alignment and G_MSE of S ∪ Q for {found.config.draws} random queries, {_about(found)}; "
        f"kernel {found.config.kind}, true labels. τ-b with 95% bootstrap intervals."
    )
    if len(measures) > 1:
        caption += " G is of the gradients of the loss that the network is trained with."
    figure, axes = canvas(caption, 1.9, shape=(2, 2), gaps=(0.8, 0.75), right=0.15)
    for place, state in enumerate(STATES):
        above, below = axes[place], axes[2 + place]
        (row,) = where(found.states["tau"][state], queries=first, measure=G_MSE)
        above.plot(row["alignment"], row["measured"], "o", color=_COLOURS[0], markersize=2.8)
        title = f"{_TITLES[state]}, b = {first}"
        finish(above, title, "alignment A", "" if place else "G_MSE")
        above.locator_params(nbins=5)
        for axis in (above.xaxis, above.yaxis):
            axis.set_major_formatter(EngFormatter(sep=""))
        for number, measure in enumerate(measures):
            own = [
                row
                for size in sizes
                for row in where(rows, network=state, queries=size)
                if row["measure"] == measure
            ]
            x = np.arange(len(sizes)) + 0.2 * (number - (len(measures) - 1) / 2)
            low, high = column(own, "tau_low"), column(own, "tau_high")
            below.vlines(x, low, high, color=_COLOURS[number], linewidth=1.4)
            below.plot(x, column(own, "tau"), label=measure, **_look(number, lines=False))
        below.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        _by_size(below, sizes)
        below.set_ylim(-1.05, 1.05)
        finish(below, "", "size of the query, b", "" if place else "τ with alignment")
    axes[2].legend(loc="lower left", fontsize=SMALL, frameon=False, ncols=2)
    return figure


def _envelope(found: Found, rows: Rows) -> Figure:
    """The squared error under gradient flow, and its limits for S alone."""
    figure, both = _panels(
        "Squared error left of labels that gradient flow on the kernel "
        f"({found.config.kind}) fits from zero, as a share of that at the start; {_about(found)}, "
        f"queries of {found.config.queries[0]}. Shaded: the limits for S alone, from the alignment "
        "below and exp(−2λ_min t) above."
    )
    for axes, state in zip(both, STATES, strict=True):
        for number, name in enumerate(("S", RANDOM, DYNAMICAL)):
            own = [row for row in where(rows, network=state, set=name) if row["time"] > 0]
            time = column(own, "time")
            if name == "S":
                ends = column(own, "lower"), column(own, "upper")
                axes.fill_between(time, *ends, color=QUIET, alpha=0.5, linewidth=0)
            axes.plot(time, column(own, "error"), **_look(number, marked=False))
        axes.set_xscale("log")
        axes.set_ylim(-0.03, 1.03)
        finish(axes, _TITLES[state], "time × λ_max of S", "" if axes is both[1] else "error left")
    words = ("S alone", "S and a random query", "S and dynamicAL’s query")
    handles = [Line2D([], [], label=word, **_look(i, marked=False)) for i, word in enumerate(words)]
    return _legend(figure, handles)


def _ratio(found: Found, rows: Rows) -> Figure:
    """R by epoch: medians and quartiles of random queries, and dynamicAL's query."""
    figure, both = _panels(
        f"R(Q|S) = summed gains of the images of Q / gain of Q, {_about(found)}, pseudo-labels. "
        f"Left: median and quartiles of {found.config.repeats} random queries. Right: the query of "
        "the b largest gains."
    )
    sizes, epochs = sorted(distinct(rows, "queries")), sorted(distinct(rows, "epoch"))
    for axes, name in zip(both, (RANDOM, DYNAMICAL), strict=True):
        for number, size in enumerate(sizes):
            own = where(rows, chosen=name, queries=size)
            x = column(own, "epoch")
            if name == RANDOM:
                ends = column(own, "lower_quartile"), column(own, "upper_quartile")
                colour = _COLOURS[number % len(_COLOURS)]
                axes.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, column(own, "median"), **_look(number))
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
        axes.minorticks_off()
        axes.set_xlim(min(epochs) - 0.1, max(epochs) * 1.15 + 0.1)
        title = "random queries" if name == RANDOM else "dynamicAL’s query"
        finish(axes, title, "epochs of training", "" if name == DYNAMICAL else "R")
    # single ratios may be far out: the axis is that of the medians, as far as it goes
    shown = np.clip(np.append(column(rows, "median"), [0.0, 1.2]), -2, 4)
    for axes in both:
        axes.set_ylim(np.nanmin(shown) - 0.1, np.nanmax(shown) + 0.1)
    handles = [Line2D([], [], label=f"b = {size}", **_look(i)) for i, size in enumerate(sizes)]
    return _legend(figure, handles)


def _gamma(found: Found, rows: Rows) -> Figure:
    """Test accuracy by number of labels, a curve for each γ."""
    assert found.gammas is not None
    counts = [row["n"] for row in rows]
    caption = f"{found.gammas.about}. Mean over seeds, n = {min(counts)}"
    caption += f" to {max(counts)}" if max(counts) > min(counts) else ""
    caption += "; shaded: 95% interval." if max(counts) > 1 else "."
    figure, (axes,) = canvas(caption, 2.6, right=0.15, top=_TOP)
    handles = []
    for number, name in enumerate(distinct(rows, "gamma")):
        own = where(rows, gamma=name)
        x = column(own, "labelled")
        mean, low, high = (100 * column(own, end) for end in ("mean", "low", "high"))
        colour = _COLOURS[number % len(_COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        handles += axes.plot(x, mean, **_look(number))
        handles[-1].set_label(RANDOM if name == RANDOM else f"γ = {name}")
    whole = pd.DataFrame(rows)
    axes.set_ylim(*frame(whole, 100))  # an interval of two seeds may be wider than the figure
    label_ticks(axes, whole, 8)
    finish(axes, "accuracy by γ", "labelled images", "test accuracy, %")
    return _legend(figure, handles)


def _panels(caption: str) -> tuple[Figure, list[Axes]]:
    """Two axes side by side, with room for a legend above."""
    return canvas(caption, _HEIGHT, shape=(1, 2), right=0.15, top=_TOP)


def _look(
    number: int, *, lines: bool = True, marked: bool = True, hollow: bool = False
) -> dict[str, Any]:
    """How the series of a number is drawn, in every figure."""
    colour = _COLOURS[number % len(_COLOURS)]
    return {
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "marker": _MARKERS[number % len(_MARKERS)] if marked else "",
        "linestyle": _DASHES[number % len(_DASHES)] if lines else "",
        "markersize": 5.0,
        "linewidth": 1.6,
    }


def _about(found: Found) -> str:
    assert found.subject is not None
    config = found.config
    name = found.subject.dataset.name
    return f"{name}, {config.network}, {config.initial} labels, seed {config.seed}"


def _by_size(axes: Axes, sizes: Sequence[int]) -> None:
    """Sizes of queries side by side."""
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> Figure:
    """Above all axes, in one line."""
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


def _same_limits(both: Sequence[Axes]) -> None:
    ends = [axes.get_ylim() for axes in both]
    for axes in both:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


_DRAWN: dict[str, Callable[[Found, Rows], Figure]] = {
    "mmd": _mmd,
    "tau": _tau,
    "envelope": _envelope,
    "ratio": _ratio,
    "gamma": _gamma,
}
