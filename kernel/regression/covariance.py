"""S, the posterior covariance of the candidates: kept, or computed again whenever it is read.

From rows of S, or from features Φ or rows of K, and A = C⁻¹K_LU with S = Φ_UΦ_Uᵀ − AᵀA, to what
every criterion reads: tiles S[x, :] for reference points x of a sample and all candidates at once,
always of one shape, and single columns S[:, q] (docs/mathematics.md, 1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from kernel.errors import KernelError
from kernel.regression.linalg import (
    CANDIDATES,
    Matrix,
    aligned_zeros,
    padded,
    subtract_outer,
    tile_rows,
    to_device,
)
from kernel.regression.source import Source, appended, kept_rows, streamed_rows

_Carry = TypeVar("_Carry")


class Block(NamedTuple):
    """Some rows of S.

    Attributes:
        places: the candidates that the rows belong to; 0 for rows of padding.
        mask: 1 for rows of S, 0 for padding.
        values: S[places, :], with zeros past the last candidate.
    """

    places: Int64[np.ndarray, " rows"]
    mask: Float[np.ndarray, " rows"]
    values: Float[Array, "rows width"]


class _Lease:
    """Counts the updates made in place, so that a posterior they consumed is refused."""

    def __init__(self):
        self.updates = 0


@dataclass(frozen=True)
class Covariance:
    """S between a reference sample and all candidates.

    Rows are candidates, or candidate-class pairs of the kind `full`.

    Attributes:
        sample: rows x over which changes are summed.
        candidates: U, the columns of S.
        kept: S[sample, :] in float64, padded on a device; None if it is streamed.
        source: what it is streamed from, and what columns of other candidates come from.
    """

    sample: Int64[np.ndarray, " sample"]
    candidates: int
    kept: Matrix | None
    source: Source | None
    _lease: _Lease = field(default_factory=_Lease)
    _updates: int = 0

    @property
    def width(self) -> int:
        """Columns of a block: U and its padding."""
        return padded(self.candidates, CANDIDATES)

    def pad(self, array: Float[np.ndarray, "candidates ..."]) -> Float[Array, "width ..."]:
        """An array with a row for each candidate, made as long as a block is wide."""
        return to_device(array, (self.width, *array.shape[1:]))

    def blocks(self, rows: int | None = None) -> Iterator[Block]:
        """All rows of the sample in order, in blocks of one shape, the last one padded.

        The next block may be written into the memory of this one: finish with it first, or use
        `sweep`, which does.

        Args:
            rows: of a block; by the width if None, so that pools of nearly one size share it.
        """
        self._check()
        size = rows or tile_rows(self.width)
        buffer: np.ndarray | None = None
        for start in range(0, len(self.sample), size):
            chosen = self.sample[start : start + size]
            mask = (np.arange(size) < len(chosen)).astype(np.float64)
            places = np.zeros(size, np.int64)
            places[: len(chosen)] = chosen
            values = self._rows(start, places, len(chosen))
            if isinstance(values, np.ndarray):
                buffer = aligned_zeros(size, self.width) if buffer is None else buffer
                buffer[: len(chosen), : self.candidates] = values
                values = jnp.asarray(buffer)
            yield Block(places, mask, values)

    def sweep(self, step: Callable[[_Carry, Block], _Carry], carry: _Carry) -> _Carry:
        """Fold `step` over all blocks; each is finished before the next is made."""
        for block in self.blocks():
            carry = jax.block_until_ready(step(carry, block))
        return carry

    def dense(self) -> Float[np.ndarray, "sample candidates"]:
        """S[sample, :] whole, a copy: for small problems and tests."""
        self._check()
        if self.kept is not None:
            return np.array(self.kept)[: len(self.sample), : self.candidates]
        parts = [
            np.asarray(block.values)[block.mask > 0, : self.candidates] for block in self.blocks()
        ]
        return np.concatenate(parts)

    def column(self, place: int) -> Float[np.ndarray, " candidates"]:
        """S[:, q] over all candidates."""
        return self.columns(np.array([place]))[:, 0]

    def columns(self, places: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "candidates _"]:
        """S[:, places] over all candidates.

        Raises:
            KernelError: a column that is neither kept nor follows from features.
        """
        self._check()
        within = np.full(self.candidates, -1)
        within[self.sample] = np.arange(len(self.sample))
        rows = within[places]
        if self.kept is not None and (rows >= 0).all():
            # S is symmetric; a copy, for S is about to be updated in place
            return np.array(self.kept[rows])[:, : self.candidates].T
        if self.source is None or not self.source.has(places):
            raise KernelError(
                f"candidates {places[rows < 0][:5].tolist()} are outside the reference sample, and "
                "this kernel holds columns of the sample only: put them into the sample, or use a "
                "sketch, whose features give every column."
            )
        rows_of_s = np.asarray(streamed_rows(self.source, places), np.float64)
        return rows_of_s[:, : self.candidates].T

    def among(self, places: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "sample chosen"]:
        """S[sample, places], of any candidates."""
        self._check()
        if self.kept is not None:
            return np.array(self.kept[:, places], np.float64)[: len(self.sample)]
        assert self.source is not None
        source = self.source
        if source.host and source.order is None:
            # of the sample alone: whole columns would read the features of all candidates
            own, a = np.asarray(source.features), np.asarray(source.a)[: source.used]
            values = own[self.sample] @ own[places].T - a[:, self.sample].T @ a[:, places]
            return values.astype(np.float64)
        if source.has(places):
            return self.columns(places)[self.sample]
        a = np.asarray(source.a)
        # by symmetry the rows of the sample hold it
        assert source.order is not None
        own = np.asarray(source.features)[source.order[self.sample]][:, places]
        return own.astype(np.float64) - a[:, self.sample].T @ a[:, places]

    def downdated(self, v: Float[np.ndarray, "candidates rank"]) -> "Covariance":
        """S − VVᵀ, in place: this covariance is consumed and refuses to be read again."""
        self._check()
        kept, source = self.kept, self.source
        if kept is not None:
            kept = subtract_outer(kept, v[self.sample], v)
        if source is not None:
            source = appended(source, v)
        self._lease.updates += 1
        return replace(self, kept=kept, source=source, _updates=self._lease.updates)

    def made_kept(self) -> "Covariance":
        """The same with S[sample, :] computed once and held beside its source."""
        self._check()
        if self.source is None or self.kept is not None:
            return self
        return replace(self, kept=kept_rows(self.source, self.sample))

    def _check(self) -> None:
        if self._updates != self._lease.updates:
            raise KernelError(
                "this posterior was consumed when a label was absorbed into it: go on with the one "
                "that absorb returned, or compute the posterior anew."
            )

    def _rows(self, start: int, places: np.ndarray, chosen: int) -> Matrix:
        """Rows of a block; on a device with its padding."""
        held = self.kept if self.kept is not None else self.source
        if isinstance(held, np.ndarray):
            return held[start : start + chosen]
        if isinstance(held, Source):
            return streamed_rows(held, places[:chosen] if held.host else places)
        within = np.minimum(np.arange(start, start + len(places)), len(self.sample) - 1)
        return _taken(held, within)


@jax.jit
def _taken(kept, within):
    return kept[within]
