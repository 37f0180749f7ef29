"""BADGE (Ash et al. 2020): k-means++ on gradients of the last layer.

The gradient of the cross-entropy with the label ŷ in the last layer's weights, (p − onehot ŷ) ⊗ h,
is never formed: inner products of such embeddings are products of those of their factors.
"""

from typing import NamedTuple

import numpy as np

from pipelines.strategies.base import Query, QueryContext
from pipelines.strategies.spread import Spread, spread, squared_distances


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

    def distances_to(self, position: int) -> np.ndarray:
        """Squared distances of all to one of them."""
        errors = self.errors @ self.errors[position]
        features = self.features @ self.features[position]
        # (36) d² = ‖q_x‖²‖h_x‖² + ‖q_c‖²‖h_c‖² − 2(q_x·q_c)(h_x·h_c)
        return squared_distances(self.squares, errors * features, self.squares[position])


def badge(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """The first pick has the largest ‖g‖; each other is drawn with odds d², to the nearest pick.

    Scores are squared distances to the nearest pick before it, ‖g‖² for the first; of candidates
    that were not picked, to the nearest pick at the end.

    Raises:
        NetworkError: no layer makes the logits.
    """
    _, features = context.features()
    with context.progress("select"):
        embeddings = Embeddings.of(context.probabilities, features)
        found = kmeans_plus_plus(embeddings, batch_size, rng)
        return context.query(found.positions, found.distances)


def kmeans_plus_plus(embeddings: Embeddings, batch_size: int, rng: np.random.Generator) -> Spread:
    """Different positions by k-means++; memory O(U(d + C)), time O(bU(d + C))."""
    squares = embeddings.squares
    first = int(rng.choice(np.flatnonzero(squares == squares.max())))
    found = spread(
        # the origin is no centre: the first pick is, though it was the farthest from the origin
        embeddings.distances_to(first),
        embeddings.distances_to,
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
