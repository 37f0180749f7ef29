"""Points in a pair of axes and their names → names beside them that cover neither points nor names.

A greedy choice: the most crowded point first, the nearest free place of a few around each.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pipelines.report.drawing import INK, SMALL, name_width, short

_HEIGHT, _MARK = 0.145, 0.06  # inches: of a name, half of a marker
_DISTANCES = (0.09, 0.2, 0.34, 0.5)
_DIRECTIONS = tuple((np.cos(a), np.sin(a)) for a in np.arange(0, 2 * np.pi, np.pi / 6))
_LED = 0.12  # a name further away than that has a line to its point

Box = tuple[float, float, float, float]


def place(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], bars: Sequence[Box]
) -> None:
    """Write names beside points.

    Args:
        axes: with its final limits and place in the figure.
        points: x and y of each, in units of the axes.
        names: of each.
        bars: x₀, y₀, x₁, y₁ of what else names must not cover, in units of the axes.
    """
    figure = axes.get_figure()
    dpi = figure.dpi if figure is not None else 1.0
    to_inches = axes.transData
    here = to_inches.transform(np.asarray(points, dtype=float)) / dpi
    x0, y0, x1, y1 = (value / dpi for value in axes.bbox.extents)
    taken: list[Box] = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in here.tolist()]
    for bar in bars:
        ends = to_inches.transform(np.asarray(bar, dtype=float).reshape(2, 2)) / dpi
        (a, b), (c, d) = ends.tolist()
        taken.append((a - 0.015, b, c + 0.015, d))
    crowd = [sum(np.hypot(*(here - point).T) < 0.6) for point in here]
    for index in sorted(range(len(points)), key=lambda i: (-crowd[i], names[i])):
        (x, y), width = here[index].tolist(), name_width([names[index]])
        best = min(
            (_cost(box, taken, (x0, y0, x1, y1)) + away, away, side, box)
            for away, side, box in _around(x, y, width)
        )
        _, away, side, box = best
        taken.append(box)
        at = box[0] if side == "left" else box[2] if side == "right" else (box[0] + box[2]) / 2
        axes.annotate(
            short(names[index]),
            points[index],
            ((at - x) * 72, ((box[1] + box[3]) / 2 - y) * 72),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=SMALL,
            color=INK,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkB": 4}
            if away > _LED
            else None,
        )


def _around(x: float, y: float, width: float) -> list[tuple[float, str, Box]]:
    found = []
    for away in _DISTANCES:
        for across, up in _DIRECTIONS:
            side = "left" if across > 0.3 else "right" if across < -0.3 else "center"
            start = {"left": 0.0, "right": width, "center": width / 2}[side]
            left = x + across * away - start
            middle = y + up * (away + (_HEIGHT / 2 if side == "center" else 0))
            found.append(
                (away, side, (left, middle - _HEIGHT / 2, left + width, middle + _HEIGHT / 2))
            )
    return found


def _cost(box: Box, taken: Sequence[Box], room: Box) -> float:
    """Square inches that a box covers of others, or has outside of its room, weighed heavily."""
    covered = sum(_overlap(box, other) for other in taken)
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, room)
    return 1000 * (covered + outside)


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(up, 0.0)
