"""How fast a kernel lets the error on its images fall, and between what limits.

From a kernel and the residual of its images to Tr[RᵀR] as training goes on in the linearised
network, by the eigenvalues of the kernel: under gradient flow, and under gradient descent with a
rate ([D] Eqs. 16 and 17; what is taken from it and what is derived, docs/mathematics.md, 6).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from kernel.errors import KernelError
from kernel.ntk import Kernel


class Envelope(NamedTuple):
    """The squared error as it falls, with its limits.

    Attributes:
        error: Σ over images and classes of the squared residual, exact for the linearised network.
        lower: what it cannot be below.
        upper: what it cannot be above.
    """

    error: Float64[np.ndarray, " times"]
    lower: Float64[np.ndarray, " times"]
    upper: Float64[np.ndarray, " times"]


class Spectrum(NamedTuple):
    """A kernel as training sees it.

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


def spectrum(kernel: Kernel, residual: Float[np.ndarray, "images classes"]) -> Spectrum:
    """Eigenvalues of a kernel, and the residual along its eigenvectors.

    Args:
        kernel: of the images alone.
        residual: f − Y; −Y, or Y, where the network starts from zero as [D] supposes.

    Raises:
        KernelError: residuals that are not of the images of the kernel.
    """
    images = len(kernel.values)
    if len(residual) != images:
        raise KernelError(
            f"there are {len(residual)} rows of residuals for a kernel of {images} images: give "
            "one row for each."
        )
    right = np.asarray(residual, np.float64)
    if kernel.values.ndim == 4:
        right = right.reshape(-1, 1)
    matrix = np.asarray(kernel.values, np.float64).reshape(len(right), len(right))
    values, vectors = np.linalg.eigh(matrix)
    return Spectrum(np.maximum(values, 0.0), ((vectors.T @ right) ** 2).sum(axis=1))


def flow(seen: Spectrum, times: Float[np.ndarray, " times"]) -> Envelope:
    """Under gradient flow on ½‖f − Y‖²: Tr[Rᵀ exp(−2Θt) R].

    It lies between exp(−2λ_max t) and exp(−2λ_min t) times the error at the start. Nearer, by
    convexity (Jensen), it lies above exp(−2tA/Tr[RᵀR]) times it, A = Tr[RᵀΘR]: that is `lower`, so
    that a larger alignment allows a faster fall.

    Args:
        seen: of `spectrum`.
        times: t ≥ 0, in units of 1 / eigenvalue.

    Raises:
        KernelError: a time below 0.
    """
    if (times < 0).any():
        raise KernelError(f"there is a time of {times.min():g}: training has none below 0.")
    t = np.asarray(times, np.float64)
    error = np.exp(-2 * t[:, None] * seen.values) @ seen.shares
    if seen.total == 0:
        return Envelope(error, np.zeros_like(t), np.zeros_like(t))
    fastest = 2 * t * seen.alignment / seen.total
    return Envelope(
        error, seen.total * np.exp(-fastest), seen.total * np.exp(-2 * t * seen.values[0])
    )


def descent(seen: Spectrum, rate: float, steps: Int[np.ndarray, " times"]) -> Envelope:
    """Under gradient descent with a constant rate η: 𝓔_t² = Tr[Rᵀ(I − ηΘ)^{2t}R] after t steps.

    With ηλ_max ≤ 1 and t ≥ 1 it lies between Tr[RᵀR] − 2tηA and Tr[RᵀR] − ηA, with A = Tr[RᵀΘR]; at
    t = 0 both are Tr[RᵀR].

    Args:
        seen: of `spectrum`.
        rate: η > 0, of ½‖f − Y‖².
        steps: t ≥ 0.

    Raises:
        KernelError: a rate for which the limits do not hold, ηλ_max > 1; a step below 0.
    """
    largest = float(seen.values[-1])
    if not 0 < rate * largest <= 1:
        raise KernelError(
            f"the rate {rate:g} times the largest eigenvalue {largest:g} is {rate * largest:g}; "
            "the limits hold for a product above 0 and up to 1: give another rate."
        )
    if (steps < 0).any():
        raise KernelError(f"there is a step {steps.min()}: training has none below 0.")
    t = np.asarray(steps, np.float64)
    error = ((1 - rate * seen.values) ** (2 * t[:, None])) @ seen.shares
    fall = rate * seen.alignment
    return Envelope(error, seen.total - 2 * t * fall, seen.total - np.where(t > 0, fall, 0.0))
