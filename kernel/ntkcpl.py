"""NTKCPL: label what would bring the most predictions in line with clusters of the candidates.

The empirical risk under clusters' pseudo-labels of Wen, Pizarro and Williams 2023, by k-means in
coordinates whose inner products are nearly the normalised kernel (docs/mathematics.md, 3, which
says where this departs from them).
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int64

from kernel.covariance import AnyKernel, Cross, Features
from kernel.criteria import (
    AcquisitionState,
    agreeing,
    lowest_if_determined,
    rebased,
    refuse_full,
)
from kernel.options import Options
from kernel.posterior import Posterior, absorb

# Anchors of the embedding.
COLUMNS = 256
# Of each image.
COORDINATES = 32
# Clusters a class.
_FINE = 10


@dataclass(frozen=True)
class NTKCPLState(AcquisitionState):
    """NTKCPL: candidates that would agree with their cluster's pseudo-label.

    Attributes:
        coordinates: of the candidates.
        clusters: the cluster of each.
        known: coordinates of everything labelled.
        known_clusters: the cluster of each.
        known_classes: the class of each.
    """

    coordinates: Float[np.ndarray, "candidates coordinates"]
    clusters: Int64[np.ndarray, " candidates"]
    known: Float[np.ndarray, "known coordinates"]
    known_clusters: Int64[np.ndarray, " known"]
    known_classes: Int64[np.ndarray, " known"]

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """Candidates that would agree with their cluster; 0 for a determined candidate."""
        wanted = self.pseudo_labels()
        # (26) #{x: argmax(G_x + W[x,x'] (e_ỹ' − G_x')) = ỹ_x}
        return lowest_if_determined(
            self.posterior, agreeing(self.posterior, self._rows(wanted), wanted)
        )

    def pseudo_labels(self) -> Int64[np.ndarray, " candidates"]:
        """The class of the nearest labelled image of the same cluster.

        In a cluster that has none, the class that most of its candidates are predicted to be of.
        """
        predicted = self.posterior.logits.argmax(axis=1)
        wanted = np.empty(len(predicted), np.int64)
        for cluster in np.unique(self.clusters):
            own, labelled = self.clusters == cluster, self.known_clusters == cluster
            if labelled.any():
                gaps = self.coordinates[own][:, None] - self.known[labelled]
                nearest = (gaps**2).sum(axis=2).argmin(axis=1)
                wanted[own] = self.known_classes[labelled][nearest]
            else:
                wanted[own] = np.bincount(predicted[own]).argmax()
        return wanted

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "NTKCPLState":
        """With true labels, which clusters follow too."""
        return replace(
            self,
            posterior=rebased(absorb(self.posterior, candidates, label_rows)),
            known=np.concatenate([self.known, self.coordinates[candidates]]),
            known_clusters=np.concatenate([self.known_clusters, self.clusters[candidates]]),
            known_classes=np.concatenate([self.known_classes, label_rows.argmax(axis=1)]),
        )

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "NTKCPLState":
        """With the labels of their clusters."""
        expected = self._rows(self.pseudo_labels()[candidates])
        return replace(self, posterior=absorb(self.posterior, candidates, expected))

    def _rows(self, classes: np.ndarray) -> np.ndarray:
        return np.eye(self.posterior.logits.shape[1])[classes]


def ntkcpl(
    kernel: AnyKernel,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> NTKCPLState:
    """Cluster labelled images and candidates together, by k-means.

    Raises:
        KernelError: the full kernel.
    """
    from sklearn.cluster import KMeans  # takes seconds, and no other criterion needs it

    refuse_full("ntkcpl", posterior)
    labelled = len(targets)
    rng = np.random.default_rng(options.seed)
    coordinates = embedding(kernel, labelled, posterior.sample, rng)
    different = len(np.unique(coordinates.round(8), axis=0))
    count = options.clusters or _FINE * targets.shape[1]
    count = max(1, min(count, different, len(coordinates) // 2))
    means = KMeans(count, random_state=int(rng.integers(2**31)))
    clusters = means.fit_predict(coordinates).astype(np.int64)
    return NTKCPLState(
        posterior,
        options,
        coordinates=coordinates[labelled:],
        clusters=clusters[labelled:],
        known=coordinates[:labelled],
        known_clusters=clusters[:labelled],
        known_classes=targets.argmax(axis=1),
    )


def embedding(
    kernel: AnyKernel, labelled: int, sample: Int64[np.ndarray, " sample"], rng: np.random.Generator
) -> Float[np.ndarray, "examples coordinates"]:
    """Coordinates whose inner products are nearly the normalised kernel, of all examples.

    Nyström on anchors drawn among the labelled images and the sample, in the directions in which
    these differ most.
    """
    count = labelled + len(sample)
    chosen = np.sort(rng.choice(count, min(COLUMNS, count), replace=False))
    examples = np.concatenate([np.arange(labelled), labelled + sample])[chosen]
    values = kernel.values
    if isinstance(kernel, Features):
        rows = np.asarray(values[examples] @ values.T, np.float64)
        wide = np.asarray(values)
        diagonal = np.einsum("ij,ij->i", wide, wide, dtype=np.float64)
    elif isinstance(kernel, Cross):
        rows, diagonal = np.asarray(values[chosen], np.float64), kernel.diagonal
    else:
        rows, diagonal = np.asarray(values[examples]), values.diagonal()
    roots = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    rows = rows * roots[examples][:, None] * roots
    among = rows[:, examples]
    powers, vectors = np.linalg.eigh((among + among.T) / 2)
    kept = np.flatnonzero(powers > 1e-6 * powers[-1])[-COORDINATES:]
    return rows.T @ (vectors[:, kept] / np.sqrt(powers[kept]))
