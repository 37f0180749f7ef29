"""Scalar-valued kernels K ⊗ I_C compared with the full Θ: distance, spectrum, regression ([P]).

docs/mathematics.md, 2.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from kernel.errors import KernelError
from kernel.linalg import solve_lower
from kernel.model import Directions, rounding_of
from kernel.options import Precision
from kernel.posterior import trusted_factor

Full = Float[np.ndarray, "rows classes columns classes"]
Scalar = Float[np.ndarray, "rows columns"]


class Spectrum(NamedTuple):
    """Both ends of the spectrum of a kernel between the images of one set.

    Attributes:
        largest: λ_max.
        smallest: λ_min as it was computed; rounding may put it below 0.
        condition: λ_max/λ_min; infinite where λ_min is not above the rounding of the entries.
    """

    largest: float
    smallest: float
    condition: float


class Fitted(NamedTuple):
    """Predictions of kernel regression.

    Attributes:
        values: float64 (sets, images, classes), of each set of targets.
        jitter: what the diagonal needed beyond the ridge, as a fraction of its mean.
    """

    values: Float[np.ndarray, "sets images classes"]
    jitter: float


def contract(full: Full, kind: Directions) -> Scalar:
    """The scalar-valued kernel scale · Σ_v vᵀΘv of a kind, exactly, from the full one.

    Args:
        full: Θ between two sets of images.
        kind: projections of the logits.

    Raises:
        KernelError: the kind `full`, which is no scalar-valued kernel; another number of classes.
    """
    if kind.square or kind.projections.shape[1] != full.shape[1]:
        raise KernelError(
            f"a kernel of {full.shape[1]} classes is to be contracted along projections of shape "
            f"{kind.projections.shape}{' of the kind full' if kind.square else ''}: give those "
            "of a scalar-valued kind for as many classes."
        )
    found = np.zeros((full.shape[0], full.shape[2]))
    for vector in kind.projections:
        # the last axis first: what is left of Θ is then smaller by the number of classes
        found += np.einsum("icj,c->ij", full @ vector, vector)
    return kind.scale * found


def coupling(full: Full) -> float:
    """‖Θ_cd, c ≠ d‖_F / ‖Θ‖_F: the share of Θ that no K ⊗ I_C has.

    Raises:
        KernelError: a Θ that is zero.
    """
    whole, classes = _square(full), range(full.shape[1])
    if whole == 0:
        raise KernelError(
            "the full kernel is zero: the logits do not depend on any trainable parameter. "
            "Training may have killed every unit of the network; lower its learning rate."
        )
    squares = sum(_square(full[:, c, :, d]) for c in classes for d in classes if c != d)
    return float(np.sqrt(squares / whole))


def distances(full: Full, kernels: Mapping[str, Float[np.ndarray, "_ _"]]) -> dict[str, float]:
    """‖K ⊗ I_C − Θ‖_F / ‖Θ‖_F of every K, without forming K ⊗ I_C; least for the kind `trace`.

    Raises:
        KernelError: kernels of different images, or a Θ that is zero.
    """
    whole, between = _square(full), coupling(full) ** 2
    found = {}
    for name, kernel in kernels.items():
        if (full.shape[0], full.shape[2]) != kernel.shape:
            raise KernelError(
                f"the kernel {name} of shape {kernel.shape} is to stand for one between "
                f"{full.shape[0]} and {full.shape[2]} images: give both of the same images."
            )
        along = sum(_square(full[:, c, :, c] - kernel) for c in range(full.shape[1]))
        found[name] = float(np.sqrt(between + along / whole))
    return found


def diagonals(
    full: Float[np.ndarray, "rows classes rows classes"], kernel: Float[np.ndarray, "rows rows"]
) -> tuple[float, float]:
    """Mean of Θ_cc(x,x), and root mean square of Θ_cc(x,x) − K(x,x), over images and classes."""
    own = np.einsum("icic->ic", full)
    return float(own.mean()), float(np.sqrt(np.mean((own - kernel.diagonal()[:, None]) ** 2)))


def spectrum(matrix: Float[np.ndarray, "rows rows"], precision: Precision) -> Spectrum:
    """Both ends of the spectrum of a symmetric matrix.

    Args:
        matrix: K, or Θ with a row for each image and class.
        precision: that its entries were computed in.
    """
    values = scipy.linalg.eigvalsh(matrix)
    smallest, largest = float(values[0]), float(values[-1])
    resolved = smallest > rounding_of(precision) * largest
    return Spectrum(largest, smallest, largest / smallest if resolved else float("inf"))


def flat(full: Full) -> Float[np.ndarray, "logits others"]:
    """Θ as a matrix with a row for each image and class, without a copy where that can be."""
    rows, classes, columns, _ = full.shape
    return full.reshape(rows * classes, columns * classes)


def regress(
    labelled: Float[np.ndarray, "rows rows"],
    cross: Float[np.ndarray, "columns rows"],
    targets: Float[np.ndarray, "sets labelled classes"],
    ridge: float,
    precision: Precision,
    names: Sequence[int],
) -> Fitted:
    """K_TL (K_LL + λI)⁻¹ V for sets of targets V, by a Cholesky factor with the least jitter.

    Args:
        labelled: K_LL; of the full kernel with a row for each image and class.
        cross: K_TL, likewise.
        targets: several V, each of the labelled images.
        ridge: λ, in units of the kernel.
        precision: that the kernels were computed in.
        names: of the labelled images, for messages.

    Raises:
        SingularKernelError: no factor even with the largest jitter.
    """
    sets, images, classes = targets.shape
    each = len(labelled) // images  # rows of one image: 1, or the classes of the full kernel
    right = np.moveaxis(targets, 0, -1).reshape(len(labelled), -1)
    factor, jitter = trusted_factor(labelled, ridge, precision, [int(n) for n in names], host=True)
    halves = solve_lower(factor, right)
    solved = scipy.linalg.solve_triangular(factor.values, halves, lower=True, trans=1)
    values = (cross @ solved).reshape(len(cross) // each, classes, sets)
    return Fitted(np.moveaxis(values, -1, 0), jitter)


def _square(values: np.ndarray) -> float:
    """‖·‖² of an array, as it lies, without a copy."""
    return float(np.einsum(values, list(range(values.ndim)), values, list(range(values.ndim)), []))
