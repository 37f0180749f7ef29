"""How far two samples of images are apart, as the kernel sees it: maximum mean discrepancy.

From a kernel and sets of its images to ‖mean of φ over the one − mean over the other‖ in its RKHS.
"""

import numpy as np
from jaxtyping import Bool, Float64

from kernel.errors import KernelError
from kernel.ntk import Kernel


def normalised(kernel: Kernel) -> Kernel:
    """The kernel divided by the mean of its diagonal.

    A kernel c·K has a √c times larger MMD and a √c times smaller bound (`kernel.dynamics.bound`):
    the two can be compared only once c is fixed.

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
    # what is 0 exactly may come out below it by rounding
    return np.sqrt(np.maximum(np.einsum("si,si->s", weights @ values, weights), 0.0))


def _rows(kernel: Kernel) -> int:
    shape = kernel.values.shape
    return shape[0] if len(shape) == 2 else shape[0] * shape[1]
