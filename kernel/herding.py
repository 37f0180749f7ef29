"""Herding on the empirical NTK: MaxHerding, UHerding and NTKCPL.

Coverage is measured by k̂(x,x') = k(x,x')/√(k(x,x)k(x',x')) and its largest value m(x) to anything
labelled or picked; UHerding weighs it by the uncertainty of calibrated probabilities, their
temperature found by leave-one-out kernel regression on the labelled block (Bae, Oliveira,
Sutherland, ECCV 2024 and ICLR 2025). NTKCPL scores agreement with pseudo-labels of clusters (Wen,
Pizarro, Williams 2023). Where these depart from the papers: docs/mathematics.md, 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.special import entr, log_softmax, softmax

from kernel.covariance import Block, Blocks, Covariance, Cross, Features, Given
from kernel.criteria import (
    Seen,
    agreeing,
    label_probabilities,
    rebased,
    refuse_full,
    settled,
    total,
)
from kernel.errors import KernelError
from kernel.linalg import row_blocks
from kernel.model import rounding_of
from kernel.options import Options
from kernel.posterior import Posterior, absorb_block, prior

# Of a network whose logits are about 0 or 1: from odds of e²⁰ to odds of e^0.2.
COLDEST, WARMEST = 0.05, 5.0


def leave_one_out(
    k_ll: Float[np.ndarray, "labelled labelled"],
    targets: Float[np.ndarray, "labelled classes"],
    ridge: float,
) -> Float[np.ndarray, "labelled classes"]:
    """What kernel regression on the other labels says of each labelled image.

    y_i − (M⁻¹Y)_i / (M⁻¹)_ii with M = K_LL + λI (Rasmussen and Williams 2006, Eq. 5.12).

    Args:
        k_ll: the labelled block.
        targets: Y.
        ridge: λ, with whatever jitter made K_LL factorable.
    """
    factor = cho_factor(k_ll + ridge * np.eye(len(k_ll)), lower=True)
    inverse = cho_solve(factor, np.eye(len(k_ll)))
    return targets - inverse @ targets / inverse.diagonal()[:, None]


def temperature(
    logits: Float[np.ndarray, "labelled classes"], targets: Float[np.ndarray, "labelled classes"]
) -> float:
    """T between `COLDEST` and `WARMEST` that makes softmax(f/T) most likely (Guo et al. 2017)."""

    def surprise(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature), axis=1)).mean())

    bounds = (np.log(COLDEST), np.log(WARMEST))
    found: Any = minimize_scalar(surprise, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def uncertainty(
    logits: Float[np.ndarray, "candidates classes"], options: Options, warmth: float | None
) -> Float[np.ndarray, " candidates"]:
    """1 − (p₁ − p₂), or the entropy in nats.

    Args:
        logits: from which p follows.
        options: which of the two, and the rule of p where there is no temperature.
        warmth: T of softmax(f/T); None takes the rule `options.labels`.
    """
    if warmth is None:
        p = label_probabilities(logits, options)
    else:
        p = softmax(logits / warmth, axis=1)
    if options.uncertainty == "entropy":
        return entr(p).sum(axis=1)
    descending = -np.sort(-p, axis=1)
    # 1 − p₁ as the sum of the others, of which small ones are not lost to rounding
    return descending[:, 1:].sum(axis=1) + descending[:, 1:2].sum(axis=1)


# Anchors of the embedding.
COLUMNS = 256
# Of each image.
COORDINATES = 32
# Clusters a class.
_FINE = 10


@dataclass(frozen=True)
class Clustered(Seen):
    """The outlook of NTKCPL.

    Attributes:
        places: coordinates of the candidates.
        clusters: the cluster of each.
        known: coordinates of everything labelled.
        known_clusters: the cluster of each.
        known_classes: the class of each.
    """

    places: Float[np.ndarray, "candidates coordinates"]
    clusters: Int64[np.ndarray, " candidates"]
    known: Float[np.ndarray, "known coordinates"]
    known_clusters: Int64[np.ndarray, " known"]
    known_classes: Int64[np.ndarray, " known"]

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """How many candidates would agree with their cluster; 0 for a determined candidate."""
        wanted = self.pseudo_labels()
        return settled(self.posterior, agreeing(self.posterior, self._rows(wanted), wanted))

    def pseudo_labels(self) -> Int64[np.ndarray, " candidates"]:
        """The class of the nearest labelled image of the same cluster.

        In a cluster that has none, the class that most of its candidates are predicted to be of.
        """
        predicted = self.posterior.logits.argmax(axis=1)
        wanted = np.empty(len(predicted), np.int64)
        for cluster in np.unique(self.clusters):
            own, labelled = self.clusters == cluster, self.known_clusters == cluster
            if labelled.any():
                gaps = self.places[own][:, None] - self.known[labelled]
                nearest = (gaps**2).sum(axis=2).argmin(axis=1)
                wanted[own] = self.known_classes[labelled][nearest]
            else:
                wanted[own] = np.bincount(predicted[own]).argmax()
        return wanted

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "Clustered":
        """With true labels, which clusters follow too."""
        return replace(
            self,
            posterior=rebased(absorb_block(self.posterior, candidates, label_rows)),
            known=np.concatenate([self.known, self.places[candidates]]),
            known_clusters=np.concatenate([self.known_clusters, self.clusters[candidates]]),
            known_classes=np.concatenate([self.known_classes, label_rows.argmax(axis=1)]),
        )

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "Clustered":
        """With the labels of their clusters."""
        expected = self._rows(self.pseudo_labels()[candidates])
        return replace(self, posterior=absorb_block(self.posterior, candidates, expected))

    def _rows(self, classes: np.ndarray) -> np.ndarray:
        return np.eye(self.posterior.logits.shape[1])[classes]


def ntkcpl(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Clustered:
    """Cluster labelled images and candidates together, by k-means.

    Raises:
        KernelError: the full kernel.
    """
    from sklearn.cluster import KMeans  # seconds, which no other criterion needs

    refuse_full("ntkcpl", posterior)
    labelled = len(targets)
    rng = np.random.default_rng(options.seed)
    coordinates = embedding(kernel, labelled, posterior.sample, rng)
    different = len(np.unique(coordinates.round(8), axis=0))
    count = options.clusters or _FINE * targets.shape[1]
    count = max(1, min(count, different, len(coordinates) // 2))
    means = KMeans(count, random_state=int(rng.integers(2**31)))
    clusters = means.fit_predict(coordinates).astype(np.int64)
    return Clustered(
        posterior,
        options,
        places=coordinates[labelled:],
        clusters=clusters[labelled:],
        known=coordinates[:labelled],
        known_clusters=clusters[:labelled],
        known_classes=targets.argmax(axis=1),
    )


def embedding(
    kernel: Given, labelled: int, sample: Int64[np.ndarray, " sample"], rng: np.random.Generator
) -> Float[np.ndarray, "examples coordinates"]:
    """Coordinates whose inner products are nearly the normalised kernel, of all examples.

    From its columns at some anchors, drawn among the labelled images and the sample (Nyström; the
    directions in which the anchors differ most).
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


# The radius while no two labelled images are known to differ.
RADIUS = 1.0
_COLUMNS = 4096


@dataclass(frozen=True)
class Coverage:
    """What is covered.

    Attributes:
        blocks: the kernel.
        before: K_UU, read as S is.
        roots: 1/√k(x,x) of the candidates.
        labelled_roots: of the labelled images.
        nearest: the largest k̂ of each candidate of the sample to anything labelled or picked;
            of others as the labelled set has it.
        apart: the smallest distance √(2 − 2k̂) between two different labelled images; infinite
            where there are none.
        absorbed: candidates labelled since.
    """

    blocks: Blocks
    before: Covariance
    roots: Float[np.ndarray, " candidates"]
    labelled_roots: Float[np.ndarray, " labelled"]
    nearest: Float[np.ndarray, " candidates"]
    apart: float
    absorbed: Int64[np.ndarray, " absorbed"]

    def picked(self, places: Int64[np.ndarray, " chosen"]) -> "Coverage":
        """With more that is picked; the radius stays."""
        sample = self.before.sample
        near = self._similar(places).max(axis=1, initial=-np.inf)
        nearest = self.nearest.copy()
        nearest[sample] = np.maximum(nearest[sample], near)
        return replace(self, nearest=nearest)

    def labelled(self, places: Int64[np.ndarray, " chosen"]) -> "Coverage":
        """With more that is labelled, candidates of the sample: the radius follows."""
        apart = self.apart
        sample = self.before.sample
        everything = np.concatenate([self.absorbed, places])
        place_of = np.full(len(self.roots), -1)
        place_of[sample] = np.arange(len(sample))
        among = self._similar(places)
        for column, place in enumerate(places):
            old = self.blocks.cross(int(place), int(place) + 1)
            old = np.asarray(old)[:, 0] * self.labelled_roots * self.roots[place]
            known = place_of[everything[everything != place]]
            new = among[known[known >= 0], column]
            apart = min(apart, _apart(np.concatenate([old, new]), self.rounding))
        return replace(self.picked(places), apart=apart, absorbed=everything)

    def gains(
        self, weights: Float[np.ndarray, " candidates"], radius: str | float | None
    ) -> Float[np.ndarray, " candidates"]:
        """(1/M) Σ_x u(x) [k_σ(x,x') − m(x)]₊ of every candidate x'.

        Args:
            weights: u.
            radius: as `Options.radius`.
        """
        return self._sum(self.before, [(self.nearest, weights)], radius)

    def nearer(self, earlier: "Coverage") -> Int64[np.ndarray, " rows"]:
        """Candidates of the sample that what was picked since is nearer to than all before."""
        sample = self.before.sample
        return sample[self.nearest[sample] > earlier.nearest[sample]]

    def lost(
        self,
        earlier: "Coverage",
        weights: Float[np.ndarray, " candidates"],
        radius: str | float | None,
    ) -> Float[np.ndarray, " candidates"]:
        """How much less the gain of every candidate is than it was, from rows of `nearer` alone.

        A pick is nearer than the labelled set to few candidates: where rows of the kernel are made
        whenever they are read, that is far less work than all gains anew.

        Args:
            earlier: this coverage with fewer picks.
            weights: u, which are those of then.
            radius: as `Options.radius`.
        """
        rows = replace(self.before, sample=self.nearer(earlier))
        return self._sum(rows, [(earlier.nearest, weights), (self.nearest, -weights)], radius)

    def _sum(
        self,
        rows: Covariance,
        terms: Sequence[tuple[np.ndarray, np.ndarray]],
        radius: str | float | None,
    ) -> Float[np.ndarray, " candidates"]:
        """(1/M) Σ_x u(x) [k_σ(x,x') − m(x)]₊ over some rows x, for each of some m with its u."""
        sigma = self.sigma(radius)
        rate = 0.0 if sigma is None else 2.0 / sigma**2
        pad = self.before.pad
        roots, padded = pad(self.roots), [(pad(m), pad(u)) for m, u in terms]

        def step(sums: Array, block: Block) -> Array:
            for nearest, weights in padded:
                sums = _add(sums, *block, roots, nearest, weights, rate)
            return sums

        return total(rows, step) / len(self.before.sample)

    def sigma(self, radius: str | float | None) -> float | None:
        """The radius now; None where the kernel itself covers."""
        if isinstance(radius, str):
            return self.apart if np.isfinite(self.apart) else RADIUS
        return radius

    def _similar(self, places: np.ndarray) -> np.ndarray:
        """k̂ between the sample and some candidates."""
        values = self.before.among(places)
        return values * self.roots[self.before.sample][:, None] * self.roots[places]

    @property
    def rounding(self) -> float:
        """Of the kernel's entries, relative."""
        return rounding_of(self.blocks.given.precision)


def coverage(kernel: Given, posterior: Posterior, labelled: int) -> Coverage:
    """By the labelled set.

    Args:
        kernel: scalar-valued.
        posterior: made of it.
        labelled: L.

    Raises:
        KernelError: S has taken the memory of the kernel.
    """
    blocks = Blocks(kernel, labelled, 1)
    before = prior(blocks, posterior.covariance)
    roots, k_ll = _inverse_roots(blocks.diagonal()), blocks.labelled_block()
    own = _inverse_roots(k_ll.diagonal())
    nearest = np.empty(blocks.candidates)
    for start, stop in row_blocks(blocks.candidates, _COLUMNS):
        similar = np.asarray(blocks.cross(start, stop)) * own[:, None]
        nearest[start:stop] = similar.max(axis=0) * roots[start:stop]
    pairs = (k_ll * own[:, None] * own)[np.triu_indices(labelled, 1)]
    apart = _apart(pairs, rounding_of(kernel.precision))
    nothing = np.zeros(0, np.int64)
    return Coverage(blocks, before, roots, own, nearest, apart, nothing)


def _inverse_roots(diagonal: np.ndarray) -> np.ndarray:
    """0 for an image whose gradient is zero: it is near to nothing."""
    some = diagonal > 0
    return np.where(some, 1 / np.sqrt(np.where(some, diagonal, 1.0)), 0.0)


def _apart(similar: np.ndarray, rounding: float) -> float:
    """The smallest distance that is not rounding: duplicates are no scale."""
    squares = 2 - 2 * similar
    return float(np.sqrt(squares[squares > 64 * rounding].min(initial=np.inf)))


@jax.jit
def _add(
    sums: Float[Array, " width"],
    places: Int64[Array, " rows"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    roots: Float[Array, " width"],
    nearest: Float[Array, " width"],
    weights: Float[Array, " width"],
    rate: Float[Array, ""] | float,
) -> Float[Array, " width"]:
    """`rate` is 2/σ², or 0 where the kernel itself covers."""

    def cover(similar):
        return jnp.where(rate > 0, jnp.exp(rate * (similar - 1)), similar)

    similar = values * roots[places][:, None] * roots
    gains = jnp.maximum(cover(similar) - cover(nearest[places])[:, None], 0.0)
    return sums + (mask * weights[places]) @ gains


# Roundings of the kernel by which a gain may be off that is the difference of two.
_SETTLED = 64


@dataclass(frozen=True)
class Herding(Seen):
    """The outlook of both; it reads the kernel, and columns of S once a label is absorbed.

    Attributes:
        cover: what is covered.
        weights: u of every candidate; ones for MaxHerding.
        warmth: T of the probabilities of u; None takes the rule of labels.
        uncertain: whether u is the uncertainty of the predictions.
        known: the gains, where they follow from those before the last pick.
    """

    cover: Coverage
    weights: Float[np.ndarray, " candidates"]
    warmth: float | None
    uncertain: bool
    known: Float[np.ndarray, " candidates"] | None = None

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """Gain in coverage, from 0 to the largest u; 0 for a determined candidate."""
        return np.where(self.determined, 0.0, self.gains)

    @cached_property
    def gains(self) -> Float[np.ndarray, " candidates"]:
        """Of every candidate, determined or not."""
        if self.known is not None:
            return self.known
        return self.cover.gains(self.weights, self.options.radius)

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "Herding":
        """With true labels: they cover, the radius follows, and u comes from the new G."""
        posterior = rebased(absorb_block(self.posterior, candidates, label_rows))
        weights = self.weights
        if self.uncertain:
            weights = uncertainty(posterior.logits, self.options, self.warmth)
        cover = self.cover.labelled(candidates)
        return replace(self, posterior=posterior, cover=cover, weights=weights, known=None)

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "Herding":
        """They cover; nothing is learnt of labels, and S is not read."""
        cover = self.cover.picked(candidates)
        if 2 * len(cover.nearer(self.cover)) > len(cover.before.sample):
            return replace(self, cover=cover, known=None)  # no less work than all of them anew
        left = self.gains - cover.lost(self.cover, self.weights, self.options.radius)
        # a duplicate of the pick has nothing left: what there is, is rounding
        settled = left <= _SETTLED * cover.rounding * self.gains
        return replace(self, cover=cover, known=np.where(settled, 0.0, left))


def max_herding(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Herding:
    """Mean over x of [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel.
    """
    refuse_full("max_herding", posterior)
    cover = coverage(kernel, posterior, len(targets))
    return Herding(posterior, options, cover, np.ones(len(posterior.logits)), None, False)


def uherding(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Herding:
    """Mean over x of u(x) [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel; fewer than two classes;
            label probabilities that leave nothing uncertain.
    """
    refuse_full("uherding", posterior)
    if targets.shape[1] < 2:
        raise KernelError("uherding needs at least two classes to be uncertain between.")
    warmth = options.temperature
    if warmth is None and options.labels == "one_hot":
        raise KernelError(
            "uherding without a temperature takes its uncertainty from the rule of labels, and "
            "one_hot leaves none: give a temperature, or the rule simplex or softmax."
        )
    cover = coverage(kernel, posterior, len(targets))
    if isinstance(warmth, str):
        k_ll = cover.blocks.labelled_block()
        warmth = temperature(leave_one_out(k_ll, targets, posterior.ridge), targets)
    weights = uncertainty(posterior.logits, options, warmth)
    return Herding(posterior, options, cover, weights, warmth, True)
