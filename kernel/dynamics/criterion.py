"""How much one more image would add to the training dynamics: dynamicAL's criterion ([D], Eq. 8).

From logits and labels to the loss's cotangents, and from a network, candidates and the summed
gradient of the labelled set to Δ(x_u) = ‖g_u‖² + γ g_u·g_S for every candidate under its
pseudo-label: one pass gives both terms, for every γ (docs/mathematics.md, 6).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int64, Integer
from scipy.special import softmax

from kernel.dynamics.gradients import lengths_and_products
from kernel.engine.progress import Report
from kernel.errors import KernelError
from kernel.model import Model, Params

LOSSES = ("cross_entropy", "l2")
# The paper's γ: with it Δ(x_u) is exactly G(S ∪ {x_u}) − G(S).
GAMMA = 2.0


class Measured(NamedTuple):
    """What Δ is made of, for some candidates.

    Attributes:
        norms: ‖g_u‖² under the pseudo-label.
        inner: g_u·g_S under the pseudo-label.
        pseudo: ŷ, the class of the largest logit.
        logits: f_u, of which pseudo-labels and cotangents were made.
    """

    norms: Float64[np.ndarray, " candidates"]
    inner: Float64[np.ndarray, " candidates"]
    pseudo: Int64[np.ndarray, " candidates"]
    logits: Float[np.ndarray, "candidates classes"]

    def delta(self, gamma: int | float = GAMMA) -> Float64[np.ndarray, " candidates"]:
        """Δ = ‖g_u‖² + γ g_u·g_S; for γ = ∞ the inner product alone.

        Args:
            gamma: 0 or more.

        Raises:
            KernelError: it is negative or no number.
        """
        if not gamma >= 0:
            raise KernelError(f"gamma must be 0 or more, or infinite, not {gamma}.")
        return self.inner if math.isinf(gamma) else self.norms + gamma * self.inner


def cotangents(
    logits: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " labels"],
    loss: str,
) -> Float64[np.ndarray, "images classes"]:
    """∂ℓ/∂f of each image: softmax(f) − y for cross-entropy, f − y for l2.

    f − y is of ½‖f − y‖². The training's own l2 is a mean over classes, 2/C times that, so that
    gradients are 2/C times these, and every Δ 4/C² times: the order of candidates is the same.

    Args:
        logits: f.
        labels: the class of each image, y as a number.
        loss: one of `LOSSES`.

    Raises:
        KernelError: unknown loss; not one label an image; labels that are no classes.
    """
    _check(loss)
    count, classes = logits.shape
    if labels.shape != (count,):
        raise KernelError(f"there are {count:,} rows of logits and labels of {labels.shape}.")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise KernelError(
            f"label {int(labels[outside[0]])} of image {int(outside[0])} (place in the set given) "
            f"is not a class: the network has {classes}, from 0."
        )
    values = np.array(logits, np.float64)
    if loss == "cross_entropy":
        values = softmax(values, axis=1)
    values[np.arange(count), labels] -= 1
    return values


def measure(
    model: Model,
    images: Float[np.ndarray, "candidates ..."],
    logits: Float[np.ndarray, "candidates classes"] | None,
    direction: Params,
    loss: str,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Measured:
    """What Δ of some candidates is made of, by one pass forth and back.

    Args:
        model: the network; its dtype is that of the computation.
        images: the candidates, as the network takes them.
        logits: f_u, of which pseudo-labels and cotangents are made; None for those of this pass.
        direction: g_S, `kernel.dynamics.gradients.total` of the labelled set.
        loss: of the training, one of `LOSSES`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: unknown loss; no candidates; gradients that are not finite, with the images.
    """
    _check(loss)
    own = _OWN[loss] if logits is None else cotangents(logits, logits.argmax(axis=1), loss)
    found = lengths_and_products(model, images, own, direction, chunk=chunk, progress=progress)
    seen = found.logits if logits is None else logits
    return Measured(found.lengths, found.products, seen.argmax(axis=1), seen)


def joined(pieces: Sequence[Measured]) -> Measured:
    """Candidates measured a block at a time, as one."""
    return Measured(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def _check(loss: str) -> None:
    if loss not in LOSSES:
        raise KernelError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}.")


def _own_cross_entropy(logits: Float[Array, " classes"]) -> Float[Array, " classes"]:
    """∂ℓ/∂f of one image under its pseudo-label, in float64 as `cotangents` has it."""
    wide = logits.astype(jnp.float64)
    return jax.nn.softmax(wide) - _pseudo(wide)


def _own_l2(logits: Float[Array, " classes"]) -> Float[Array, " classes"]:
    wide = logits.astype(jnp.float64)
    return wide - _pseudo(wide)


def _pseudo(logits: Array) -> Array:
    return jax.nn.one_hot(logits.argmax(), len(logits), dtype=logits.dtype)


_OWN = {"cross_entropy": _own_cross_entropy, "l2": _own_l2}
