"""BADGE (Ash et al. 2020): uncertain and different, by the gradients of the last layer.

From penultimate features and probabilities to a batch by k-means++ on (p − onehot ŷ) ⊗ h, the
gradient of the cross-entropy with the label ŷ in the last layer's weights. It is never formed:
inner products of such embeddings are products of inner products of their factors.

Picks that spread over a space: what badge and coreset have in common.

From squared distances to the nearest centre to picks, one after another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipelines.strategies.base import Query, Situation

# Below this share of the squared norms a squared distance is rounding, and the points are the same.
SAME = 1e-12


class Spread(NamedTuple):
    """A batch.

    Attributes:
        places: int64 (batch,), of the picks, in their order.
        distances: float64 (points,), squared distances to the nearest centre: of a pick when it was
            picked, of others at the end.
    """

    places: np.ndarray
    distances: np.ndarray


def spread(
    nearest: np.ndarray,
    to: Callable[[int], np.ndarray],
    draw: Callable[[np.ndarray], int],
    batch_size: int,
    first: int | None = None,
) -> Spread:
    """Pick points one after another; each pick is a centre for the next.

    Args:
        nearest: float64 (points,), squared distances to the nearest of the centres before.
        to: the place of a point → float64 (points,), squared distances to it.
        draw: distances of the points that are not picked yet → the next, by its place among them.
        batch_size: how many, at most as many as there are points.
        first: the place of a pick that is made already, and is the only centre before.
    """
    distances, left = nearest.copy(), np.ones(len(nearest), bool)
    places = [] if first is None else [first]
    left[places] = False
    while len(places) < batch_size:
        open_ = np.flatnonzero(left)
        place = int(open_[draw(distances[open_])])
        places.append(place)
        left[place] = False
        distances[left] = np.minimum(distances, to(place))[left]
    return Spread(np.array(places, np.int64), distances)


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


def queried(
    situation: Situation, found: Spread, scores: np.ndarray, diagnostics: dict[str, Any]
) -> Query:
    """A batch as a query, with a score for every candidate."""
    return Query(
        indices=situation.candidates[found.places],
        scores=scores[found.places],
        candidates=situation.candidates,
        candidate_scores=scores,
        diagnostics=diagnostics,
    )


class Embeddings(NamedTuple):
    """Gradients of the last layer by their factors, float64.

    Attributes:
        errors: q = p − onehot ŷ, (candidates, classes).
        features: h, (candidates, width).
        squares: ‖q‖²‖h‖², (candidates,).
    """

    errors: np.ndarray
    features: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, features: np.ndarray) -> "Embeddings":
        """Of class probabilities (candidates, classes) and features (candidates, width)."""
        errors = np.array(probabilities, np.float64)
        errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
        wide = np.asarray(features, np.float64)
        squares = np.einsum("uc,uc->u", errors, errors) * np.einsum("ud,ud->u", wide, wide)
        return cls(errors, wide, squares)

    def to(self, place: int) -> np.ndarray:
        """Squared distances of all to one of them."""
        products = (self.errors @ self.errors[place]) * (self.features @ self.features[place])
        return squared_distances(self.squares, products, self.squares[place])


def badge(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """The first pick has the largest ‖g‖; each other is drawn with odds d², to the nearest pick.

    Scores are squared distances to the nearest pick before it, ‖g‖² for the first; of candidates
    that were not picked, to the nearest pick at the end.

    Raises:
        NetworkError: no layer makes the logits.
    """
    _, features = situation.features()
    with situation.stages("select"):
        embeddings = Embeddings.of(situation.probabilities, features)
        found = sampled(embeddings, batch_size, rng)
        return queried(situation, found, found.distances, {})


def sampled(embeddings: Embeddings, batch_size: int, rng: np.random.Generator) -> Spread:
    """Places by k-means++, none of them twice; memory O(U(d + C)), time O(bU(d + C))."""
    squares = embeddings.squares
    first = int(rng.choice(np.flatnonzero(squares == squares.max())))
    found = spread(
        # the origin is no centre: the first pick is, though it was the farthest from the origin
        embeddings.to(first),
        embeddings.to,
        lambda nearest: int(rng.choice(len(nearest), p=odds(nearest))),
        batch_size,
        first,
    )
    found.distances[first] = squares[first]
    return found


def odds(nearest: np.ndarray) -> np.ndarray:
    """Probabilities of the next pick: as d², and equal where nothing differs from the picks."""
    total = nearest.sum()
    return nearest / total if total > 0 else np.full(len(nearest), 1 / len(nearest))
