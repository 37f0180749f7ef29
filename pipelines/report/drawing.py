"""What the figures of the report share: layout in inches, lines, ticks, names at curve ends.

Nothing here touches matplotlib's global state.
"""

import io
import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.looks import Look, look

INK, QUIET = "#222222", "#cccccc"
SMALL, NORMAL = 8.0, 9.5  # points
WIDTH, LEFT = 7.0, 0.72  # inches
NAME = 24  # characters of a name that stand beside a figure, as a rule
_LINE = 0.135  # inches a caption line
_CHARACTER = 0.073  # inches, the usual width of one in small type


def short(name: str, length: int = NAME) -> str:
    """A name that fits beside a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def name_width(names: Sequence[str], length: int = NAME) -> float:
    """Inches that the longest of some names takes in small type, cut as `short` cuts them."""
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


def png(figure: Figure) -> bytes:
    """The bytes of a PNG, which depend on the drawing alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def finish(axes: Axes, title: str, x: str, y: str, size: float = NORMAL + 1) -> None:
    """Title, axis labels, quiet grid and spines."""
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
    looked: Callable[[str], Look] = look,
) -> None:
    """One strategy's curve; `band` is the opacity of its interval, 0 for none."""
    own, (colour, marker, dash) = curve.loc[curve["strategy"] == name], looked(name)
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
    """Ticks at numbers of labels that occur, where they leave each other room."""
    ticks = np.unique(curve["labelled"].to_numpy(dtype=float))
    ticks = ticks[:: math.ceil(len(ticks) / most)]
    if len(ticks) == 1 or np.diff(ticks).min() >= 0.6 * np.ptp(ticks) / most:
        axes.set_xticks(ticks)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))


def frame(curve: pd.DataFrame, scale: float, include: Sequence[float] = ()) -> tuple[float, float]:
    """Limits that show the means, and as much of the intervals as does not squash them."""
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
    looked: Callable[[str], Look] = look,
) -> None:
    """Write each strategy's name at the end of its curve, moved apart where they would overlap.

    Args:
        axes: with its final limits.
        curve: as it was drawn.
        scale: as it was drawn.
        height: of the axes, in inches.
        looked: how each is drawn.
    """
    last = curve.groupby("strategy", sort=False).tail(1)
    names = [str(name) for name in last["strategy"]]
    labels, ends = last["labelled"].tolist(), (last["mean"] * scale).tolist()
    bottom, top = axes.get_ylim()
    placed = spread(ends, 0.155 * (top - bottom) / height, bottom, top)
    across = axes.get_yaxis_transform()
    for name, labelled, end, y in zip(names, labels, ends, placed, strict=True):
        colour, marker, _ = looked(name)
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
        axes.annotate(
            short(name),
            (1.04, y),
            (7, 0),
            xycoords=across,
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=INK,
            annotation_clip=False,
            parse_math=False,
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the order of those wanted and as near as may be.

    Those that would overlap are centred on the mean of what they wanted (pool adjacent violators),
    then moved inside [low, high] if there is room for all.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[float]] = []  # the wanted positions, each less its rank times the gap
    for rank, index in enumerate(order):
        clusters.append([wanted[index] - rank * gap])
        while len(clusters) > 1 and _mean(clusters[-2]) > _mean(clusters[-1]):
            tail = clusters.pop()
            clusters[-1].extend(tail)
    flat = [_mean(cluster) for cluster in clusters for _ in cluster]
    ceiling = high - gap * (len(wanted) - 1)
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = max(min(flat[rank], ceiling), low) + rank * gap
    return placed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
