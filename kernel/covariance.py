"""S, the posterior covariance of the candidates: kept, or computed again whenever it is read.

Every criterion reads tiles S[x, :] for reference points x of a sample and all candidates at once,
always of one shape, or single columns S[:, q]. A kernel comes in three forms: dense, as features
whose inner products it is, or between anchors and all examples (docs/mathematics.md, 1).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from kernel.errors import KernelError
from kernel.linalg import (
    CANDIDATES,
    LABELLED,
    Matrix,
    add_gram,
    cached_rows,
    in_threads,
    padded,
    row_blocks,
    subtract_outer,
    tile_rows,
    to_device,
)
from kernel.options import Precision

Chosen = slice | Int64[np.ndarray, " _"]


class Source(NamedTuple):
    """Features or rows of K, and A, from which S is streamed when it is not kept.

    Attributes:
        features: Φ_U, (candidates, dimensions), rows padded on a device; with `order` rows of
            K_UU, (held, candidates), which stay where they are.
        a: A, (capacity, candidates), in the dtype of the features or, with `order`, in float64:
            `used` rows, then zeros.
        used: L, and one more for every label absorbed.
        order: which of the rows of K_UU is that of a candidate, −1 for none; None for features.
    """

    features: Matrix
    a: Matrix
    used: int
    order: Int64[np.ndarray, " candidates"] | None = None

    @property
    def host(self) -> bool:
        """Whether S is made by NumPy."""
        return isinstance(self.a, np.ndarray)

    @property
    def by_blocks(self) -> bool:
        """Whether any entries of S can be made alone, on the host."""
        return self.host and self.order is None

    def has(self, idx: Int64[np.ndarray, " chosen"]) -> bool:
        """Whether rows of S of these candidates follow from it."""
        return self.order is None or bool((self.order[idx] >= 0).all())


def capacity(labelled: int) -> int:
    """Rows of memory for A: some to spare, so that labels are absorbed without moving it."""
    return padded(labelled + 1, LABELLED)


def streamed_rows(source: Source, idx: Int64[np.ndarray, " chosen"]) -> Matrix:
    """S[idx, :]: on a CPU in the dtype of A, (chosen, candidates); else padded, in float64."""
    if not source.host:
        if source.order is None:
            return _rows(source.features, source.a, idx)
        prior = np.asarray(source.features)[source.order[idx]]
        return _less(to_device(prior, (len(idx), source.a.shape[1])), source.a, idx)
    features, a = np.asarray(source.features), np.asarray(source.a)[: source.used]
    if source.order is None:
        rows = features[idx] @ features.T
    else:
        rows = features[source.order[idx]].astype(np.float64)
    if len(a):
        # (31) S[x,:] = φ_x Φ_Uᵀ − a_xᵀA, or K[x,:] − a_xᵀA
        rows -= a[:, idx].T @ a
    return rows


@jax.jit
def _rows(features, a, idx):
    """Products in the dtype of the features."""
    rows = features[idx] @ features.T - a[:, idx].T @ a
    return rows.astype(jnp.float64)


@jax.jit
def _less(prior, a, idx):
    return prior - a[:, idx].T @ a


def kept_rows(source: Source, sample: Int64[np.ndarray, " sample"]) -> Matrix:
    """S[sample, :] whole, from features, in their dtype; on a device in float64 and padded."""
    if source.host:
        return _host_kept(source, sample)
    idx = np.zeros(padded(len(sample), CANDIDATES), np.int64)
    idx[: len(sample)] = sample
    return streamed_rows(source, idx)


def _host_kept(source: Source, sample: np.ndarray) -> np.ndarray:
    features, a = np.asarray(source.features), np.asarray(source.a)[: source.used]
    candidates = len(features)
    kept = np.zeros((len(sample), candidates), features.dtype)
    if np.array_equal(sample, np.arange(candidates)):  # half of the work
        add_gram(kept, features)
        add_gram(kept, a.T, subtract=True)
        return kept
    for start, stop in row_blocks(len(sample), tile_rows(candidates)):
        kept[start:stop] = streamed_rows(source, sample[start:stop])
    return kept


def appended(source: Source, v: Float[np.ndarray, "candidates rank"]) -> Source:
    """With Vᵀ below A, written into the spare rows of its memory while there are any."""
    a, used = source.a, source.used
    after = used + v.shape[1]
    if after > len(a):
        grown = capacity(after) - len(a)
        if isinstance(a, np.ndarray):
            a = np.concatenate([a.T, np.zeros((a.shape[1], grown), a.dtype)], axis=1).T
        else:
            a = jnp.pad(a, ((0, grown), (0, 0)))
    if isinstance(a, np.ndarray):
        a[used:after] = v.T
    else:
        rows = to_device(v.T, (v.shape[1], a.shape[1]), str(a.dtype))
        a = _rows_set(a, rows, used)
    return source._replace(a=a, used=after)


@partial(jax.jit, donate_argnums=0)
def _rows_set(a, rows, start):
    return jax.lax.dynamic_update_slice_in_dim(a, rows, start, 0)


class Tile(NamedTuple):
    """Some rows of S.

    Attributes:
        idx: the candidates that the rows belong to; 0 for rows of padding.
        mask: 1 for rows of S, 0 for padding.
        values: S[idx, :], with zeros past the last candidate.
    """

    idx: Int64[np.ndarray, " rows"]
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
        kept: S[sample, :], on a CPU in the dtype of its features; else in float64, and on a device
            padded; None if it is streamed.
        source: what it is streamed from, and what columns of other candidates come from.
    """

    sample: Int64[np.ndarray, " sample"]
    candidates: int
    kept: Matrix | None
    source: Source | None
    _lease: _Lease = field(default_factory=_Lease)
    _updates: int = 0
    _sums: dict[np.ufunc, np.ndarray] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Columns of a tile: U and its padding."""
        return padded(self.candidates, CANDIDATES)

    @property
    def by_blocks(self) -> bool:
        """Whether any block of S can be made alone: of features, by NumPy."""
        return self.kept is None and self.source is not None and self.source.by_blocks

    @property
    def whole(self) -> bool:
        """Whether the sample is all candidates in their order, so that S is symmetric."""
        return np.array_equal(self.sample, np.arange(self.candidates))

    def block(self, rows: Chosen, columns: Chosen) -> Float[np.ndarray, "_ _"]:
        """S[rows, columns], where `by_blocks` says so; of all candidates."""
        self._check()
        assert self.source is not None
        features, a = (
            np.asarray(self.source.features),
            np.asarray(self.source.a)[: self.source.used],
        )
        values = features[rows] @ features[columns].T
        if len(a):
            values -= a[:, rows].T @ a[:, columns]
        return values

    def sums_kept(self, function: np.ufunc) -> Float[np.ndarray, " candidates"]:
        """Sum a function of the entries of every column of S, which is kept on the host.

        What was asked for once is asked for again: `downdated` sums it while rows are in a cache.
        """
        self._check()
        if function not in self._sums:
            kept, sums = np.asarray(self.kept), np.zeros(self.candidates)
            for some, room in cached_rows(kept):
                sums += function(kept[some], out=room).sum(axis=0)
            self._sums[function] = sums
        return self._sums[function]

    def pad(self, array: Float[np.ndarray, "candidates ..."]) -> Float[Array, "width ..."]:
        """An array with a row for each candidate, made as long as a tile is wide."""
        return to_device(array, (self.width, *array.shape[1:]))

    def tiles(self, rows: int | None = None) -> Iterator[Tile]:
        """All rows of the sample in order, in tiles of one shape, the last one padded.

        Args:
            rows: of a tile; by the width if None, so that pools of nearly one size share it.
        """
        self._check()
        size = rows or tile_rows(self.width)
        for start in range(0, len(self.sample), size):
            chosen = self.sample[start : start + size]
            mask = (np.arange(size) < len(chosen)).astype(np.float64)
            idx = np.zeros(size, np.int64)
            idx[: len(chosen)] = chosen
            values = self._rows(start, idx, len(chosen))
            if isinstance(values, np.ndarray):
                values = to_device(values, (size, self.width))
            yield Tile(idx, mask, values)

    def dense(self) -> Float[np.ndarray, "sample candidates"]:
        """S[sample, :] whole, a copy: for small problems and tests."""
        self._check()
        if self.kept is not None:
            return np.array(self.kept)[: len(self.sample), : self.candidates]
        parts = [np.asarray(tile.values)[tile.mask > 0, : self.candidates] for tile in self.tiles()]
        return np.concatenate(parts)

    def column(self, candidate: int) -> Float[np.ndarray, " candidates"]:
        """S[:, q] over all candidates."""
        return self.columns(np.array([candidate]))[:, 0]

    def columns(self, idx: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "candidates _"]:
        """S[:, idx] over all candidates.

        Raises:
            KernelError: a column that is neither kept nor follows from features.
        """
        self._check()
        within = np.full(self.candidates, -1)
        within[self.sample] = np.arange(len(self.sample))
        rows = within[idx]
        if self.kept is not None and (rows >= 0).all():
            # S is symmetric; a copy, for S is about to be updated in place
            return np.array(self.kept[rows], np.float64)[:, : self.candidates].T
        if self.source is None or not self.source.has(idx):
            raise KernelError(
                f"candidates {idx[rows < 0][:5].tolist()} are outside the reference sample, and "
                "this kernel holds columns of the sample only: put them into the sample, or use a "
                "sketch, whose features give every column."
            )
        rows_of_s = np.asarray(streamed_rows(self.source, idx), np.float64)
        return rows_of_s[:, : self.candidates].T

    def among(self, idx: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "sample chosen"]:
        """S[sample, idx], of any candidates."""
        self._check()
        if self.kept is not None:
            return np.array(self.kept[:, idx], np.float64)[: len(self.sample)]
        assert self.source is not None
        source = self.source
        if source.by_blocks:
            # of the sample alone: whole columns would read the features of all candidates
            own = slice(None) if self.whole else self.sample
            return self.block(own, idx).astype(np.float64)
        if source.has(idx):
            return self.columns(idx)[self.sample]
        a = np.asarray(source.a)
        # by symmetry the rows of the sample hold it
        assert source.order is not None
        own = np.asarray(source.features)[source.order[self.sample]][:, idx]
        return own.astype(np.float64) - a[:, self.sample].T @ a[:, idx]

    def downdated(self, v: Float[np.ndarray, "candidates rank"]) -> "Covariance":
        """S − VVᵀ, in place: this covariance is consumed and refuses to be read again."""
        self._check()
        kept, source = self.kept, self.source
        sums = {function: np.zeros(self.candidates) for function in self._sums}

        def add(rows: np.ndarray, room: np.ndarray) -> None:
            for function in sums:
                sums[function] += function(rows, out=room).sum(axis=0)

        if kept is not None:
            kept = subtract_outer(kept, v[self.sample], v, add)
        if source is not None:
            source = appended(source, v)
        self._lease.updates += 1
        return replace(self, kept=kept, source=source, _updates=self._lease.updates, _sums=sums)

    def _check(self) -> None:
        if self._updates != self._lease.updates:
            raise KernelError(
                "this posterior was consumed when a label was absorbed into it: go on with the one "
                "that absorb returned, or compute the posterior anew."
            )

    def _rows(self, start: int, idx: np.ndarray, chosen: int) -> Matrix:
        """Rows of a tile; on a device with its padding."""
        held = self.kept if self.kept is not None else self.source
        if isinstance(held, np.ndarray):
            return held[start : start + chosen]
        if isinstance(held, Source):
            return streamed_rows(held, idx[:chosen] if held.host else idx)
        within = np.minimum(np.arange(start, start + len(idx)), len(self.sample) - 1)
        return _taken(held, within)


@jax.jit
def _taken(kept, within):
    return kept[within]


# Rows and columns of a block: large enough for BLAS, small enough for a cache, and no power of two,
# whose transpose would meet the cache at the same places again and again.
EDGE = 784


def sum_blocks(
    covariance: Covariance,
    add: Callable[..., Array],
    rows: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    constants: Sequence[float | None],
) -> Float[np.ndarray, " candidates"]:
    """Sums of `kernel.criteria.total` over blocks of S that are made on all cores and let go.

    Where the sample is whole, a block serves S[x,x'] and S[x',x].

    Args:
        covariance: made of features, by NumPy.
        add: as of `total`, and as all that follow in the dtype of the features.
        rows: arrays with a row for each candidate.
        columns: the same.
        constants: numbers.
    """
    sample, count, symmetric = covariance.sample, covariance.candidates, covariance.whole
    assert covariance.source is not None
    dtype = covariance.source.a.dtype
    # a few rows are a few shapes of blocks, so that not many are compiled
    few = [size for size in (EDGE // 12, EDGE // 4) if len(sample) <= size and not symmetric]
    height = min([EDGE, *few])
    across, down = row_blocks(count, EDGE), row_blocks(len(sample), height)
    # what each row of blocks adds: summed in one order, whichever thread was first
    parts = np.zeros((len(down), len(across), EDGE))
    nothing = np.zeros(EDGE, dtype)

    def filled(arrays: Sequence[np.ndarray], own: Chosen, size: int) -> list[np.ndarray]:
        return [_filled(array[own], (size, *array.shape[1:]), dtype) for array in arrays]

    def work(i: int, j: int) -> None:
        others = slice(*across[j])
        own = slice(*down[i]) if symmetric else sample[slice(*down[i])]
        values = _filled(covariance.block(own, others), (height, EDGE), dtype)
        mask = _filled(np.ones(down[i][1] - down[i][0]), (height,), dtype)
        given = *filled(rows, own, height), *filled(columns, others, EDGE), *constants
        parts[i, j] = _added(add, nothing, mask, values, *given)
        if symmetric and i != j:
            mask = _filled(np.ones(others.stop - others.start), (EDGE,), dtype)
            given = *filled(rows, others, EDGE), *filled(columns, own, EDGE), *constants
            parts[j, i] = _turned(add, nothing, mask, values, *given)

    first = lambda i: i if symmetric else 0
    pairs = [(i, j) for i in range(len(down)) for j in range(first(i), len(across))]
    in_threads(pairs, work)
    return parts.sum(axis=0).reshape(-1)[:count]


def _filled(array: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array with zeros after it; itself if it has the shape."""
    if array.shape == shape:
        return array.astype(dtype, copy=False)
    whole = np.zeros(shape, dtype)
    whole[tuple(slice(size) for size in array.shape)] = array
    return whole


@partial(jax.jit, static_argnums=0)
def _added(add, sums, mask, values, *given):
    return add(sums, mask, values, *given)


@partial(jax.jit, static_argnums=0)
def _turned(add, sums, mask, values, *given):
    return add(sums, mask, values.T, *given)


_FINITE_ENTRIES = 2**22


class Kernel(NamedTuple):
    """A kernel between the examples of one set.

    Attributes:
        values: float64, (examples, examples) for a scalar-valued kernel K that stands for
            K ⊗ I_C, or (examples, classes, examples, classes) for the kind `full`.
        precision: what gradients and contraction were computed in, by which the rounding of
            `values` is judged.
    """

    values: Float[np.ndarray, "..."]
    precision: Precision


class Features(NamedTuple):
    """A kernel ΦΦᵀ by its features, such as sketched gradients.

    Attributes:
        values: Φ with every scale in it, float32 or float64, (examples, dimensions); the labelled
            images first, then the candidates.
        precision: by which the rounding of inner products is judged; its dtype is that of `values`.
        logits: of the network whose gradients they are, if the pass that made them left any.
    """

    values: Float[np.ndarray | Array, "examples dimensions"]
    precision: Precision
    logits: Float[np.ndarray, "examples classes"] | None = None


class Cross(NamedTuple):
    """A kernel between anchors and all examples, for pools whose U×U kernel does not fit.

    Attributes:
        values: (anchors, examples): anchors are the labelled images, then the candidates of the
            reference sample in its order; examples the labelled images, then all candidates.
        diagonal: k(x, x) of every example.
        precision: what gradients and contraction were computed in.
    """

    values: Float[np.ndarray, "anchors examples"]
    diagonal: Float[np.ndarray, " examples"]
    precision: Precision


AnyKernel = Kernel | Features | Cross


@dataclass(frozen=True)
class KernelBlocks:
    """Blocks of a kernel, whatever its form.

    "Rows" are examples, or example-class pairs of the kind `full`.

    Attributes:
        kernel: in any form.
        labelled: rows of the labelled set.
        each: rows of one example: the classes for the kind `full`, else 1.
    """

    kernel: AnyKernel
    labelled: int
    each: int

    @property
    def matrix(self) -> Matrix:
        """The array given, pairs of a full kernel flattened to rows; a view."""
        values = self.kernel.values
        return values.reshape(len(values) * self.each, -1) if values.ndim == 4 else values

    @property
    def candidates(self) -> int:
        """Rows of the candidates."""
        last = 0 if isinstance(self.kernel, Features) else 1
        return self.matrix.shape[last] - self.labelled

    def labelled_block(self) -> Float[np.ndarray, "labelled labelled"]:
        """K_LL."""
        if isinstance(self.kernel, Features):
            rows = self.matrix[: self.labelled]
            return np.asarray(rows @ rows.T, np.float64)
        return np.asarray(self.matrix[: self.labelled, : self.labelled], np.float64)

    def cross(self, start: int, stop: int) -> Matrix:
        """K_L,x for the candidates' rows from start to stop, in float64."""
        own = slice(self.labelled + start, self.labelled + stop)
        if isinstance(self.kernel, Features):
            block = self.matrix[: self.labelled] @ self.matrix[own].T
        else:
            block = self.matrix[: self.labelled, own]
        return block.astype("float64")

    def diagonal(self) -> Float[np.ndarray, " candidates"]:
        """k(x, x) of the candidates' rows."""
        if isinstance(self.kernel, Cross):
            return np.array(self.kernel.diagonal[self.labelled :], np.float64)
        if isinstance(self.kernel, Kernel):
            return np.array(self.matrix.diagonal()[self.labelled :], np.float64)
        squares = np.empty(self.candidates)
        step = max(1, _FINITE_ENTRIES // self.matrix.shape[1])
        for start in range(0, len(squares), step):  # in float64, a few rows at a time
            rows = self.matrix[self.labelled + start : self.labelled + start + step]
            wide = np.asarray(rows, np.float64)
            squares[start : start + step] = np.einsum("ij,ij->i", wide, wide)
        return squares

    def candidate_rows(
        self, sample: np.ndarray, start: int, stop: int
    ) -> Float[np.ndarray, "chosen candidates"]:
        """K_x,U for the sample's rows from start to stop; of a dense or a cross kernel."""
        chosen = np.arange(start, stop) if isinstance(self.kernel, Cross) else sample[start:stop]
        return np.asarray(self.matrix[self.labelled + chosen, self.labelled :], np.float64)


def check_finite(name: str, array: Matrix) -> None:
    """Refuse entries that are not finite, a few rows at a time.

    Raises:
        KernelError: there are some.
    """
    step = max(1, _FINITE_ENTRIES * len(array) // max(array.size, 1))
    for start in range(0, len(array), step):
        if not np.isfinite(np.asarray(array[start : start + step])).all():
            raise KernelError(f"the {name} hold entries that are not finite.")
