"""Coreset (Sener & Savarese 2018): cover the pool, by greedy k-centre on penultimate features.

From features of the labelled images and the candidates to a batch: the candidate that is farthest
from everything labelled or picked, again and again.
"""

import numpy as np

from pipelines.strategies.badge import Spread, queried, spread, squared_distances
from pipelines.strategies.base import Query, Situation

_AT_ONCE = 64  # labelled images whose distances to all candidates are held at a time


def coreset(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Scores are Euclidean distances to the nearest labelled or earlier picked image.

    Of candidates that were not picked, to the nearest at the end; the largest of these is the
    radius within which every candidate is then covered, and is recorded.

    Raises:
        NetworkError: no layer makes the logits.
    """
    labelled, candidates = situation.features()
    with situation.stages("select"):
        found = farthest(labelled, candidates, batch_size, rng)
        distances = np.sqrt(found.distances)
        left = np.delete(distances, found.places)
        radius = float(left.max()) if len(left) else 0.0
        return queried(situation, found, distances, {"radius": radius})


def farthest(
    labelled: np.ndarray, candidates: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Spread:
    """Places by greedy k-centre; time O(U(L + b)d), memory O(Ud), ties broken by `rng`.

    Args:
        labelled: (labelled, width), centres from the start.
        candidates: (candidates, width).
        batch_size: how many.
        rng: breaks ties.
    """
    points = np.asarray(candidates, np.float64)
    squares = np.einsum("ud,ud->u", points, points)

    def to(centres: np.ndarray) -> np.ndarray:
        own = np.einsum("kd,kd->k", centres, centres)
        return squared_distances(squares[:, None], points @ centres.T, own).min(axis=1)

    nearest = np.full(len(points), np.inf)
    for start in range(0, len(labelled), _AT_ONCE):
        centres = np.asarray(labelled[start : start + _AT_ONCE], np.float64)
        nearest = np.minimum(nearest, to(centres))
    return spread(
        nearest,
        lambda place: to(points[place : place + 1]),
        lambda open_: int(rng.choice(np.flatnonzero(open_ == open_.max()))),
        batch_size,
    )
