"""Look-ahead scores: how would the network change if it were retrained with each candidate?

From a posterior to one score a candidate, for all candidates at once. Labelling x' with y' moves
the prediction at x by W[x,x']·R_x' with W = S/(s+λ), so that nothing is solved for a candidate by
itself ([L] Eqs. 12 and 13; docs/mathematics.md, 3, with the errata).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernel.errors import KernelError
from kernel.posterior import Posterior

Reference = Literal["network", "linearised"]
REFERENCES: tuple[Reference, ...] = ("network", "linearised")


def mlmoc(posterior: Posterior, reference: str = "network") -> Float[np.ndarray, " candidates"]:
    """Most likely model output change: Σ_x ‖f^lin_{L+x'}(x) − f_ref(x)‖ under the pseudo-label.

    Args:
        posterior: of a scalar-valued or the full kernel.
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
    residual = (
        jax.nn.one_hot(
            jnp.argmax(posterior.logits, axis=1), posterior.logits.shape[1], dtype=jnp.float64
        )
        - posterior.predictions
    )
    drift = posterior.drift if reference == "network" else jnp.zeros_like(posterior.drift)
    full = posterior.covariance.shape[0] != posterior.logits.shape[0]
    change = _full_change if full else _scalar_change
    scores = change(
        posterior.covariance, residual, drift, jnp.asarray(posterior.ridge), posterior.floor
    )
    return np.asarray(scores)


@jax.jit
def _scalar_change(
    covariance: Float[Array, "candidates candidates"],
    residual: Float[Array, "candidates classes"],
    drift: Float[Array, "candidates classes"],
    ridge: Float[Array, ""],
    floor: Float[Array, " candidates"],
) -> Float[Array, " candidates"]:
    """‖D_x + W[x,x'] R_x'‖ summed over x, its square expanded so that no (U,U,C) array exists."""
    variance = jnp.diagonal(covariance)
    determined = variance < floor
    w = covariance / jnp.where(determined, 1.0, variance + ridge)
    squares = (
        jnp.sum(drift**2, axis=1)[:, None]
        + 2 * w * (drift @ residual.T)
        + w**2 * jnp.sum(residual**2, axis=1)
    )
    # rounding alone can bring a square below 0
    return jnp.where(determined, 0.0, jnp.sqrt(jnp.maximum(squares, 0.0)).sum(axis=0))


@jax.jit
def _full_change(
    covariance: Float[Array, "rows rows"],
    residual: Float[Array, "candidates classes"],
    drift: Float[Array, "candidates classes"],
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
        change = drift + blocks[:, :, candidate] @ solved
        return jnp.where(is_open.any(), jnp.linalg.norm(change, axis=1).sum(), 0.0)

    return jax.lax.map(score, jnp.arange(candidates))
