"""Predicted changes: what the NTK posterior says that retraining with each candidate would do.

From a mirror of the trained network and its logits to fields of changes at the reference points,
for the candidates asked for only: the same identities that score a whole query at once
(docs/mathematics.md, 1).
"""

from typing import NamedTuple

import numpy as np

from kernel.model import Model
from kernel.ntk import query_kernel
from kernel.options import Kind
from kernel.posterior import Posterior, posterior
from pipelines.strategies.options import KernelConfig


class Prediction(NamedTuple):
    """What a kernel predicts.

    Attributes:
        drift: D, float64 (points, classes): what fitting the labels exactly would still change.
        moves: W[:,x'] R_x', float64 (candidates, points, classes): what the candidate adds; zeros
            for one that the labelled set already determines.
        jitter: that K_LL needed, as a fraction of its mean diagonal.
        determined: candidates that the labelled set determines.
    """

    drift: np.ndarray
    moves: np.ndarray
    jitter: float
    determined: int

    def change(self, reference: str) -> np.ndarray:
        """(candidates, points, classes), from the trained network or from the fitted linearised."""
        return self.moves + self.drift if reference == "network" else self.moves


def name_of(settings: KernelConfig) -> str:
    """A kind as tables name it."""
    kind: Kind = settings.kind
    return f"rademacher({settings.probes})" if kind == "rademacher" else kind


def predict(
    model: Model,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    places: np.ndarray,
    settings: KernelConfig,
    rng: np.random.Generator,
) -> Prediction:
    """The change that each candidate's pseudo-label would make.

    Args:
        model: the trained network's mirror.
        images: the labelled ones, then the reference points, as the network takes them.
        labels: int64 (labelled,).
        logits: (labelled + points, classes), of the trained network.
        places: of the candidates among the points.
        settings: of the kernel.
        rng: of projections and sketches.

    Raises:
        KernelError: a kernel that does not fit in the memory, is not finite or is singular.
    """
    labelled = len(labels)
    kernel, held = query_kernel(
        model, images, labelled, settings.request, sketch=settings.sketch, rng=rng
    )
    outputs = logits.astype(np.float64)
    given = posterior(
        kernel,
        np.eye(outputs.shape[1])[labels],
        outputs[:labelled],
        outputs[labelled:],
        keep=held.keep,
        ridge=settings.ridge,
    )
    added = moves(given, places)
    determined = int((~added.any(axis=(1, 2))).sum())
    return Prediction(given.drift, added, given.jitter, determined)


def moves(given: Posterior, places: np.ndarray) -> np.ndarray:
    """W[:,x'] R_x' for the pseudo-labels of some candidates, (places, points, classes).

    For the kind `full` S[:,x'](S[x',x'] + λI)⁻¹R_x', leaving out the directions of a candidate's
    own block that have no variance left.
    """
    points, classes = given.logits.shape
    each = len(given.variance) // points
    residual = np.eye(classes)[given.logits.argmax(axis=1)] - given.predictions
    added = np.zeros((len(places), points, classes))
    for number, place in enumerate(places):
        rows = place * each + np.arange(each)
        columns = given.covariance.columns(rows)
        own = columns[rows].copy()
        np.fill_diagonal(own, given.variance[rows])
        values, vectors = np.linalg.eigh(own)
        is_open = values >= given.floor[rows].max()
        inverse = np.where(is_open, 1.0 / np.where(is_open, values + given.ridge, 1.0), 0.0)
        right = residual[place].reshape(each, -1)
        added[number] = (columns @ (vectors * inverse) @ (vectors.T @ right)).reshape(
            points, classes
        )
    return added
