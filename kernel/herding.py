"""MaxHerding and UHerding: label what covers most of what is not covered yet, or not certain.

The gain in (uncertainty) coverage of every candidate (Bae, Oliveira, Sutherland, ECCV 2024 and ICLR
2025), on the normalised empirical NTK; uncertainty at a temperature calibrated by leave-one-out
kernel regression (docs/mathematics.md, 3, which says where this departs from them).
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

from kernel.covariance import AnyKernel, Covariance, KernelBlocks
from kernel.criteria import (
    AcquisitionState,
    label_probabilities,
    rebased,
    refuse_full,
    total,
)
from kernel.errors import KernelError
from kernel.linalg import row_blocks
from kernel.model import rounding_of
from kernel.options import Options
from kernel.posterior import Posterior, absorb, prior

# Of a network whose logits are about 0 or 1: from odds of e²⁰ to odds of e^0.2.
COLDEST, WARMEST = 0.05, 5.0


def leave_one_out(
    k_ll: Float[np.ndarray, "labelled labelled"],
    targets: Float[np.ndarray, "labelled classes"],
    ridge: float,
) -> Float[np.ndarray, "labelled classes"]:
    """Leave-one-out predictions of kernel regression (Rasmussen and Williams 2006, Eq. 5.12).

    Args:
        k_ll: the labelled block.
        targets: Y.
        ridge: λ, with the jitter that made K_LL factorable.
    """
    factor = cho_factor(k_ll + ridge * np.eye(len(k_ll)), lower=True)
    inverse = cho_solve(factor, np.eye(len(k_ll)))
    # (30) y_i − (M⁻¹Y)_i / (M⁻¹)_ii with M = K_LL + λI
    return targets - inverse @ targets / inverse.diagonal()[:, None]


def calibrated_temperature(
    logits: Float[np.ndarray, "labelled classes"], targets: Float[np.ndarray, "labelled classes"]
) -> float:
    """T between `COLDEST` and `WARMEST` that makes softmax(f/T) most likely (Guo et al. 2017)."""

    def surprise(log_temperature: float) -> float:
        return -float((targets * log_softmax(logits / np.exp(log_temperature), axis=1)).mean())

    bounds = (np.log(COLDEST), np.log(WARMEST))
    found: Any = minimize_scalar(surprise, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def uncertainty(
    logits: Float[np.ndarray, "candidates classes"], options: Options, temperature: float | None
) -> Float[np.ndarray, " candidates"]:
    """1 − (p₁ − p₂), or the entropy in nats.

    Args:
        logits: from which p follows.
        options: which of the two, and the rule of p where there is no temperature.
        temperature: T of softmax(f/T); None takes the rule `options.labels`.
    """
    if temperature is None:
        p = label_probabilities(logits, options)
    else:
        p = softmax(logits / temperature, axis=1)
    if options.uncertainty == "entropy":
        return entr(p).sum(axis=1)
    descending = -np.sort(-p, axis=1)
    # (29) u = 1 − (p₁ − p₂), 1 − p₁ as the sum of the others: small ones are not lost to rounding
    return descending[:, 1:].sum(axis=1) + descending[:, 1:2].sum(axis=1)


# The radius while no two labelled images are known to differ.
RADIUS = 1.0
_COLUMNS = 4096


@dataclass(frozen=True)
class Coverage:
    """Coverage of the candidates by what is labelled or picked, in the normalised kernel.

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

    blocks: KernelBlocks
    before: Covariance
    roots: Float[np.ndarray, " candidates"]
    labelled_roots: Float[np.ndarray, " labelled"]
    nearest: Float[np.ndarray, " candidates"]
    apart: float
    absorbed: Int64[np.ndarray, " absorbed"]

    def picked(self, candidates: Int64[np.ndarray, " chosen"]) -> "Coverage":
        """With more that is picked; the radius stays."""
        sample = self.before.sample
        near = self._similar(candidates).max(axis=1, initial=-np.inf)
        nearest = self.nearest.copy()
        nearest[sample] = np.maximum(nearest[sample], near)
        return replace(self, nearest=nearest)

    def labelled(self, candidates: Int64[np.ndarray, " chosen"]) -> "Coverage":
        """With more that is labelled, candidates of the sample: the radius follows."""
        apart = self.apart
        sample = self.before.sample
        everything = np.concatenate([self.absorbed, candidates])
        row_of = np.full(len(self.roots), -1)
        row_of[sample] = np.arange(len(sample))
        among = self._similar(candidates)
        for column, candidate in enumerate(candidates):
            old = self.blocks.cross(int(candidate), int(candidate) + 1)
            old = np.asarray(old)[:, 0] * self.labelled_roots * self.roots[candidate]
            known = row_of[everything[everything != candidate]]
            new = among[known[known >= 0], column]
            apart = min(apart, _apart(np.concatenate([old, new]), self.rounding))
        return replace(self.picked(candidates), apart=apart, absorbed=everything)

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
        """The fall of every candidate's gain since `earlier`, from rows of `nearer` alone.

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
        rate = None if sigma is None else 2.0 / sigma**2
        nearest, weights = (np.stack(arrays, axis=1) for arrays in zip(*terms, strict=True))
        own = self.roots, nearest, weights
        return total(rows, _add_gains, own, [self.roots], rate, blocks=True) / len(
            self.before.sample
        )

    def sigma(self, radius: str | float | None) -> float | None:
        """The radius now; None where the kernel itself covers."""
        if isinstance(radius, str):
            return self.apart if np.isfinite(self.apart) else RADIUS
        return radius

    def _similar(self, candidates: np.ndarray) -> np.ndarray:
        """k̂ between the sample and some candidates."""
        values = self.before.among(candidates)
        return values * self.roots[self.before.sample][:, None] * self.roots[candidates]

    @property
    def rounding(self) -> float:
        """Relative rounding of the kernel's entries."""
        return rounding_of(self.blocks.kernel.precision)


def coverage(kernel: AnyKernel, posterior: Posterior, labelled: int) -> Coverage:
    """By the labelled set.

    Args:
        kernel: scalar-valued.
        posterior: made of it.
        labelled: L.

    Raises:
        KernelError: S has taken the memory of the kernel.
    """
    blocks = KernelBlocks(kernel, labelled, 1)
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
def _add_gains(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, " rows"],
    nearest: Float[Array, "rows terms"],
    weights: Float[Array, "rows terms"],
    roots: Float[Array, " width"],
    rate: Float[Array, ""] | float | None,
) -> Float[Array, " width"]:
    """`rate` is 2/σ², or None where the kernel itself covers."""

    def cover(similar):
        # (28) k_σ = exp(−(2 − 2k̂)/σ²), or k̂ itself
        return similar if rate is None else jnp.exp(rate * (similar - 1))

    # (27) k̂(x,x') = k(x,x') / √(k(x,x) k(x',x'))
    covered, known = cover(values * own[:, None] * roots), cover(nearest)
    for term in range(nearest.shape[1]):
        gains = jnp.maximum(covered - known[:, term, None], 0.0)
        # (25) (1/M) Σ_x u(x) [k_σ(x,x') − m(x)]₊
        sums = sums + (mask * weights[:, term]) @ gains
    return sums


# Roundings of the kernel by which a gain may be off that is the difference of two.
_NEGLIGIBLE = 64


@dataclass(frozen=True)
class HerdingState(AcquisitionState):
    """MaxHerding or UHerding; reads the kernel, and columns of S once a label is absorbed.

    Attributes:
        cover: what is covered.
        weights: u of every candidate; ones for MaxHerding.
        temperature: T of the probabilities of u; None takes the rule of labels.
        uncertain: whether u is the uncertainty of the predictions.
        known: the gains, where they follow from those before the last pick.
    """

    cover: Coverage
    weights: Float[np.ndarray, " candidates"]
    temperature: float | None
    uncertain: bool
    known: Float[np.ndarray, " candidates"] | None = None

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """Gain in coverage, from 0 to the largest u; 0 for a determined candidate."""
        return np.where(self.posterior.determined, 0.0, self.gains)

    @cached_property
    def gains(self) -> Float[np.ndarray, " candidates"]:
        """Gain of every candidate, determined or not."""
        if self.known is not None:
            return self.known
        return self.cover.gains(self.weights, self.options.radius)

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "HerdingState":
        """With true labels: they cover, the radius follows, and u comes from the new G."""
        posterior = rebased(absorb(self.posterior, candidates, label_rows))
        weights = self.weights
        if self.uncertain:
            weights = uncertainty(posterior.logits, self.options, self.temperature)
        cover = self.cover.labelled(candidates)
        return replace(self, posterior=posterior, cover=cover, weights=weights, known=None)

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "HerdingState":
        """They cover; nothing is learnt of labels, and S is not read."""
        cover = self.cover.picked(candidates)
        if 2 * len(cover.nearer(self.cover)) > len(cover.before.sample):
            return replace(self, cover=cover, known=None)  # no less work than all of them anew
        left = self.gains - cover.lost(self.cover, self.weights, self.options.radius)
        # a duplicate of the pick has nothing left: what there is, is rounding
        negligible = left <= _NEGLIGIBLE * cover.rounding * self.gains
        return replace(self, cover=cover, known=np.where(negligible, 0.0, left))


def max_herding(
    kernel: AnyKernel,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> HerdingState:
    """Mean over x of [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel.
    """
    refuse_full("max_herding", posterior)
    cover = coverage(kernel, posterior, len(targets))
    return HerdingState(posterior, options, cover, np.ones(len(posterior.logits)), None, False)


def uherding(
    kernel: AnyKernel,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> HerdingState:
    """Mean over x of u(x) [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel; fewer than two classes;
            label probabilities that leave nothing uncertain.
    """
    refuse_full("uherding", posterior)
    if targets.shape[1] < 2:
        raise KernelError("uherding needs at least two classes to be uncertain between.")
    temperature = options.temperature
    if temperature is None and options.labels == "one_hot":
        raise KernelError(
            "uherding without a temperature takes its uncertainty from the rule of labels, and "
            "one_hot leaves none: give a temperature, or the rule simplex or softmax."
        )
    cover = coverage(kernel, posterior, len(targets))
    if isinstance(temperature, str):
        k_ll = cover.blocks.labelled_block()
        loo = leave_one_out(k_ll, targets, posterior.ridge)
        temperature = calibrated_temperature(loo, targets)
    weights = uncertainty(posterior.logits, options, temperature)
    return HerdingState(posterior, options, cover, weights, temperature, True)
