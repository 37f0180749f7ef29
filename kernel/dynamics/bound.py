"""The bound on the error of generalisation that [D] sets beside the training dynamics.

From the kernel of a labelled set and its labels to B = sqrt(2 Tr[YᵀΘ⁻¹Y] / n) (Arora et al. 2019,
then [D]), with what tells how far to trust it: the eigenvalues at both ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from kernel.errors import KernelError
from kernel.ntk import Kernel
from kernel.regression.jitter import trusted_factor
from kernel.regression.linalg import solve_lower


class Bound(NamedTuple):
    """A bound.

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
        names: of the images, for messages; their places if None.

    Raises:
        KernelError: targets that are not of the images of the kernel.
        SingularKernelError: a zero kernel, or no factor with the largest jitter; images that are
            duplicates of each other are named.
    """
    images = len(kernel.values)
    if len(targets) != images:
        raise KernelError(
            f"there are {len(targets)} rows of targets for a kernel of {images} images: give one "
            "row for each."
        )
    right = np.asarray(targets, np.float64)
    if kernel.values.ndim == 4:
        right = right.reshape(-1, 1)
    matrix = np.asarray(kernel.values, np.float64).reshape(len(right), len(right))
    ids = list(range(images)) if names is None else [int(name) for name in names]
    factor, jitter = trusted_factor(matrix, 0.0, kernel.precision, ids, host=True)
    solved = np.asarray(solve_lower(factor, right))
    value = float(np.sqrt(2 * np.sum(solved**2) / images))
    return Bound(value, *extremes(kernel), jitter)


def extremes(kernel: Kernel) -> tuple[float, float]:
    """λ_min and λ_max of a kernel as it is."""
    rows = kernel.values.shape[0] * (kernel.values.shape[1] if kernel.values.ndim == 4 else 1)
    found = scipy.linalg.eigvalsh(kernel.values.reshape(rows, rows))
    return float(found[0]), float(found[-1])
