"""What is computed once a round, whatever the number of strategies that need it.

From a need and a function to that function's result, and from a network and images to logits and
penultimate features of one forward pass.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import nn

from pipelines.numbered import numbered
from trainer.penultimate import Predictions, find_head, predictions
from trainer.piecewise import Piecewise

PROBE = 4  # images on which a mirror is certified, and the layer of the logits is looked for
T = TypeVar("T")
Pair = tuple[np.ndarray, np.ndarray]


class Held:
    """What was computed in a round for whichever strategies need it, the latest of each kind."""

    def __init__(self):
        """Nothing yet."""
        self._kept: dict[str, tuple[tuple[object, ...], Any]] = {}

    def once(self, need: str, of: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` gave for the need before, of these very objects, or gives now."""
        kept = self._kept.get(need)
        if kept is None or any(a is not b for a, b in zip(kept[0], of, strict=True)):
            kept = self._kept[need] = (of, make())
        return kept[1]


def probe_of(labelled: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """A few images of a query, int64."""
    return np.concatenate([candidates, labelled])[:PROBE]


def predicted(
    network: nn.Module,
    images: Callable[[np.ndarray], np.ndarray],
    labelled: np.ndarray,
    candidates: np.ndarray,
) -> tuple[Pair, Pair]:
    """Logits of the labelled images and the candidates, and penultimate features of the two.

    Raises:
        NetworkError: no layer makes the logits.
    """
    probe = probe_of(labelled, candidates)
    with numbered(probe):
        head = find_head(network, images(probe))

    def of(indices: np.ndarray) -> Predictions:
        with numbered(indices):
            return predictions(network, Piecewise(images, indices), head)

    logits, features = zip(of(labelled), of(candidates), strict=True)
    return logits, features
