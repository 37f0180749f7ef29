"""Greedy choice of picks that spread over a space, shared by badge and coreset."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Below this share of the squared norms a squared distance is rounding, and the points are the same.
SAME = 1e-12


class Spread(NamedTuple):
    """Picks of a greedy choice.

    Attributes:
        positions: int64 (batch,), of the picks, in their order.
        distances: float64 (points,), squared distances to the nearest centre: of a pick when it was
            picked, of others at the end.
    """

    positions: np.ndarray
    distances: np.ndarray


def spread(
    nearest: np.ndarray,
    distances_to: Callable[[int], np.ndarray],
    draw: Callable[[np.ndarray], int],
    batch_size: int,
    first: int | None = None,
) -> Spread:
    """Pick points one after another; each pick is a centre for the next.

    Args:
        nearest: float64 (points,), squared distances to the nearest of the centres before.
        distances_to: position of a point → float64 (points,), squared distances to it.
        draw: distances of the points that are not picked yet → position of the next among them.
        batch_size: how many, at most as many as there are points.
        first: position of a pick that is made already, and is the only centre before.
    """
    distances, left = nearest.copy(), np.ones(len(nearest), bool)
    positions = [] if first is None else [first]
    left[positions] = False
    while len(positions) < batch_size:
        open_ = np.flatnonzero(left)
        position = int(open_[draw(distances[open_])])
        positions.append(position)
        left[position] = False
        distances[left] = np.minimum(distances, distances_to(position))[left]
    return Spread(np.array(positions, np.int64), distances)


def squared_distances(
    squares: np.ndarray, products: np.ndarray, square: np.ndarray | float
) -> np.ndarray:
    """‖a‖² + ‖b‖² − 2a·b, and 0 where that is rounding.

    Args:
        squares: ‖a‖².
        products: a·b.
        square: ‖b‖².
    """
    sums = squares + square
    found = sums - 2 * products
    return np.where(found > SAME * sums, found, 0.0)
