"""The posterior of kernel regression on the labelled set, at every candidate.

From kernel blocks, targets and logits to S (what remains to be learnt at each candidate and how
candidates move together), D (what the linearised network would still change by fitting its labels)
and G = f_U + D. One Cholesky factor and one triangular solve, in float64, for all
candidates (docs/mathematics.md, 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from kernel.errors import KernelError, SingularKernelError
from kernel.ntk import Kernel, Precision

JITTERS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
DETERMINED: dict[Precision, float] = {"float32": 1e-5, "float64": 1e-10}


class Posterior(NamedTuple):
    """What the labelled set leaves open at the candidates.

    For the kind `full`, "rows" are candidate-class pairs and S couples them all; for a
    scalar-valued kernel rows are candidates.

    Attributes:
        covariance: S = K_UU − AᵀA.
        drift: D = Aᵀ C⁻¹ (Y − f_L).
        logits: f_U, of the trained network.
        ridge: λ, the ridge asked for plus the jitter that was needed, in units of the kernel.
        jitter: the jitter alone, as a fraction of the mean of the diagonal of K_LL.
        floor: below this a row's remaining variance is rounding, and the row is determined by
            the labelled set.
    """

    covariance: Float[Array, "rows rows"]
    drift: Float[Array, "candidates classes"]
    logits: Float[Array, "candidates classes"]
    ridge: float
    jitter: float
    floor: Float[Array, " rows"]

    @property
    def predictions(self) -> Float[Array, "candidates classes"]:
        """G = f_U + D, the linearised network fitted to the labelled set."""
        return self.logits + self.drift

    @property
    def variance(self) -> Float[Array, " rows"]:
        """The diagonal of S."""
        return jnp.diagonal(self.covariance)

    @property
    def determined(self) -> Bool[Array, " rows"]:
        """Rows that the labelled set already determines, such as duplicates of its images."""
        return self.variance < self.floor


def posterior(
    kernel: Kernel,
    targets: Float[np.ndarray, "labelled classes"],
    labelled_logits: Float[np.ndarray, "_ _"],
    candidate_logits: Float[np.ndarray, "_ _"],
    *,
    ridge: float = 0.0,
    identifiers: Sequence[int] | None = None,
) -> Posterior:
    """Condition the kernel on the labelled set.

    Args:
        kernel: between the labelled images followed by the candidates.
        targets: Y, one-hot labels, unscaled.
        labelled_logits: f_L, (labelled, classes).
        candidate_logits: f_U, (candidates, classes).
        ridge: λ ≥ 0 in units of the kernel; jitter is added only when λ does not make K_LL
            factorable to the precision its entries have.
        identifiers: how messages name the labelled images; their places if None.

    Raises:
        KernelError: shapes that do not fit, an empty labelled set, entries that are not finite.
        SingularKernelError: no Cholesky factor with the largest jitter; duplicates are named.
    """
    labelled, classes = targets.shape
    values = _as_matrix(kernel, targets, labelled_logits, candidate_logits, ridge)
    split = labelled * (classes if kernel.values.ndim == 4 else 1)
    k_ll, k_lu, k_uu = values[:split, :split], values[:split, split:], values[split:, split:]
    names = list(range(labelled)) if identifiers is None else list(identifiers)
    factor, jitter = _factor(k_ll, ridge, kernel.precision, names)
    jittered = jitter * float(jnp.trace(k_ll)) / split
    a = solve_triangular(factor, k_lu, lower=True)
    residual = jnp.asarray(targets - labelled_logits, jnp.float64)
    solved = solve_triangular(factor, residual.reshape(split, -1), lower=True)
    return Posterior(
        covariance=k_uu - a.T @ a,
        drift=(a.T @ solved).reshape(candidate_logits.shape),
        logits=jnp.asarray(candidate_logits, jnp.float64),
        ridge=ridge + jittered,
        jitter=jitter,
        # An exact duplicate of a labelled image keeps a variance of at most the jitter.
        floor=DETERMINED[kernel.precision] * jnp.diagonal(k_uu) + 2 * jittered,
    )


def _as_matrix(kernel, targets, labelled_logits, candidate_logits, ridge) -> Array:
    """Check what was given and flatten (examples, classes) pairs of a full kernel to rows."""
    labelled, classes = targets.shape
    if labelled == 0:
        raise KernelError("the labelled set is empty; look-ahead needs at least one label.")
    if ridge < 0:
        raise KernelError(f"ridge must be 0 or more, not {ridge:g}.")
    examples = labelled + len(candidate_logits)
    wanted = (examples, classes) * 2 if kernel.values.ndim == 4 else (examples, examples)
    if kernel.values.shape != wanted:
        raise KernelError(
            f"the kernel has shape {kernel.values.shape}; {labelled} labelled images and "
            f"{len(candidate_logits)} candidates of {classes} classes need {wanted}."
        )
    if labelled_logits.shape != targets.shape or candidate_logits.shape[1] != classes:
        raise KernelError(
            f"logits of shapes {labelled_logits.shape} and {candidate_logits.shape} do not fit "
            f"targets of shape {targets.shape}."
        )
    given = (kernel.values, targets, labelled_logits, candidate_logits)
    for name, array in zip(("kernel", "targets", "labelled logits", "logits"), given, strict=True):
        if not np.isfinite(array).all():
            raise KernelError(f"the {name} hold entries that are not finite.")
    rows = int(np.prod(wanted[: len(wanted) // 2]))
    return jnp.asarray(kernel.values, jnp.float64).reshape(rows, rows)


def _factor(k_ll: Array, ridge: float, precision: Precision, names: list[int]):
    """Lower Cholesky factor of K_LL + λI with the smallest jitter that makes it trustworthy.

    A pivot smaller than the rounding of the entries is noise even where the factorisation
    succeeds, so the ladder goes on until every pivot is larger.
    """
    mean = float(jnp.trace(k_ll)) / len(k_ll)
    if mean <= 0:
        raise SingularKernelError(
            "the kernel of the labelled images is zero: the logits it is taken from do not depend "
            "on any trainable parameter."
        )
    rounding = float(np.finfo(precision).eps) * mean
    for jitter in JITTERS:
        shift = ridge + jitter * mean
        factor = jnp.linalg.cholesky(k_ll + shift * jnp.eye(len(k_ll)))
        pivots = jnp.diagonal(factor) ** 2
        if bool(jnp.isfinite(factor).all()) and float(pivots.min()) > rounding:
            return factor, jitter
    raise SingularKernelError(
        f"the kernel of the labelled images is not positive definite with a jitter of up to "
        f"{JITTERS[-1]:g} of its mean diagonal. {_duplicates(k_ll, names)} Remove duplicates, "
        "set a ridge, or compute the kernel in float64."
    )


def _duplicates(k_ll: Array, names: list[int]) -> str:
    each = len(k_ll) // len(names)  # rows of one image: 1, or the classes of a full kernel
    block = np.asarray(k_ll)[::each, ::each]
    scale = np.sqrt(np.maximum(np.diagonal(block), np.finfo(float).tiny))
    alike = np.triu(block / scale[:, None] / scale[None] > 1 - 1e-6, k=1)
    pairs = [f"{names[i]} and {names[j]}" for i, j in np.argwhere(alike)[:5]]
    if not pairs:
        return "No two of its images are duplicates of each other."
    more = f" and {alike.sum() - len(pairs)} more pairs" if alike.sum() > len(pairs) else ""
    return f"Images that are duplicates of each other: {'; '.join(pairs)}{more}."
