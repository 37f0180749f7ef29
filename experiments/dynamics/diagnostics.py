"""Diagnostics of training dynamics ([D]; docs/mathematics.md, 6).

G_MSE and alignment of sets, from a kernel or from the network; the bound B = sqrt(2 Tr[YᵀΘ⁻¹Y] / n)
(Arora et al. 2019); the approximation ratio R(Q|S) = Σ_u Δ({u}|S) / Δ(Q|S); the decay of the
residual under gradient flow ([D] Eq. 16); Kendall's τ-b with a bootstrap interval; MMD in the
kernel's RKHS.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Float64
from scipy import stats

from kernel import gradients
from kernel.covariance import Kernel
from kernel.errors import KernelError
from kernel.linalg import solve_lower
from kernel.model import Model
from kernel.posterior import trusted_factor


def interactions(
    kernel: Kernel, vectors: Float[np.ndarray, "images classes"]
) -> Float64[np.ndarray, "images images"]:
    """M_ij = v_iᵀ Θ_ij v_j, with Θ_ij = K_ij I for a scalar-valued kernel.

    With the kind `full` and v = ∂ℓ/∂f it is the inner product of the loss gradients of i and j.

    Args:
        kernel: between the images.
        vectors: v, one for each image: f − y for G_MSE, y for the alignment.

    Raises:
        KernelError: vectors that are not of the images, or not of the classes, of the kernel.
    """
    values = kernel.values
    own = (len(values), *values.shape[1:2]) if values.ndim == 4 else (len(values),)
    if vectors.shape[: len(own)] != own:
        raise KernelError(
            f"there are vectors of shape {vectors.shape} for a kernel of "
            f"{' × '.join(map(str, own))} (images, then classes): give one row for each image of "
            "the kernel, in its order."
        )
    v = np.asarray(vectors, np.float64)
    if values.ndim == 2:
        return values * (v @ v.T)
    images, classes = v.shape
    # Θ_ij v_j as one product for each j, then v_iᵀ of it
    turned = np.einsum("xjd,jd->xj", values.reshape(images * classes, images, classes), v)
    # (44) M_xx' = v_xᵀ Θ(x,x') v_x'
    return np.einsum("icj,ic->ij", turned.reshape(images, classes, images), v)


def energies(
    matrix: Float64[np.ndarray, "images images"], sets: Bool[np.ndarray, "sets images"]
) -> Float64[np.ndarray, " sets"]:
    """Σ_{i,j ∈ S} M_ij for each set S: G_MSE(S) or A(S), all sets by one product."""
    members = sets.astype(np.float64)
    return np.einsum("si,si->s", members @ matrix, members)


def energy_of(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    vectors: Float[np.ndarray, "images classes"],
) -> float:
    """‖Σ_i J_iᵀ v_i‖² = Tr[VᵀΘV] with the full kernel, by one vjp and without any kernel.

    With v = ∂ℓ/∂f this is the training dynamics G(S), the rate at which the summed loss of S falls
    under gradient flow.

    Args:
        model: the network.
        images: of the set.
        vectors: v, one for each image.
    """
    return gradients.squared_length(gradients.total(model, images, vectors))


class Bound(NamedTuple):
    """The generalisation bound B, and how far to trust it.

    Attributes:
        value: B; it falls as 1/√c when the kernel grows by a factor of c.
        smallest: λ_min of the kernel as it is, without jitter; rounding may put it below 0.
        largest: λ_max.
        jitter: what was added to the diagonal before it was factored, as a fraction of its mean:
            with any, B is that of the kernel so changed, and too small.
    """

    value: float
    smallest: float
    largest: float
    jitter: float


def bound(
    kernel: Kernel,
    targets: Float[np.ndarray, "images classes"],
    names: Sequence[int] | None = None,
) -> Bound:
    """B = sqrt(2 Tr[YᵀΘ⁻¹Y] / n) by a Cholesky factor with the smallest jitter that it needs.

    Args:
        kernel: of the labelled images alone.
        targets: Y, one-hot.
        names: of the images, for messages; their positions if None.

    Raises:
        KernelError: targets that are not of the images of the kernel.
        SingularKernelError: a zero kernel, or no factor with the largest jitter; images that are
            duplicates of each other are named.
    """
    images, (matrix, right) = len(kernel.values), _flattened(kernel, targets, "targets")
    ids = list(range(images)) if names is None else [int(name) for name in names]
    factor, jitter = trusted_factor(matrix, 0.0, kernel.precision, ids, host=True)
    solved = np.asarray(solve_lower(factor, right))
    # (45) B = sqrt(2 Tr[YᵀΘ⁻¹Y] / n)
    value = float(np.sqrt(2 * np.sum(solved**2) / images))
    return Bound(value, *extremes(kernel), jitter)


def _flattened(
    kernel: Kernel, rows: Float[np.ndarray, "images classes"], name: str
) -> tuple[Float64[np.ndarray, "rows rows"], Float64[np.ndarray, "rows _"]]:
    """The kernel as a matrix, and (images, classes) numbers with a row for each row of it."""
    images = len(kernel.values)
    if len(rows) != images:
        raise KernelError(
            f"there are {len(rows)} rows of {name} for a kernel of {images} images: give one row "
            "for each."
        )
    right = np.asarray(rows, np.float64)
    if kernel.values.ndim == 4:
        right = right.reshape(-1, 1)
    return np.asarray(kernel.values, np.float64).reshape(len(right), len(right)), right


def extremes(kernel: Kernel) -> tuple[float, float]:
    """λ_min and λ_max of a kernel as it is."""
    rows = _rows(kernel)
    found = scipy.linalg.eigvalsh(kernel.values.reshape(rows, rows))
    return float(found[0]), float(found[-1])


class Envelope(NamedTuple):
    """The squared error as it falls, with its limits.

    Attributes:
        error: Σ over images and classes of the squared residual, exact for the linearised network.
        lower: bound from below.
        upper: bound from above.
    """

    error: Float64[np.ndarray, " times"]
    lower: Float64[np.ndarray, " times"]
    upper: Float64[np.ndarray, " times"]


class ResidualSpectrum(NamedTuple):
    """Spectrum of a kernel, with the residual along its eigenvectors.

    Attributes:
        values: λ_i ≥ 0 of the kernel, ascending; what rounding put below 0 is 0.
        shares: Σ_c (v_i · R_c)², how much of the squared residual lies along each eigenvector.
    """

    values: Float64[np.ndarray, " rows"]
    shares: Float64[np.ndarray, " rows"]

    @property
    def total(self) -> float:
        """Tr[RᵀR], the squared error at the start."""
        return float(self.shares.sum())

    @property
    def alignment(self) -> float:
        """Tr[RᵀΘR], the fall of the squared error at the start is twice that."""
        return float(self.values @ self.shares)


def residual_spectrum(
    kernel: Kernel, residual: Float[np.ndarray, "images classes"]
) -> ResidualSpectrum:
    """Eigenvalues of a kernel, and the residual along its eigenvectors.

    Args:
        kernel: of the images alone.
        residual: f − Y; −Y, or Y, where the network starts from zero as [D] supposes.

    Raises:
        KernelError: residuals that are not of the images of the kernel.
    """
    matrix, right = _flattened(kernel, residual, "residuals")
    values, vectors = np.linalg.eigh(matrix)
    return ResidualSpectrum(np.maximum(values, 0.0), ((vectors.T @ right) ** 2).sum(axis=1))


def flow(spectrum: ResidualSpectrum, times: Float[np.ndarray, " times"]) -> Envelope:
    """Under gradient flow on ½‖f − Y‖²: Tr[Rᵀ exp(−2Θt) R].

    It lies between exp(−2λ_max t) and exp(−2λ_min t) times the error at the start. Nearer, by
    convexity (Jensen), it lies above exp(−2tA/Tr[RᵀR]) times it, A = Tr[RᵀΘR]: that is `lower`, so
    that a larger alignment allows a faster fall.

    Args:
        spectrum: of `residual_spectrum`.
        times: t ≥ 0, in units of 1 / eigenvalue.

    Raises:
        KernelError: a time below 0.
    """
    if (times < 0).any():
        raise KernelError(f"there is a time of {times.min():g}: training has none below 0.")
    t = np.asarray(times, np.float64)
    # (48) 𝓔(t) = Tr[Rᵀe^{−2Θt}R] = Σ_i c_i e^{−2λ_i t}
    error = np.exp(-2 * t[:, None] * spectrum.values) @ spectrum.shares
    if spectrum.total == 0:
        return Envelope(error, np.zeros_like(t), np.zeros_like(t))
    fastest = 2 * t * spectrum.alignment / spectrum.total
    return Envelope(
        error,
        spectrum.total * np.exp(-fastest),
        spectrum.total * np.exp(-2 * t * spectrum.values[0]),
    )


RESAMPLES = 1000
_CONFIDENCE = 0.95


class Kendall(NamedTuple):
    """τ-b with the ends of its 95% percentile interval; NaN where either measure is constant."""

    value: float
    low: float
    high: float


def kendall(
    one: Float[np.ndarray, " sets"],
    other: Float[np.ndarray, " sets"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Kendall:
    """Kendall's τ-b, resampling the sets.

    A set that is drawn twice is tied with itself in both measures; τ-b leaves such pairs out.

    Args:
        one: a measure of each set.
        other: another one.
        rng: draws the resamples.
        resamples: how many.

    Raises:
        KernelError: fewer than two sets, or not as many of the one as of the other.
    """
    if len(one) != len(other) or len(one) < 2:
        raise KernelError(
            f"there are {len(one)} values of one measure and {len(other)} of the other: a rank "
            "correlation needs both of the same two sets or more."
        )
    value = _tau(one, other)
    drawn = [
        _tau(one[some], other[some]) for some in rng.integers(len(one), size=(resamples, len(one)))
    ]
    known = np.array([tau for tau in drawn if np.isfinite(tau)])
    if not np.isfinite(value) or not len(known):
        return Kendall(float("nan"), float("nan"), float("nan"))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Kendall(value, float(low), float(high))


def _tau(one: np.ndarray, other: np.ndarray) -> float:
    return float(stats.kendalltau(one, other, variant="b").statistic)  # pyright: ignore[reportAttributeAccessIssue]


def normalised(kernel: Kernel) -> Kernel:
    """The kernel divided by the mean of its diagonal.

    A kernel c·K has a √c times larger MMD and a √c times smaller bound: the two can be compared
    only once c is fixed.

    Raises:
        KernelError: the kernel is zero.
    """
    rows = kernel.values.reshape(_rows(kernel), _rows(kernel))
    mean = float(np.trace(rows)) / len(rows)
    if not mean > 0:
        raise KernelError(
            "the kernel is zero: the logits it is taken from do not depend on any trainable "
            "parameter. Train other layers, or take another kind of kernel."
        )
    return Kernel(kernel.values / mean, kernel.precision)


def between_images(kernel: Kernel) -> Float64[np.ndarray, "images images"]:
    """One number for each pair of images: K itself, and of the kind `full` (1/C) Σ_c Θ_cc."""
    if kernel.values.ndim == 2:
        return np.asarray(kernel.values, np.float64)
    return np.einsum("icjc->ij", kernel.values) / kernel.values.shape[1]


def mmd(
    values: Float64[np.ndarray, "images images"],
    one: Bool[np.ndarray, "sets images"],
    other: Bool[np.ndarray, "sets images"],
) -> Float64[np.ndarray, " sets"]:
    """MMD between pairs of samples, the biased V-statistic.

    sqrt( mean of K over one × one − 2 mean over one × other + mean over other × other ), each mean
    over all pairs, an image with itself included: so samples may overlap, and for Q apart from S
    MMD(S, S ∪ Q) = |Q| / (|S| + |Q|) · MMD(S, Q).

    Args:
        values: of `between_images`.
        one: which images are in each first sample.
        other: likewise, of as many second samples.

    Raises:
        KernelError: a sample without images.
    """
    sizes = [sets.sum(axis=1, keepdims=True) for sets in (one, other)]
    if not all(size.all() for size in sizes):
        raise KernelError("a sample is empty, and has no mean: put at least one image into each.")
    weights = one / sizes[0] - other / sizes[1]
    # (46) ‖mean of φ over S − mean over T‖; an exact 0 may come out below it by rounding
    return np.sqrt(np.maximum(np.einsum("si,si->s", weights @ values, weights), 0.0))


def _rows(kernel: Kernel) -> int:
    shape = kernel.values.shape
    return shape[0] if len(shape) == 2 else shape[0] * shape[1]


class Ratios(NamedTuple):
    """R(Q|S) of several sets Q.

    Attributes:
        each: R of every set; NaN where Δ(Q|S) is 0.
        median: of these; NaN if none is a number. A single ratio may have a Δ(Q|S) near 0 below it,
            so a mean would be that of its worst.
        of_means: Σ_Q Σ_u Δ({u}|S) / Σ_Q Δ(Q|S).
    """

    each: Float64[np.ndarray, " sets"]
    median: float
    of_means: float


def gains_together(
    squares: Float[np.ndarray, " sets"],
    inner: Float[np.ndarray, " images"],
    sets: Bool[np.ndarray, "sets images"],
) -> Float64[np.ndarray, " sets"]:
    """Δ(Q|S) = ‖g_Q‖² + 2 g_Q·g_S.

    Written so, and not as the difference of two norms that are nearly equal where S is large.

    Args:
        squares: ‖g_Q‖² with g_Q = Σ_{u ∈ Q} g_u, one backward pass over Q
            (`energy_of`).
        inner: g_u · g_S for every image.
        sets: which images are in each Q.
    """
    return np.asarray(squares, np.float64) + 2 * (sets @ np.asarray(inner, np.float64))


def ratios(
    deltas: Float[np.ndarray, " images"],
    inner: Float[np.ndarray, " images"],
    squares: Float[np.ndarray, " sets"],
    sets: Bool[np.ndarray, "sets images"],
) -> Ratios:
    """R(Q|S) of every set Q, with the median and the ratio of means.

    Args:
        deltas: Δ({u}|S) = ‖g_u‖² + 2 g_u·g_S (`kernel.dynamics.Measured.delta`).
        inner: as for `gains_together`.
        squares: likewise.
        sets: likewise.
    """
    above = sets @ np.asarray(deltas, np.float64)
    below = gains_together(squares, inner, sets)
    # (47) R(Q|S) = Σ_{u ∈ Q} Δ({u}|S) / Δ(Q|S)
    each = np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)
    known = each[np.isfinite(each)]
    together = float(below.sum())
    return Ratios(
        each=each,
        median=float(np.median(known)) if len(known) else float("nan"),
        of_means=float(above.sum()) / together if together else float("nan"),
    )
