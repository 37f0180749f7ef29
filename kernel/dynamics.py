"""dynamicAL: the gain in training dynamics of one more image ([D], Eq. 8).

Δ(x_u) = ‖g_u‖² + γ g_u·g_S for every candidate under its pseudo-label; one pass gives both terms,
for every γ (docs/mathematics.md, 6). Gradients folded to k dimensions compare images without
keeping a gradient; the batch mode `dissimilar`, which is not the paper's, takes from each score
what the picks already have of it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int64, Integer
from scipy.special import softmax

from kernel.errors import KernelError
from kernel.gradients import chunks_of, lengths_and_products
from kernel.jacobian import random_signs, sketch_gradients
from kernel.linalg import on_host
from kernel.model import Model, Params
from kernel.param_groups import ParamGroup, param_groups
from kernel.plan import Report
from kernel.taps import not_finite

LOSSES = ("cross_entropy", "l2")
# The paper's γ: with it Δ(x_u) is exactly G(S ∪ {x_u}) − G(S).
GAMMA = 2.0


class Measured(NamedTuple):
    """Both terms of Δ, for some candidates.

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
        # (42) Δ(x_u) = ‖g_u‖² + γ g_u·g_S
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
    _check_criterion(loss)
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
    """Both terms of Δ for some candidates, by one pass forward and backward.

    Args:
        model: the network; its dtype is that of the computation.
        images: the candidates, as the network takes them.
        logits: f_u, of which pseudo-labels and cotangents are made; None for those of this pass.
        direction: g_S, `kernel.gradients.total` of the labelled set.
        loss: of the training, one of `LOSSES`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: called with the images done and all images.

    Raises:
        KernelError: unknown loss; no candidates; gradients that are not finite, with the images.
    """
    _check_criterion(loss)
    own = _OWN[loss] if logits is None else cotangents(logits, logits.argmax(axis=1), loss)
    found = lengths_and_products(model, images, own, direction, chunk=chunk, progress=progress)
    f = found.logits if logits is None else logits
    return Measured(found.lengths, found.products, f.argmax(axis=1), f)


def joined(pieces: Sequence[Measured]) -> Measured:
    """Candidates measured a block at a time, as one."""
    return Measured(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def _check_criterion(loss: str) -> None:
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


class Chosen(NamedTuple):
    """A batch.

    Attributes:
        positions: of the picks, in their order.
        scores: of every candidate: of a pick when it was picked, of others after the last.
    """

    positions: Int64[np.ndarray, " picks"]
    scores: Float64[np.ndarray, " candidates"]


def dissimilar(
    scores: Float64[np.ndarray, " candidates"],
    rows: Float[np.ndarray, "candidates buckets"],
    batch_size: int,
    order: Int64[np.ndarray, " candidates"],
) -> Chosen:
    """Greedy picks by s(x) − |s(x)| max_q cos²(g_x, g_q), q the picks so far.

    Nothing is left of a positive score where a pick has the same gradient or its opposite, all of
    it where none has anything in common with it. Lengths have no part in the similarity, nor does
    γ, so that it means the same for every score.

    Args:
        scores: s, of every candidate by itself.
        rows: gradients, folded or whole.
        batch_size: how many to pick, at most all.
        order: a permutation of the candidates; of equal scores the lower comes first.
    """
    lengths = np.sqrt(np.einsum("uk,uk->u", rows, rows, dtype=np.float64))
    directions = rows / np.where(lengths > 0, lengths, 1.0)[:, None].astype(rows.dtype)
    shared = np.zeros(len(scores))
    left = np.ones(len(scores), bool)
    final = np.array(scores)
    positions = np.zeros(batch_size, np.int64)
    for number in range(batch_size):
        # (43) Δ(x) − |Δ(x)| max_q cos²(g_x, g_q)
        final = np.where(left, scores - np.abs(scores) * shared, final)
        ranked = np.where(left, final, -np.inf)
        ties = np.flatnonzero(left & (ranked == ranked.max()))
        best = ties[np.argmin(order[ties])]
        positions[number], left[best] = best, False
        cosines = (directions @ directions[best]).astype(np.float64)
        shared = np.maximum(shared, np.minimum(cosines**2, 1.0))
    return Chosen(positions, final)


class Folding(NamedTuple):
    """Signs and size of a sketch, the same for all images that are to be compared.

    Attributes:
        groups: of the network's parameters.
        signs: of each of its columns.
        buckets: k.
    """

    groups: tuple[ParamGroup, ...]
    signs: jax.Array
    buckets: int


def folding(
    model: Model, image: jax.ShapeDtypeStruct, buckets: int, rng: np.random.Generator
) -> Folding:
    """Signs for a network's gradients.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.
        buckets: k; a network with no more parameters than that keeps its gradients whole.
        rng: where the signs come from.

    Raises:
        KernelError: no buckets; nothing to train.
    """
    found = tuple(param_groups(model, image))
    columns = sum(group.columns for group in found)
    if buckets >= columns:
        return Folding(found, jnp.ones(columns, jnp.int8), columns)
    return Folding(found, jnp.asarray(random_signs(columns, buckets, rng)), buckets)


def folded(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"],
    how: Folding,
    *,
    chunk: int | None = None,
) -> Float[np.ndarray, "images buckets"]:
    """J_iᵀd_i of each image, folded, in the dtype of the network.

    Args:
        model: the network.
        images: as the network takes them.
        cotangents: d_i, one row an image.
        how: signs and k.
        chunk: images differentiated at a time; None chooses for the machine.

    Raises:
        KernelError: no images, or not one row an image; cotangents or gradients that are not
            finite, with the images.
    """
    cut = chunks_of(model, images, cotangents, chunk)
    error = partial(not_finite, model, np.asarray(images, cut.dtype))

    def rows(start: int) -> np.ndarray:
        own = (*model[1:], cut.images(start), cut.cotangents(start)[:, None], how.signs)
        found = sketch_gradients(model.function, how.groups, how.buckets, not on_host(), *own)
        cut.check(start, np.asarray(found.finite), error)
        return np.asarray(found.rows)[:, 0]

    return np.concatenate([values[:count] for count, values in cut.map(rows)])
