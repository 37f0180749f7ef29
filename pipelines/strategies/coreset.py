"""Coreset (Sener & Savarese 2018): greedy k-centre on penultimate features.

Again and again the candidate that is farthest from everything labelled or picked.
"""

import numpy as np

from pipelines.strategies.base import Query, QueryContext
from pipelines.strategies.spread import Spread, spread, squared_distances

_BLOCK = 64  # labelled images whose distances to all candidates are held at a time


def coreset(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Scores are Euclidean distances to the nearest labelled or earlier picked image.

    Of candidates that were not picked, to the nearest at the end; the largest of these is the
    radius within which every candidate is then covered, and is recorded.

    Raises:
        NetworkError: no layer makes the logits.
    """
    labelled, candidates = context.features()
    with context.progress("select"):
        found = farthest(labelled, candidates, batch_size, rng)
        # (37) min_c ‖h_x − h_c‖
        distances = np.sqrt(found.distances)
        left = np.delete(distances, found.positions)
        radius = float(left.max()) if len(left) else 0.0
        return context.query(found.positions, distances, {"radius": radius})


def farthest(
    labelled: np.ndarray, candidates: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Spread:
    """Positions by greedy k-centre; time O(U(L + b)d), memory O(Ud), ties broken by `rng`.

    Args:
        labelled: (labelled, width), centres from the start.
        candidates: (candidates, width).
        batch_size: how many.
        rng: breaks ties.
    """
    points = np.asarray(candidates, np.float64)
    squares = np.einsum("ud,ud->u", points, points)

    def nearest_of(centres: np.ndarray) -> np.ndarray:
        own = np.einsum("kd,kd->k", centres, centres)
        return squared_distances(squares[:, None], points @ centres.T, own).min(axis=1)

    nearest = np.full(len(points), np.inf)
    for start in range(0, len(labelled), _BLOCK):
        centres = np.asarray(labelled[start : start + _BLOCK], np.float64)
        nearest = np.minimum(nearest, nearest_of(centres))
    return spread(
        nearest,
        lambda position: nearest_of(points[position : position + 1]),
        lambda open_: int(rng.choice(np.flatnonzero(open_ == open_.max()))),
        batch_size,
    )
