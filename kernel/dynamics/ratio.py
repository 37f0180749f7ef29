"""How far the gains of single images add up to the gain of them together: the ratio R of [D].

From norms and inner products of loss gradients to Δ({u}|S) and Δ(Q|S), with
Δ(Q|S) = ‖g_S + g_Q‖² − ‖g_S‖², and R(Q|S) = Σ_u Δ({u}|S) / Δ(Q|S). Where R is near 1, the b best
images are the best b images.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64


class Ratios(NamedTuple):
    """R of several sets.

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
            (`kernel.dynamics.alignment.energy_of`).
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
        deltas: Δ({u}|S) = ‖g_u‖² + 2 g_u·g_S (`kernel.dynamics.criterion.Measured.delta`).
        inner: as for `gains_together`.
        squares: likewise.
        sets: likewise.
    """
    above = sets @ np.asarray(deltas, np.float64)
    below = gains_together(squares, inner, sets)
    each = np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)
    known = each[np.isfinite(each)]
    together = float(below.sum())
    return Ratios(
        each=each,
        median=float(np.median(known)) if len(known) else float("nan"),
        of_means=float(above.sum()) / together if together else float("nan"),
    )
