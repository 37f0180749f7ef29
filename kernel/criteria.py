"""Look-ahead criteria: scores of all candidates from a posterior, in tiles of S.

Labelling x' with y' moves the prediction at x by W[x,x'] (y' − G_x') with W = S / (s + λ), so that
nothing is solved for a candidate by itself (docs/mathematics.md, 3, with the errata).

- `mlmoc`: most likely model output change ([L] Eqs. 12 and 13);
- `emoc`: the same, expected over the label ([L] §3.2, after Freytag et al. 2014);
- `eer`: expected error reduction, by entropies after each label (Roy and McCallum 2001);
- `flip`: how many candidates' argmax changes, which the published code of [L] maximises;
- `ev_gp`, `loss_change`: variance reduction, and loss reduction to first order;
- `MaxDetState`: pivoted Cholesky on S, greedy for log det(S_BB + λI) (Holzmüller et al. 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64
from scipy.special import softmax

from kernel.covariance import Covariance, sum_blocks
from kernel.errors import KernelError
from kernel.linalg import CANDIDATES
from kernel.options import REFERENCES, Options
from kernel.posterior import Posterior, absorb
from kernel.simplex import simplex_projection

_State = TypeVar("_State", bound="AcquisitionState")


@dataclass(frozen=True)
class AcquisitionState:
    """A criterion given the labels so far, into which further labels are absorbed.

    Attributes:
        posterior: given the labels so far. Its `logits` are those that expected labels and changes
            refer to: of the network, and from the first true label on of the linearised one.
        options: of the criterion.
    """

    posterior: Posterior
    options: Options

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """One score a candidate, higher = query first; the lowest for one that is determined."""
        raise NotImplementedError

    def absorb(
        self: _State, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> _State:
        """The state with the true labels of some candidates; from then on changes are those of G.

        Args:
            candidates: their indices.
            label_rows: one-hot, (chosen, classes).

        Returns:
            A new state; this one is consumed, as its posterior is.

        Raises:
            KernelError: as `kernel.posterior.absorb`.
        """
        absorbed = absorb(self.posterior, candidates, label_rows)
        return replace(self, posterior=rebased(absorbed))

    def assume(self: _State, candidates: Int64[np.ndarray, " chosen"]) -> _State:
        """The state as if candidates had their expected labels: how a batch is conditioned.

        Args, Returns, Raises: as `absorb`.
        """
        expected = one_hot(self.posterior.logits[candidates])
        return replace(self, posterior=absorb(self.posterior, candidates, expected))


def rebased(posterior: Posterior) -> Posterior:
    """With G in the place of the network's logits: what changes refer to once it is out of date."""
    nothing = np.zeros(posterior.drift.shape)
    return posterior._replace(logits=posterior.predictions, drift=nothing)


@dataclass(frozen=True)
class PointwiseState(AcquisitionState):
    """A criterion that is a function of the posterior.

    Attributes:
        score: the function.
    """

    score: Callable[[Posterior, Options], Float[np.ndarray, " candidates"]]

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """One score a candidate."""
        return self.score(self.posterior, self.options)


@dataclass(frozen=True)
class MaxDetState(AcquisitionState):
    """MaxDet by pivoted Cholesky on S.

    Attributes:
        remaining: s of every candidate, given what was assumed too.
        rows: of the Cholesky factor of what was assumed, at all candidates.
    """

    remaining: Float[np.ndarray, " candidates"]
    rows: Float[np.ndarray, "picked candidates"]

    @classmethod
    def start(cls, posterior: Posterior, options: Options) -> "MaxDetState":
        """Nothing is assumed yet.

        Raises:
            KernelError: the full kernel.
        """
        refuse_full("max_det", posterior)
        none = np.zeros((0, len(posterior.variance)))
        return cls(posterior, options, posterior.variance, none)

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """Remaining variance; 0 where it is rounding."""
        # (24) s_x' given what is picked
        return np.where(self.remaining < self.posterior.floor, 0.0, self.remaining)

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "MaxDetState":
        """With true labels; what was assumed is forgotten."""
        absorbed = absorb(self.posterior, candidates, label_rows)
        return MaxDetState.start(rebased(absorbed), self.options)

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "MaxDetState":
        """A row of the factor for each: no label is needed, and S stays as it is."""
        after = self
        for candidate in candidates:
            after = after._with(int(candidate))
        return after

    def _with(self, candidate: int) -> "MaxDetState":
        if self.remaining[candidate] < self.posterior.floor[candidate]:
            return self
        column = self.posterior.covariance.column(candidate)
        column = column - self.rows.T @ self.rows[:, candidate]
        # s in float64, where columns may be streamed in less
        row = column / np.sqrt(self.remaining[candidate] + self.posterior.ridge)
        rows = np.concatenate([self.rows, row[None]])
        return replace(self, remaining=self.remaining - row**2, rows=rows)


def refuse_full(criterion: str, posterior: Posterior) -> None:
    """Only MLMOC has a form with C×C blocks.

    Raises:
        KernelError: the posterior is of the full kernel.
    """
    if len(posterior.variance) != len(posterior.logits):
        raise KernelError(
            f"{criterion} is computed on a scalar-valued kernel and this is the full one: use the "
            "kind single, sum, trace or rademacher."
        )


def inverses(posterior: Posterior) -> Float[np.ndarray, " candidates"]:
    """1/(s+λ), so that W = S · this; 0 for determined candidates, whose label moves nothing."""
    determined = posterior.determined
    noisy = posterior.variance + posterior.ridge
    # (6) W = S / (s + λ), by column
    return np.where(determined, 0.0, 1.0 / np.where(determined, 1.0, noisy))


def share(posterior: Posterior) -> float:
    """U/M: how many candidates each of the sample stands for."""
    return len(posterior.logits) / len(posterior.sample)


def lowest_if_determined(
    posterior: Posterior, scores: Float[np.ndarray, " candidates"]
) -> Float[np.ndarray, " candidates"]:
    """Scores that can be below 0, with the lowest of all for determined candidates."""
    if posterior.determined.all():
        return np.zeros_like(scores)
    lowest = min(0.0, float(scores[~posterior.determined].min()))
    return np.where(posterior.determined, lowest, scores)


def total(
    covariance: Covariance,
    add: Callable[..., Array],
    rows: Sequence[np.ndarray] = (),
    columns: Sequence[np.ndarray] = (),
    *constants: float | None,
    alone: np.ufunc | None = None,
    blocks: bool = False,
) -> Float[np.ndarray, " candidates"]:
    """Sum `add(sums, mask, values, *rows, *columns, *constants)` over S, one number a candidate.

    Args:
        covariance: S.
        add: compiled; given the sums so far, 1 for each row that counts, rows of S, and what of the
            arrays belongs to these rows, and to their columns.
        rows: arrays with a row for each candidate.
        columns: the same.
        constants: numbers.
        alone: the function that is summed, where it is one of the entries of S alone; it implies
            `blocks`.
        blocks: S may be made in blocks, in the dtype of its features, where these are on the host:
            of a sum whose terms do not cancel.
    """
    if alone is not None and isinstance(covariance.kept, np.ndarray):
        return covariance.sums_kept(alone)
    if (blocks or alone is not None) and covariance.by_blocks:
        return sum_blocks(covariance, add, rows, columns, constants)
    sums, padded = jnp.zeros(covariance.width), [covariance.pad(array) for array in columns]
    for tile in covariance.tiles():  # each is finished before the next is made
        own = [array[tile.idx] for array in rows]
        sums = jax.block_until_ready(add(sums, tile.mask, tile.values, *own, *padded, *constants))
    return np.asarray(sums)[: covariance.candidates]


def by_columns(
    criterion: Callable[..., Float[Array, " columns"]],
    values: Float[Array, "rows width"],
    *columnwise: Float[Array, "width ..."],
) -> Float[Array, " width"]:
    """A function of some columns of a tile, for all of them in turn: small working arrays.

    Args:
        criterion: called with a slice of `values` and of each of `columnwise`.
        values: a tile of S.
        columnwise: arrays with a row for each column of it.
    """
    width = values.shape[1]

    def some(start: Array) -> Array:
        own = [jax.lax.dynamic_slice_in_dim(a, start, CANDIDATES) for a in columnwise]
        return criterion(jax.lax.dynamic_slice_in_dim(values, start, CANDIDATES, axis=1), *own)

    return jax.lax.map(some, jnp.arange(0, width, CANDIDATES)).reshape(width)


def one_hot(logits: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, "rows classes"]:
    """The label of the largest logit; of the first of several."""
    return np.eye(logits.shape[1])[logits.argmax(axis=1)]


def label_probabilities(
    logits: Float[np.ndarray, "rows classes"], options: Options
) -> Float[np.ndarray, "rows classes"]:
    """p(c|x) by the rule `options.labels`."""
    if options.labels == "one_hot":
        return one_hot(logits)
    if options.labels == "softmax":
        return softmax(options.beta * logits, axis=1)
    return simplex_projection(logits)


def eer(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    """−Σ_c p(c|x') Σ_x H(softmax(β f^lin_{L+(x',c)}(x))), in nats.

    Sums over a reference sample are scaled by U/M; a determined candidate has the lowest score.

    Raises:
        KernelError: the full kernel.
    """
    refuse_full("eer", posterior)
    covariance = posterior.covariance
    if posterior.logits.shape[1] == 1:  # of one class everything is certain
        return np.zeros(covariance.candidates)
    scaled = options.beta * posterior.predictions
    columns = scaled, label_probabilities(posterior.logits, options), inverses(posterior)
    entropies = total(covariance, _add_eer, [scaled], columns, options.beta)

    return lowest_if_determined(posterior, -share(posterior) * entropies)


@jax.jit
def _add_eer(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, "rows classes"],
    scaled: Float[Array, "width classes"],
    probabilities: Float[Array, "width classes"],
    inverse: Float[Array, " width"],
    beta: Float[Array, ""] | float,
) -> Float[Array, " width"]:
    """Entropies after every label at O(C) a pair.

    Label c moves only one logit apart from what all labels have in common:
    a_k = β(G_xk − W G_x'k) + βW [k = c]. So the sums of a softmax over the classes but c follow
    from those over all, taken relative to the largest; for the largest class itself they are summed
    without it, relative to the second, for otherwise all digits would cancel.
    """
    classes = own.shape[1]

    def criterion(s, g, p, scale):
        w = s * scale

        def logit(k):
            return own[:, k][:, None] - w * g[:, k]

        def largest(k, found):
            first, second, best = found
            a = logit(k)
            second = jnp.maximum(second, jnp.minimum(a, first))
            return jnp.maximum(first, a), second, jnp.where(a > first, k, best)

        start = logit(0)
        low = jnp.full_like(start, -jnp.inf)
        begin = (start, low, jnp.zeros(start.shape, jnp.int64))
        first, second, best = jax.lax.fori_loop(1, classes, largest, begin)

        def summed(k, found):
            z, t = found
            a = logit(k) - second
            e = jnp.where(best == k, 0.0, jnp.exp(jnp.minimum(a, 0.0)))
            return z + e, t + a * e

        nothing = (jnp.zeros_like(start),) * 2
        z_rest, t_rest = jax.lax.fori_loop(0, classes, summed, nothing)
        gap = second - first
        z, t = 1 + jnp.exp(gap) * z_rest, jnp.exp(gap) * (t_rest + gap * z_rest)
        raised = beta * w  # of the label's own logit

        def label(c, expected):
            own_logit = logit(c)
            leads = best == c
            a = jnp.minimum(own_logit - first, 0.0)
            e = jnp.exp(a)
            others = jnp.where(leads, z_rest, z - e)
            tilted = jnp.where(leads, t_rest, t - a * e)
            moved = own_logit + raised - jnp.where(leads, second, first)
            # relative to the larger of the two: one of these is 1
            lower, up = jnp.exp(-jnp.abs(moved)), jnp.maximum(moved, 0.0)
            above = moved > 0
            down, alone = jnp.where(above, lower, 1.0), jnp.where(above, 1.0, lower)
            whole = others * down + alone
            mean = (down * (tilted - up * others) + (moved - up) * alone) / whole
            # (20) Σ_c p(c|x') Σ_x H(softmax(β(G_x + W[x,x'] (e_c − G_x')))), H = ln Z − T/Z
            return expected + p[:, c] * (mask @ (jnp.log(whole) - mean))

        return jax.lax.fori_loop(0, classes, label, jnp.zeros(s.shape[1]))

    return sums + by_columns(criterion, values, scaled, probabilities, inverse)


def mlmoc(posterior: Posterior, reference: str = "network") -> Float[np.ndarray, " candidates"]:
    """Most likely model output change: Σ_x ‖f^lin_{L+x'}(x) − f_ref(x)‖ under the pseudo-label.

    Args:
        posterior: of a scalar-valued or the full kernel. With a reference sample of M candidates
            the sum over it is scaled by U/M, so that it estimates the sum over all.
        reference: compare with the trained network, f_L ([L] Eq. 13, drift included), or with the
            linearised network fitted to the labels, f^lin_L (drift-free).

    Returns:
        One score a candidate, in units of the logits; 0 for a candidate that the labelled set
        already determines. Higher is to be queried first.

    Raises:
        KernelError: unknown reference.
    """
    if reference not in REFERENCES:
        raise KernelError(f"unknown reference {reference!r}; known: {', '.join(REFERENCES)}.")
    residual = -posterior.predictions
    # (5) R = onehot(ŷ) − G
    residual[np.arange(len(residual)), posterior.logits.argmax(axis=1)] += 1
    drift = posterior.drift if reference == "network" else np.zeros(posterior.drift.shape)
    scale = share(posterior)
    if len(posterior.variance) != len(posterior.logits):
        changes = _full_change(
            jnp.asarray(posterior.covariance.dense()),
            residual,
            drift,
            posterior.sample,
            posterior.ridge,
            posterior.floor,
        )
        return scale * np.asarray(changes)
    inverse = inverses(posterior)
    if drift.any():
        changes = _drifting_changes(posterior.covariance, drift, residual, inverse)
    else:
        sums = total(posterior.covariance, _add_absolute, alone=np.abs)
        # (17) ‖R_x'‖ ‖S[:,x']‖₁ / (s_x' + λ)
        changes = np.sqrt(np.einsum("xc,xc->x", residual, residual)) * inverse * sums
    return np.where(posterior.determined, 0.0, scale * changes)


def _drifting_changes(
    covariance: Covariance,
    drift: Float[np.ndarray, "candidates classes"],
    residual: Float[np.ndarray, "candidates classes"],
    inverse: Float[np.ndarray, " candidates"],
) -> Float[np.ndarray, " candidates"]:
    """Σ_x ‖D_x + S[x,x'] R_x'/(s_x'+λ)‖, block of reference points by block."""
    moves = inverse[:, None] * residual
    squares = (moves**2).sum(axis=1)

    return total(covariance, _add_changes, [drift], [moves, squares], blocks=True)


@jax.jit
def _add_changes(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, "rows classes"],
    moves: Float[Array, "width classes"],
    squares: Float[Array, " width"],
) -> Float[Array, " width"]:
    """The square of ‖D_x + S[x,x'] m_x'‖ expanded, so that no array has three axes."""
    # (16) Σ_x sqrt(‖D_x‖² + 2 W[x,x'] (D Rᵀ)[x,x'] + W[x,x']² ‖R_x'‖²)
    changes = jnp.sum(own**2, axis=1)[:, None] + values * (2 * own @ moves.T + values * squares)
    # rounding alone can bring a square below 0
    return sums + mask @ jnp.sqrt(jnp.maximum(changes, 0.0))


@jax.jit
def _add_absolute(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
) -> Float[Array, " width"]:
    return sums + mask @ jnp.abs(values)


@jax.jit
def _full_change(
    covariance: Float[Array, "rows rows"],
    residual: Float[Array, "candidates classes"],
    drift: Float[Array, "candidates classes"],
    sample: Int64[Array, " sample"],
    ridge: Float[Array, ""],
    floor: Float[Array, " rows"],
) -> Float[Array, " candidates"]:
    """The same with C×C blocks: change at x is S[x,x'](S[x',x'] + λI)⁻¹ R_x'.

    Directions of a candidate's own block with no variance left are determined: they are left
    out of its inverse, and a candidate with no other direction scores 0.
    """
    candidates, classes = residual.shape
    blocks = covariance.reshape(candidates, classes, candidates, classes)
    floors = floor.reshape(candidates, classes).max(axis=1)

    def score(candidate: Array) -> Array:
        values, vectors = jnp.linalg.eigh(blocks[candidate, :, candidate])
        is_open = values >= floors[candidate]
        inverse = jnp.where(is_open, 1.0 / jnp.where(is_open, values + ridge, 1.0), 0.0)
        solved = vectors @ (inverse * (vectors.T @ residual[candidate]))
        change = drift[sample] + blocks[sample, :, candidate] @ solved
        return jnp.where(is_open.any(), jnp.linalg.norm(change, axis=1).sum(), 0.0)

    return jax.lax.map(score, jnp.arange(candidates))


def emoc(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    """Σ_c p(c|x') Σ_x ‖f^lin_{L+(x',c)}(x) − f_ref(x)‖, in units of the logits.

    Without drift this is (‖S[:,x']‖₁/(s+λ)) Σ_c p_c ‖e_c − G_x'‖. Sums over a reference sample are
    scaled by U/M; a determined candidate scores 0.

    Raises:
        KernelError: the full kernel.
    """
    refuse_full("emoc", posterior)
    p = label_probabilities(posterior.logits, options)
    inverse = inverses(posterior)
    squares = _residual_squares(posterior.predictions)
    if options.reference == "linearised" or not posterior.drift.any():
        # (19) (‖S[:,x']‖₁ / (s_x' + λ)) Σ_c p(c|x') ‖e_c − G_x'‖
        expected = np.einsum("xc,xc->x", p, np.sqrt(squares))
        sums = total(posterior.covariance, _add_absolute, alone=np.abs)
        return share(posterior) * expected * inverse * sums
    columns = posterior.predictions, p, squares, inverse
    changes = total(posterior.covariance, _add_emoc, [posterior.drift], columns)

    return np.where(posterior.determined, 0.0, share(posterior) * changes)


def _residual_squares(
    predictions: Float[np.ndarray, "rows classes"],
) -> Float[np.ndarray, "rows classes"]:
    """‖e_c − G_x'‖² for every label c."""
    return np.maximum(1 - 2 * predictions + (predictions**2).sum(axis=1, keepdims=True), 0.0)


@jax.jit
def _add_emoc(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, "rows classes"],
    predictions: Float[Array, "width classes"],
    probabilities: Float[Array, "width classes"],
    squares: Float[Array, "width classes"],
    inverse: Float[Array, " width"],
) -> Float[Array, " width"]:
    """Squares of norms expanded: no array has rows, columns and classes."""
    still = jnp.sum(own**2, axis=1)[:, None]

    def criterion(s, g, p, square, scale):
        w = s * scale
        towards = own @ g.T  # N = D Gᵀ

        def label(c, expected):
            # (18) Σ_c p(c|x') Σ_x sqrt(‖D_x‖² + 2W(D[x,c] − (D Gᵀ)[x,x']) + W²‖e_c − G_x'‖²)
            change = still + w * (2 * (own[:, c][:, None] - towards) + w * square[:, c])
            return expected + p[:, c] * (mask @ jnp.sqrt(jnp.maximum(change, 0.0)))

        return jax.lax.fori_loop(0, p.shape[1], label, jnp.zeros(s.shape[1]))

    return sums + by_columns(criterion, values, predictions, probabilities, squares, inverse)


def flip(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    """#{x: argmax f^lin_{L+x'}(x) ≠ argmax f_ref(x)} under the pseudo-label of x'.

    Counts over a reference sample are scaled by U/M; a determined candidate scores 0.

    Raises:
        KernelError: the full kernel.
    """
    refuse_full("flip", posterior)
    from_network = options.reference == "network"
    before = (posterior.logits if from_network else posterior.predictions).argmax(axis=1)
    same = agreeing(posterior, one_hot(posterior.logits), before)
    return np.where(posterior.determined, 0.0, len(posterior.logits) - same)


def agreeing(
    posterior: Posterior,
    labels: Float[np.ndarray, "candidates classes"],
    wanted: Int64[np.ndarray, " candidates"],
) -> Float[np.ndarray, " candidates"]:
    """#{x: argmax f^lin_{L+(x',label)}(x) = wanted_x}, scaled by U/M, of a scalar-valued kernel.

    Args:
        posterior: before the label; a determined candidate's label moves nothing.
        labels: y of every candidate, one-hot.
        wanted: a class for every candidate.
    """
    moves = inverses(posterior)[:, None] * (labels - posterior.predictions)
    rows = posterior.predictions, wanted

    return share(posterior) * total(posterior.covariance, _add_flips, rows, [moves])


@jax.jit
def _add_flips(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, "rows classes"],
    wanted: Int64[Array, " rows"],
    moves: Float[Array, "width classes"],
) -> Float[Array, " width"]:
    """A running maximum over the classes; the first of several, as argmax has it."""
    aim = wanted[:, None]

    def criterion(s, move):
        def after(k):
            return own[:, k][:, None] + s * move[:, k]

        def larger(k, found):
            most, best = found
            value = after(k)
            return jnp.maximum(most, value), jnp.where(value > most, k, best)

        start = (after(0), jnp.zeros(s.shape, jnp.int64))
        _, best = jax.lax.fori_loop(1, own.shape[1], larger, start)
        # (21) #{x: argmax(G_x + W[x,x'] R_x') = the class of reference at x}
        return mask @ (best == aim)

    return sums + by_columns(criterion, values, moves)


def ev_gp(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    """Σ_x S[x,x']²/(s_x'+λ): by how much the label of x' lowers the variance of all x together.

    EV-GP (Hemachandra et al. 2023), and VTL (Hübotter et al. 2024) with all candidates as targets;
    it needs no predictions. In units of the kernel; sums over a reference sample are scaled by
    U/M; a determined candidate scores 0.

    Raises:
        KernelError: the full kernel.
    """
    refuse_full("ev_gp", posterior)

    squares = total(posterior.covariance, _add_squares, alone=np.square)
    # (22) Σ_x S[x,x']² / (s_x' + λ)
    return share(posterior) * inverses(posterior) * squares


def loss_change(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    """−R_x'·(Wᵀd)_x': the fall of the loss over all x to first order in their change.

    d = ∂ℓ/∂f at the linearised network's predictions, of ℓ = ½‖f − y‖² under the pseudo-labels:
    d = −R. Sums over a reference sample are scaled by U/M; a determined candidate has the lowest
    score.

    Raises:
        KernelError: the full kernel.
    """
    refuse_full("loss_change", posterior)
    residual = one_hot(posterior.logits) - posterior.predictions
    falls = total(posterior.covariance, _add_falls, [residual], [residual])

    # (23) −R_x'·(Wᵀd)_x' with d = −R
    falls = share(posterior) * inverses(posterior) * falls
    return lowest_if_determined(posterior, falls)


@jax.jit
def _add_squares(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
) -> Float[Array, " width"]:
    return sums + mask @ values**2


@jax.jit
def _add_falls(
    sums: Float[Array, " width"],
    mask: Float[Array, " rows"],
    values: Float[Array, "rows width"],
    own: Float[Array, "rows classes"],
    residual: Float[Array, "width classes"],
) -> Float[Array, " width"]:
    pulled = values.T @ (mask[:, None] * own)
    return sums + (pulled * residual).sum(axis=1)
