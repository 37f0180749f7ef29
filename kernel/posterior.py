"""The posterior of kernel regression on the labelled set, at every candidate.

S is what remains to be learnt at each candidate and how candidates move together, D what the
linearised network would still change by fitting its labels, G = f_U + D. One Cholesky factor and
one triangular solve, in float64, serve all candidates. A label is absorbed without training: one
at a time, as a block and factorising anew agree to rounding, in any order (docs/mathematics.md, 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int64

from kernel import linalg
from kernel.covariance import (
    AnyKernel,
    Covariance,
    Cross,
    Features,
    Kernel,
    KernelBlocks,
    Source,
    capacity,
    check_finite,
    kept_rows,
)
from kernel.errors import KernelError, SingularKernelError
from kernel.linalg import (
    CANDIDATES,
    LABELLED,
    Lower,
    Matrix,
    add_gram,
    lower_factor,
    padded,
    row_blocks,
    solve_lower,
    tile_rows,
    to_device,
)
from kernel.model import dtype_of, rounding_of
from kernel.options import Precision

# Columns of A solved for at a time on a CPU.
SOLVED = 4096


class Conditioned(NamedTuple):
    """Solutions with the factor of the labelled block.

    Attributes:
        a: A, padded on a device; with features in their dtype and with room to grow.
        explained: diagonal of AᵀA, what the labelled set explains of each candidate's variance.
        drift: D, by rows of the kernel.
    """

    a: Matrix
    explained: Float[np.ndarray, " candidates"]
    drift: Float[np.ndarray, "candidates _"]


def condition(
    blocks: KernelBlocks, factor: Lower, residual: Float[np.ndarray, "labelled _"], *, grows: bool
) -> Conditioned:
    """Solve for all candidates with the factor of K_LL + λI, where the factor is.

    Args:
        blocks: the kernel.
        factor: C.
        residual: Y − f_L by rows of the kernel.
        grows: A has rows to spare for labels still to come.
    """
    if isinstance(factor.values, np.ndarray):
        return _condition(blocks, factor, residual, grows)
    size, candidates = factor.values.shape[0], blocks.candidates
    width = padded(candidates, CANDIDATES)
    a = solve_lower(factor, to_device(blocks.cross(0, candidates), (size, width)))
    solved = solve_lower(factor, to_device(residual, (size, residual.shape[1])))
    explained, drift = _explained(a, solved)
    if grows:
        a = to_device(a, (capacity(blocks.labelled), width), _dtype(blocks))
    return Conditioned(a, np.asarray(explained)[:candidates], np.array(drift)[:candidates])


def _condition(
    blocks: KernelBlocks, factor: Lower, residual: np.ndarray, grows: bool
) -> Conditioned:
    """Some columns at a time: with features there is no (L,U) array in float64."""
    rows = capacity(blocks.labelled) if grows else blocks.labelled
    a = np.zeros((blocks.candidates, rows), _dtype(blocks)).T  # in the order of solutions
    explained = np.empty(blocks.candidates)
    drift = np.empty((blocks.candidates, residual.shape[1]))
    solved = np.asarray(solve_lower(factor, residual))
    for start, stop in row_blocks(blocks.candidates, SOLVED):
        # (1) A = C⁻¹K_LU with CCᵀ = K_LL + λI
        columns = np.asarray(solve_lower(factor, blocks.cross(start, stop)))
        a[: blocks.labelled, start:stop] = columns
        explained[start:stop] = np.einsum("ij,ij->j", columns, columns)
        # (3) D = AᵀC⁻¹(Y − f_L)
        drift[start:stop] = columns.T @ solved
    return Conditioned(a, explained, drift)


def _dtype(blocks: KernelBlocks) -> str:
    """Dtype of A: that of features, which it is multiplied beside; else float64."""
    return dtype_of(blocks.kernel.precision) if isinstance(blocks.kernel, Features) else "float64"


def posterior_covariance(
    blocks: KernelBlocks,
    a: Matrix,
    sample: Int64[np.ndarray, " sample"],
    *,
    keep: bool,
    in_place: bool,
) -> Covariance:
    """S between the sample's rows and all candidates, where A is.

    Args:
        blocks: the kernel.
        a: A, of `condition`.
        sample: rows of candidates.
        keep: hold S; else its rows are made of features or of K whenever they are read.
        in_place: let S take the memory of a dense kernel, if it is in float64 and on the CPU.
    """
    candidates = blocks.candidates
    if not keep:
        return Covariance(sample, candidates, None, source_of(blocks, a, sample, blocks.labelled))
    if not isinstance(blocks.kernel, Features):
        if isinstance(a, np.ndarray):
            kept = _kept(blocks, a, sample, in_place)
        else:
            kept = _device_kept(blocks, a, sample)
        return Covariance(sample, candidates, kept, None)
    source = source_of(blocks, a, sample, blocks.labelled)
    return Covariance(sample, candidates, kept_rows(source, sample), source)


def source_of(
    blocks: KernelBlocks, a: Matrix, sample: Int64[np.ndarray, " sample"], used: int
) -> Source:
    """The kernel and A, of which S is made whenever it is read; K_UU itself without rows of A.

    Args:
        blocks: the kernel, scalar-valued; it must stay as it is.
        a: A, (at least used, candidates), where S is to be made; padded on a device.
        sample: candidates whose rows are read.
        used: rows of A.
    """
    own, order = blocks.matrix[blocks.labelled :], None
    if isinstance(blocks.kernel, Features):
        if isinstance(a, np.ndarray):
            own = np.asarray(own)
        else:
            own = to_device(own, (a.shape[1], own.shape[1]), _dtype(blocks))
    elif isinstance(blocks.kernel, Kernel):
        own, order = own[:, blocks.labelled :], np.arange(blocks.candidates)
    else:
        own, order = own[:, blocks.labelled :], np.full(blocks.candidates, -1)
        order[sample] = np.arange(len(sample))
    return Source(own, a, used, order)


def prior(blocks: KernelBlocks, covariance: Covariance) -> Covariance:
    """K_UU of a scalar-valued kernel, read as S is: the covariance before any label.

    Args:
        blocks: the kernel.
        covariance: S of a posterior that was made of it.

    Raises:
        KernelError: S has taken the memory of the kernel.
    """
    source, kept = covariance.source, covariance.kept
    if source is not None:
        source = source._replace(a=source.a[:0], used=0)
        return Covariance(covariance.sample, covariance.candidates, None, source)
    if isinstance(kept, np.ndarray) and np.may_share_memory(kept, np.asarray(blocks.matrix)):
        raise KernelError(
            "S has taken the memory of the kernel, and this criterion reads both: make the "
            "posterior without consume, or with keep=False, which makes S when it is read."
        )
    nothing = np.zeros((0, blocks.candidates))
    if not isinstance(kept, np.ndarray):
        nothing = to_device(nothing, (0, covariance.width))
    source = source_of(blocks, nothing, covariance.sample, 0)
    return Covariance(covariance.sample, covariance.candidates, None, source)


def _kept(blocks: KernelBlocks, a: np.ndarray, rows: np.ndarray, in_place: bool) -> np.ndarray:
    matrix = np.asarray(blocks.matrix)
    every = isinstance(blocks.kernel, Kernel) and np.array_equal(rows, np.arange(len(a.T)))
    if every and in_place and matrix.dtype == np.float64 and matrix.flags.writeable:
        own = matrix[blocks.labelled :, blocks.labelled :]
        # (2) S = K_UU − AᵀA
        add_gram(own, a.T, subtract=True)
        return own
    if every:
        kept = np.array(matrix[blocks.labelled :, blocks.labelled :], np.float64)
        add_gram(kept, a.T, subtract=True)
        return kept
    kept = a[:, rows].T @ a
    for start, stop in row_blocks(len(rows), tile_rows(blocks.candidates)):
        own = blocks.candidate_rows(rows, start, stop)
        np.subtract(own, kept[start:stop], out=kept[start:stop])
    return kept


def _device_kept(blocks: KernelBlocks, a: jax.Array, rows: np.ndarray) -> jax.Array:
    size = padded(len(rows), CANDIDATES)
    k_mu = to_device(blocks.candidate_rows(rows, 0, len(rows)), (size, a.shape[1]))
    idx = np.concatenate([rows, np.zeros(size - len(rows), np.int64)])
    return _schur(k_mu, a, idx)


@jax.jit
def _explained(a, solved):
    return jnp.sum(a**2, axis=0), a.T @ solved


@jax.jit
def _schur(k_mu, a, idx):
    return k_mu - a[:, idx].T @ a


JITTERS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
# The rounding of TF32 is 1e-3 of the mean, above which a smaller jitter lifts hardly a pivot.
TF32_JITTERS = (0.0, 1e-4, 1e-3, 1e-2)


def trusted_factor(
    k_ll: Float[np.ndarray, "rows rows"],
    ridge: float,
    precision: Precision,
    names: list[int],
    host: bool,
) -> tuple[Lower, float]:
    """Lower Cholesky factor of K_LL + λI with the smallest jitter that makes it trustworthy.

    A pivot smaller than the rounding of the entries is noise even where the factorisation
    succeeds, so the ladder goes on until every pivot is larger.

    Args:
        k_ll: kernel of the labelled rows.
        ridge: λ before jitter, in units of the kernel.
        precision: that the entries were computed in.
        names: of the images, for messages; rows are whole images, or each image's classes in turn.
        host: factor with NumPy; else on JAX's device.

    Returns:
        The factor, and the jitter as a fraction of the mean diagonal.

    Raises:
        SingularKernelError: a zero kernel, or no factor with the largest jitter.
    """
    mean = float(np.trace(k_ll)) / len(k_ll)
    if mean <= 0:
        raise SingularKernelError(
            "the kernel of the labelled images is zero: the logits it is taken from do not depend "
            "on any trainable parameter."
        )
    rounding = rounding_of(precision) * mean
    jitters = TF32_JITTERS if precision == "tf32" else JITTERS
    for jitter in jitters:
        factor = lower_factor(k_ll, ridge + jitter * mean, host)
        if factor is not None and float(factor.pivots.min()) > rounding:
            return factor, jitter
    raise SingularKernelError(
        f"the kernel of the labelled images is not positive definite with a jitter of up to "
        f"{jitters[-1]:g} of its mean diagonal. {_duplicates(k_ll, names)} Remove duplicates, "
        "set a ridge, or compute the kernel in float64."
    )


def _duplicates(k_ll: np.ndarray, names: list[int]) -> str:
    each = len(k_ll) // len(names)  # rows of one image: 1, or the classes of a full kernel
    block = k_ll[::each, ::each]
    scale = np.sqrt(np.maximum(np.diagonal(block), np.finfo(float).tiny))
    alike = np.triu(block / scale[:, None] / scale[None] > 1 - 1e-6, k=1)
    pairs = [f"{names[i]} and {names[j]}" for i, j in np.argwhere(alike)[:5]]
    if not pairs:
        return "No two of its images are duplicates of each other."
    more = f" and {alike.sum() - len(pairs)} more pairs" if alike.sum() > len(pairs) else ""
    return f"Images that are duplicates of each other: {'; '.join(pairs)}{more}."


# The remaining variance that is rounding, relative to k(x, x). TF32 puts an entry off by up to 2⁻⁹,
# or 2⁻⁸ where it is a product of two products, and s is what is left after entries cancel.
DETERMINED: dict[Precision, float] = {"float32": 1e-5, "float64": 1e-10, "tf32": 1e-2}


class Posterior(NamedTuple):
    """The posterior at the candidates.

    For the kind `full`, "rows" are candidate-class pairs and S couples them all; for a
    scalar-valued kernel rows are candidates. All arrays are float64, but for S made of features.

    Attributes:
        covariance: S = K_UU − AᵀA, kept or streamed.
        variance: s, the diagonal of S over all candidates.
        drift: D = Aᵀ C⁻¹ (Y − f_L), and what absorbed labels added to it.
        logits: f_U, of the trained network.
        sample: candidates over which changes are summed.
        ridge: λ, the ridge asked for plus the jitter that was needed, in units of the kernel.
        jitter: the jitter alone, as a fraction of the mean of the diagonal of K_LL.
        floor: below this a row's remaining variance is rounding, and the row is determined by
            the labelled set.
    """

    covariance: Covariance
    variance: Float[np.ndarray, " rows"]
    drift: Float[np.ndarray, "candidates classes"]
    logits: Float[np.ndarray, "candidates classes"]
    sample: Int64[np.ndarray, " sample"]
    ridge: float
    jitter: float
    floor: Float[np.ndarray, " rows"]

    @property
    def predictions(self) -> Float[np.ndarray, "candidates classes"]:
        """G = f_U + D, the linearised network fitted to the labelled set."""
        # (4) G = f_U + D
        return self.logits + self.drift

    @property
    def determined(self) -> Bool[np.ndarray, " rows"]:
        """Rows that the labelled set already determines, such as duplicates of its images."""
        return self.variance < self.floor


def posterior(
    kernel: AnyKernel,
    targets: Float[np.ndarray, "labelled classes"],
    labelled_logits: Float[np.ndarray, "_ _"],
    candidate_logits: Float[np.ndarray, "_ _"],
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    keep: bool = True,
    consume: bool = False,
    ridge: float = 0.0,
    identifiers: Sequence[int] | None = None,
) -> Posterior:
    """Condition the kernel on the labelled set.

    Args:
        kernel: between the labelled images followed by the candidates, as a dense kernel, features
            or a kernel between anchors and all.
        targets: Y, one-hot labels, unscaled.
        labelled_logits: f_L, (labelled, classes).
        candidate_logits: f_U, (candidates, classes).
        sample: candidates over which changes are summed; all if None. Of a scalar
            kernel only these rows of S are held; of `full` S is held whole. For a kernel between
            anchors, the candidates that are anchors.
        keep: hold S in memory, (sample, candidates) float64; False makes its rows of features, or
            of a scalar-valued kernel that must then stay as it is, whenever they are read.
        consume: let S take the memory of a dense float64 kernel, whose entries are gone afterwards;
            on a CPU and without a sample. Spares a second U×U matrix.
        ridge: λ ≥ 0 in units of the kernel; jitter is added only when λ does not make K_LL
            factorable to the precision its entries have.
        identifiers: how messages name the labelled images; their positions if None.

    Raises:
        KernelError: shapes that do not fit, an empty labelled set, entries that are not finite, a
            sample that is not one, an S that cannot be streamed.
        SingularKernelError: no Cholesky factor with the largest jitter; duplicates are named.
    """
    labelled, classes = targets.shape
    chosen = _check_inputs(kernel, targets, labelled_logits, candidate_logits, sample, ridge)
    full = kernel.values.ndim == 4
    if full and not keep:
        raise KernelError(
            "the posterior of a full kernel cannot be streamed: keep S, or use another kind."
        )
    blocks = KernelBlocks(kernel, labelled * (classes if full else 1), classes if full else 1)
    k_ll = blocks.labelled_block()
    names = list(range(labelled)) if identifiers is None else list(identifiers)
    factor, jitter = trusted_factor(k_ll, ridge, kernel.precision, names, linalg.on_host())
    jittered = jitter * float(np.trace(k_ll)) / len(k_ll)
    residual = np.asarray(targets - labelled_logits, np.float64).reshape(len(k_ll), -1)
    diagonal = blocks.diagonal()
    grows = not keep or isinstance(kernel, Features)
    a, explained, drift = condition(blocks, factor, residual, grows=grows)
    rows = np.arange(blocks.candidates) if full else chosen
    return Posterior(
        covariance=posterior_covariance(blocks, a, rows, keep=keep, in_place=consume),
        variance=diagonal - explained,
        drift=drift.reshape(candidate_logits.shape),
        logits=np.array(candidate_logits, np.float64),
        sample=chosen,
        ridge=ridge + jittered,
        jitter=jitter,
        # An exact duplicate of a labelled image keeps a variance of at most the jitter.
        floor=DETERMINED[kernel.precision] * diagonal + 2 * jittered,
    )


_WIDE = 8  # bytes of float64


def posterior_bytes(
    form: str,
    labelled: int,
    candidates: int,
    *,
    classes: int,
    sample: int | None = None,
    features: int = 0,
    itemsize: int = _WIDE,
    keep: bool = True,
    streamed: bool = False,
) -> int:
    """Memory of a kernel, its posterior and one criterion on it; an upper bound in bytes.

    Args:
        form: of the kernel: `dense` or `full` (in float64), `features` or `cross`.
        labelled: L.
        candidates: U.
        classes: C.
        sample: M; all candidates if None, and then S takes the memory of a dense kernel on a CPU.
        features: their dimensions.
        itemsize: bytes of a number of features, or of a kernel between anchors.
        keep: S is held; `full` cannot do without.
        streamed: the criterion reads the kernel between labelled images and candidates again.
    """
    each, host = classes if form == "full" else 1, linalg.on_host()
    rows, columns = labelled * each, candidates * each
    chosen = columns if sample is None or form == "full" else sample
    kernel = (rows + columns) ** 2 * _WIDE
    if form == "features":
        kernel = (rows + columns) * features * itemsize * (1 if host else 2)
    elif form == "cross":
        kernel = (rows + chosen) * (rows + columns) * itemsize + (rows + columns) * _WIDE
    if not host:
        rows = padded(rows, LABELLED)
        columns, chosen = padded(columns, CANDIDATES), padded(chosen, CANDIDATES)
    in_place = host and sample is None and form in ("dense", "full")
    wide = itemsize if host and form == "features" else _WIDE
    covariance = 0 if in_place or not keep else chosen * columns * wide * (1 if host else 3)
    a = capacity(rows) * columns * (itemsize if form == "features" else _WIDE)
    solving = 4 * rows**2 * _WIDE + 3 * rows * min(columns, SOLVED if host else columns) * _WIDE
    tile = tile_rows(padded(columns, CANDIDATES)) * padded(columns, CANDIDATES) * _WIDE
    # a block of S and twice what becomes of it, the features or rows that it is made of, and
    # (candidates, classes) arrays such as D, G, R and p
    scoring = 3 * tile + 8 * columns * classes * _WIDE
    if not keep or form == "features":
        scoring += 2 * tile + tile_rows(columns) * (features + rows) * itemsize
    if form == "full":
        scoring = 2 * columns**2 * _WIDE
    if streamed:
        scoring += solving + 512 * (rows + columns) * _WIDE
    small = 4 * candidates * (classes + 1) * _WIDE
    return kernel + covariance + a + small + max(solving, scoring)


def _check_inputs(
    kernel: AnyKernel, targets, labelled_logits, candidate_logits, sample, ridge
) -> Int64[np.ndarray, " sample"]:
    """Check shapes and entries; the sample, all candidates if there is none."""
    labelled, classes = targets.shape
    candidates = len(candidate_logits)
    if labelled == 0:
        raise KernelError("the labelled set is empty; look-ahead needs at least one label.")
    if ridge < 0:
        raise KernelError(f"ridge must be 0 or more, not {ridge:g}.")
    chosen = np.arange(candidates) if sample is None else np.asarray(sample, np.int64)
    known = (chosen >= 0) & (chosen < candidates)
    if chosen.size == 0 or not known.all() or len(np.unique(chosen)) < len(chosen):
        raise KernelError(
            f"the reference sample must name different candidates by their places, 0 to "
            f"{candidates - 1}; {chosen[~known][:5].tolist()} of {len(chosen)} do not exist."
        )
    wanted = _shape(kernel, labelled + candidates, classes, labelled + len(chosen))
    if kernel.values.shape != wanted:
        raise KernelError(
            f"the kernel has shape {kernel.values.shape}; {labelled} labelled images, "
            f"{candidates} candidates of {classes} classes and a sample of {len(chosen)} "
            f"need {wanted}."
        )
    if labelled_logits.shape != targets.shape or candidate_logits.shape[1] != classes:
        raise KernelError(
            f"logits of shapes {labelled_logits.shape} and {candidate_logits.shape} do not fit "
            f"targets of shape {targets.shape}."
        )
    arrays = (kernel.values, targets, labelled_logits, candidate_logits)
    for name, array in zip(("kernel", "targets", "labelled logits", "logits"), arrays, strict=True):
        check_finite(name, array)
    return chosen


def _shape(kernel: AnyKernel, examples: int, classes: int, anchors: int) -> tuple[int, ...]:
    if isinstance(kernel, Features):
        return (examples, kernel.values.shape[1])
    if isinstance(kernel, Cross):
        if kernel.diagonal.shape != (examples,):
            raise KernelError(
                f"the diagonal has shape {kernel.diagonal.shape}; {examples} examples need as many."
            )
        check_finite("diagonal", kernel.diagonal)
        return (anchors, examples)
    return (examples, classes) * 2 if kernel.values.ndim == 4 else (examples, examples)


def absorb(
    posterior: Posterior,
    candidates: int | np.integer | Int64[np.ndarray, " chosen"],
    label_rows: Float[np.ndarray, "..."],
) -> Posterior:
    """Condition on the labels of candidates, one or several together.

    The ridge applies to them as to the labelled set. A candidate that is determined when its turn
    comes (a duplicate of a labelled image, of one absorbed before, or that one again) changes
    nothing: its variance is rounding. Candidates keep their positions; one that was absorbed
    without a ridge is determined.

    Args:
        posterior: is consumed. Its S is updated in place; afterwards it refuses to be used, while
            its other arrays stay as they are.
        candidates: their positions, or one position.
        label_rows: y, one-hot, (chosen, classes), or (classes,) for one.

    Returns:
        The posterior given these labels too; they are added to `drift`, `logits` stay.

    Raises:
        KernelError: positions or labels that do not fit; entries that are not finite; a candidate
            whose column of S is neither held nor follows from features.
    """
    if np.ndim(candidates) == 0:
        candidates, label_rows = np.array([candidates], np.int64), label_rows[None]
    candidates = np.asarray(candidates)
    _check_labels(posterior, candidates, label_rows)
    each = len(posterior.variance) // len(posterior.logits)  # rows of one candidate
    rows = (candidates[:, None] * each + np.arange(each)).reshape(-1)
    predicted = posterior.logits[candidates] + posterior.drift[candidates]
    residual = (label_rows - predicted).reshape(len(rows), -1)
    columns = posterior.covariance.columns(rows)
    factor, taken = _open_factor(columns[rows], posterior, rows)
    if not taken.any():
        return posterior
    open_factor = Lower(factor[taken][:, taken], int(taken.sum()))
    # (32) G += VF⁻¹(Y_B − G_B), S −= VVᵀ with FFᵀ = S_BB + λI and V = S[:,B]F⁻ᵀ
    v = np.asarray(solve_lower(open_factor, columns[:, taken].T)).T
    step = np.asarray(solve_lower(open_factor, residual[taken]))
    return posterior._replace(
        covariance=posterior.covariance.downdated(v),
        variance=posterior.variance - np.einsum("ij,ij->i", v, v),
        drift=posterior.drift + (v @ step).reshape(posterior.drift.shape),
    )


def _open_factor(
    block: np.ndarray, posterior: Posterior, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factor of S_BB + λI, left-looking, that passes over rows determined by then.

    Returns:
        The factor with columns of zeros for those, and which rows are not of them.
    """
    block = block.copy()
    # s in float64, where columns may be streamed in less
    np.fill_diagonal(block, posterior.variance[rows])
    factor = np.zeros_like(block)
    taken = np.zeros(len(rows), bool)
    for i, floor in enumerate(posterior.floor[rows]):
        left = block[i:, i] - factor[i:] @ factor[i]
        if left[0] < floor:
            continue
        taken[i] = True
        left[0] += posterior.ridge
        factor[i:, i] = left / np.sqrt(left[0])
    return factor, taken


def _check_labels(posterior: Posterior, candidates: np.ndarray, label_rows: np.ndarray) -> None:
    count, classes = posterior.logits.shape
    outside = candidates[(candidates < 0) | (candidates >= count)]
    if len(outside):
        raise KernelError(
            f"candidates {outside[:5].tolist()} do not exist: places run from 0 to {count - 1}."
        )
    if label_rows.shape != (len(candidates), classes):
        raise KernelError(
            f"labels of shape {label_rows.shape} do not fit {len(candidates)} candidates of "
            f"{classes} classes: give one one-hot row for each."
        )
    check_finite("labels", label_rows)
