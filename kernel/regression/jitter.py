"""A Cholesky factor of the labelled block that can be trusted, or the reason why there is none.

From K_LL and a ridge to the factor with the smallest jitter of a ladder whose pivots all exceed the
rounding of the entries (docs/mathematics.md, 3, *Singular kernels*).
"""

import numpy as np
from jaxtyping import Float

from kernel.errors import SingularKernelError
from kernel.kinds import Precision, rounding_of
from kernel.regression.linalg import Lower, lower_factor

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
