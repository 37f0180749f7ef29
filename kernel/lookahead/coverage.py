"""Coverage: how near is each candidate to something labelled, by the normalised kernel?

From a kernel to k̂(x,x') = k(x,x')/√(k(x,x)k(x',x')), its largest value m(x) to anything labelled or
picked, and what each further pick would add to it (docs/mathematics.md, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from kernel.kinds import rounding_of
from kernel.lookahead.sweeps import total
from kernel.posterior import Posterior
from kernel.regression.conditioning import prior
from kernel.regression.covariance import Block, Covariance
from kernel.regression.inputs import Blocks, Given
from kernel.regression.linalg import row_blocks

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
