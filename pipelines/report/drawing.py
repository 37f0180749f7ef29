"""Drawing primitives of reports: styles of curves, layout in inches, ticks, names at curve ends.

A strategy has the same style in every figure, whichever others are shown. Nothing here touches
matplotlib's global state.
"""

import io
import math
import textwrap
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from pipelines.strategies import STRATEGIES

INK, QUIET = "#222222", "#cccccc"
SMALL, NORMAL = 8.0, 9.5  # points
WIDTH, LEFT = 7.0, 0.72  # inches
NAME = 24  # characters of a name beside a figure
_LINE = 0.135  # inches: height of a caption line
_CHARACTER = 0.073  # inches: mean width of a character in small type

# Okabe and Ito's colours, then Tol's: apart for the common forms of colour blindness.
COLOURS = ("#56b4e9", "#d55e00", "#332288", "#44aa99", "#882255", "#999933")
_MARKERS = ("v", "X", "<", ">", "p", "h", "*")
_DASHES = ("-", (0, (6, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.5, 1)))


class Style(NamedTuple):
    """Colour, marker and dashes of a curve, distinguishable in greyscale by the last two."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]] = "-"


_STYLES = {
    "random": Style("#777777", "o", _DASHES[1]),
    "entropy": Style("#e69f00", "s", _DASHES[3]),
    "margin": Style("#009e73", "^", _DASHES[2]),
    "least_confident": Style("#cc79a7", "D", _DASHES[1]),
    "mlmoc": Style("#0072b2", "P"),
}
_INDEX = {name: index for index, name in enumerate(n for n in STRATEGIES if n not in _STYLES)}


def style_of(strategy: str) -> Style:
    """Style of a strategy: by its index in the table of strategies, else by a hash of its name."""
    if strategy in _STYLES:
        return _STYLES[strategy]
    return cycled(_INDEX.get(strategy, zlib.crc32(strategy.encode())))


def cycled(index: int) -> Style:
    """Style of an index; the pair of colour and marker repeats after 42."""
    colour, marker, dash = (table[index % len(table)] for table in (COLOURS, _MARKERS, _DASHES))
    return Style(str(colour), str(marker), dash)


def short(name: str, length: int = NAME) -> str:
    """A name, cut to the length that fits beside a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def name_width(names: Sequence[str], length: int = NAME) -> float:
    """Width in inches of the longest name in small type, cut as by `short`."""
    return _CHARACTER * max((len(short(name, length)) for name in names), default=0)


def canvas(
    caption: str,
    height: float,
    *,
    left: float = LEFT,
    right: float = 0.3,
    top: float = 0.42,
    shape: tuple[int, int] = (1, 1),
    gaps: tuple[float, float] = (0.3, 0.75),
) -> tuple[Figure, list[Axes]]:
    """A figure with a caption below and axes of equal size, row by row.

    Args:
        caption: wrapped to the width of the figure.
        height: of one axes, in inches; so are the margins.
        left: margin.
        right: margin, with room for names.
        top: margin, with room for a title.
        shape: rows and columns of axes.
        gaps: between rows, between columns.
    """
    lines = textwrap.wrap(caption, 122)
    bottom = 0.62 + _LINE * len(lines)
    rows, columns = shape
    total = bottom + rows * height + (rows - 1) * gaps[0] + top
    width = (WIDTH - left - right - gaps[1] * (columns - 1)) / columns
    figure = Figure(figsize=(WIDTH, total), facecolor="white")
    made = []
    for row in range(rows):
        for column in range(columns):
            x = left + column * (width + gaps[1])
            y = bottom + (rows - 1 - row) * (height + gaps[0])
            made.append(figure.add_axes((x / WIDTH, y / total, width / WIDTH, height / total)))
    for number, line in enumerate(reversed(lines)):
        y = (0.1 + _LINE * number) / total
        figure.text(0.13 / WIDTH, y, line, fontsize=7.3, color="#555555", parse_math=False)
    return figure, made


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The bytes of a PNG, which depend on the drawing alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def finish(axes: Axes, title: str, x: str, y: str, size: float = NORMAL + 1) -> None:
    """Set title and axis labels; draw a light grid and hide the top and right spines."""
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
    heading = axes.set_title(title, fontsize=size, color=INK, loc="left", fontweight="bold")
    heading.set_parse_math(False)
    axes.tick_params(labelsize=SMALL, color=INK, labelcolor=INK)
    axes.grid(visible=True, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def line(
    axes: Axes,
    curve: pd.DataFrame,
    name: str,
    scale: float,
    band: float,
    size: float = 4.5,
    style: Callable[[str], Style] = style_of,
) -> None:
    """Draw one strategy's curve; `band` is the opacity of its interval, 0 for none."""
    own, (colour, marker, dash) = curve.loc[curve["strategy"] == name], style(name)
    x = own["labelled"].to_numpy(dtype=float)
    mean, low, high = (own[end].to_numpy(dtype=float) * scale for end in ("mean", "low", "high"))
    if band and len(x) == 1:
        axes.errorbar(x, mean, [mean - low, high - mean], color=colour, capsize=3)
    elif band:
        axes.fill_between(x, low, high, color=colour, alpha=band, linewidth=0, zorder=2)
    axes.plot(
        x,
        mean,
        marker=marker,
        color=colour,
        markersize=size,
        linestyle=dash,
        linewidth=1.6,
        zorder=3,
    )


def label_ticks(axes: Axes, curve: pd.DataFrame, most: int) -> None:
    """Put ticks at the numbers of labels that were measured, unless they would be too dense."""
    ticks = np.unique(curve["labelled"].to_numpy(dtype=float))
    ticks = ticks[:: math.ceil(len(ticks) / most)]
    if len(ticks) == 1 or np.diff(ticks).min() >= 0.6 * np.ptp(ticks) / most:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def frame(curve: pd.DataFrame, scale: float, include: Sequence[float] = ()) -> tuple[float, float]:
    """Axis limits that show all means; intervals are cut where they would flatten the means."""
    mean = np.append(curve["mean"].to_numpy(dtype=float) * scale, include)
    bottom, top = float(mean.min()), float(mean.max())
    room = max(0.75 * (top - bottom), 2.0)
    low = float(np.nanmin(np.append(curve["low"].to_numpy(dtype=float) * scale, bottom)))
    high = float(np.nanmax(np.append(curve["high"].to_numpy(dtype=float) * scale, top)))
    low, high = max(low, bottom - room), min(high, top + room)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def name_curves(
    axes: Axes,
    curve: pd.DataFrame,
    scale: float,
    height: float,
    style: Callable[[str], Style] = style_of,
) -> None:
    """Write each strategy's name at the end of its curve, moved apart where they would overlap.

    Args:
        axes: with its final limits.
        curve: as passed to `line`.
        scale: as passed to `line`.
        height: of the axes, in inches.
        style: as passed to `line`.
    """
    last = curve.groupby("strategy", sort=False).tail(1)
    names = [str(name) for name in last["strategy"]]
    labels, ends = last["labelled"].tolist(), (last["mean"] * scale).tolist()
    bottom, top = axes.get_ylim()
    placed = spread(ends, 0.155 * (top - bottom) / height, bottom, top)
    across = axes.get_yaxis_transform()
    for name, labelled, end, y in zip(names, labels, ends, placed, strict=True):
        colour, marker, _ = style(name)
        axes.annotate(
            "",
            (1.04, y),
            (labelled, end),
            xycoords=across,
            textcoords="data",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )
        axes.plot(1.04, y, marker, color=colour, markersize=5, transform=across, clip_on=False)
        word = {"va": "center", "fontsize": SMALL, "color": INK, "parse_math": False}
        axes.text(1.06, y, short(name), transform=across, **word)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the same order and nearest to `wanted` in least squares.

    Isotonic regression of wanted[i] − rank·gap, then clipped to [low, high] if there is room.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    flat = isotonic_regression(np.asarray(wanted)[order] - steps).x
    placed = np.zeros(len(order))
    placed[order] = np.maximum(np.minimum(flat, high - gap * (len(order) - 1)), low) + steps
    return placed.tolist()
