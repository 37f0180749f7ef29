"""Gradients of a loss: their sum over a set, what they do to other images, and their lengths.

From a model, images and one cotangent d_i = ∂ℓ/∂f for each of them to Σ_i J_iᵀd_i, to J_i v, and to
‖J_iᵀd_i‖². Images go through in chunks of one shape, compiled once and used again as long as the
network's function is the same object; there is never a gradient for each image of a set at a time
(docs/mathematics.md, 6).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from kernel.dynamics.chunks import Chunks, chunks_of
from kernel.dynamics.squares import Answer, cheapest, laid_out, squares
from kernel.engine.devices import together
from kernel.engine.progress import Report
from kernel.errors import KernelError
from kernel.layers.diagnosis import not_finite
from kernel.layers.units import units
from kernel.model import Frozen, Function, Model, Params


def total(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"],
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Params:
    """Σ_i J_iᵀd_i: the gradient of the summed loss, by one vjp a chunk.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Returns:
        Arrays shaped and typed as `model.params`; chunks are summed in float64.

    Raises:
        KernelError: no images, or not one row an image; cotangents or gradients that are not
            finite, with the images.
    """
    cut = chunks_of(model, images, cotangents, chunk)
    leaves, structure = jax.tree.flatten(model.params)
    sums = [np.zeros(leaf.shape) for leaf in leaves]

    def pulled(start: int) -> list[Array]:
        some, rows = cut.images(start), cut.cotangents(start)
        return jax.tree.leaves(jax.block_until_ready(_pulled(*model, some, rows)))

    for _, gradients in _each(cut, pulled, progress):
        for place, gradient in enumerate(gradients):
            sums[place] += np.asarray(gradient)
    if not all(np.isfinite(own).all() for own in sums):
        norms(model, images, cotangents, chunk=chunk)  # tells which images
        raise KernelError(
            f"the gradients of {len(images):,} images are finite and their sum is not: their "
            f"numbers are too large for {cut.dtype}; compute in float64, or look at the weights."
        )
    typed = [jnp.asarray(own, leaf.dtype) for own, leaf in zip(sums, leaves, strict=True)]
    return jax.tree.unflatten(structure, typed)


def along(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    direction: Params,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Float64[np.ndarray, "images classes"]:
    """J_i v: how the logits change as the parameters move along v, by one jvp a chunk.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        direction: v, arrays shaped as `model.params`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images; a direction that is not shaped as the parameters or not finite;
            derivatives that are not finite, with the images.
    """
    cut = chunks_of(model, images, None, chunk)
    tangent = _tangent(model.params, direction)

    def pushed(start: int) -> np.ndarray:
        values = np.asarray(_pushed(*model, cut.images(start), tangent), np.float64)
        cut.check(
            start,
            np.asarray(np.isfinite(values).all(axis=1)),
            _no_tangent(model, images, cut.dtype),
        )
        return values

    found = [values[:count] for count, values in _each(cut, pushed, progress)]
    return np.concatenate(found)


def norms(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"],
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Float64[np.ndarray, " images"]:
    """‖J_iᵀd_i‖², layer by layer in whichever form needs fewer multiplications.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images, or not one row an image; nothing to train; cotangents or gradients
            that are not finite, with the images.
    """
    return _both(model, images, cotangents, None, chunk, progress).lengths


class Both(NamedTuple):
    """Lengths and products of some images, and their logits.

    Attributes:
        lengths: ‖J_iᵀd_i‖².
        products: v·J_iᵀd_i; zeros without a direction.
        logits: f, which the pass has anyway.
    """

    lengths: Float64[np.ndarray, " images"]
    products: Float64[np.ndarray, " images"]
    logits: Float64[np.ndarray, "images classes"]


def lengths_and_products(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"] | Answer,
    direction: Params,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Both:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in one pass: what is formed of a gradient serves both.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image; or what makes an image's of the logits of this very pass,
            the same function from call to call, for which a pass is compiled.
        direction: v, shaped as `model.params`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images, or not one row an image; nothing to train; cotangents or gradients
            or logits that are not finite, with the images; a direction that is shaped otherwise or
            not finite.
    """
    return _both(model, images, cotangents, direction, chunk, progress)


def _both(
    model: Model,
    images: np.ndarray,
    cotangents: np.ndarray | Answer,
    direction: Params | None,
    chunk: int | None,
    progress: Report | None,
) -> Both:
    """Lengths, and products with a direction if there is one."""
    given, answer = (None, cotangents) if callable(cotangents) else (cotangents, None)
    cut = chunks_of(model, images, given, chunk)
    image = jax.ShapeDtypeStruct(images.shape[1:], cut.dtype)
    parts = cheapest(units(model, image))
    along = None
    if direction is not None:
        along = laid_out(model, parts, _tangent(model.params, direction))
    typed = np.asarray(images, cut.dtype)

    def error(places: list[int], row: Any) -> KernelError:
        if answer is not None:
            f = model.function(*model[1:], jnp.asarray(typed[places[:1]]))
            row = np.asarray(answer(f[0]))[None]
        return not_finite(model, typed, places, row)

    def squared(start: int) -> np.ndarray:
        rows = None if given is None else cut.cotangents(start)
        own = (*model[1:], cut.images(start), rows, along)
        found = squares(model.function, parts, together(), *own, answer=answer)
        values = np.concatenate([np.asarray(own, np.float64) for own in found], axis=1)
        cut.check(start, np.isfinite(values.sum(axis=1)), error)
        return values

    found = np.concatenate([values[:count] for count, values in _each(cut, squared, progress)])
    return Both(found[:, 0], found[:, 1], found[:, 2:])


def squared_length(direction: Params) -> float:
    """‖v‖² over all parameters, in float64: of `total`, the training dynamics G(S)."""
    flat = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(direction))
    return float(sum(own @ own for own in flat))


def _each(
    cut: Chunks, work: Callable[[int], Any], progress: Report | None
) -> Iterator[tuple[int, Any]]:
    """Every chunk's number of images, without its padding, and what the work makes of it."""
    done = 0
    with cut.in_order(work) as results:
        for count, result in results:
            yield count, result
            done += count
            if progress is not None:
                progress(float(done), float(cut.count))


@partial(jax.jit, static_argnums=0)
def _pulled(
    function: Function, params: Params, frozen: Frozen, images: Array, cotangents: Array
) -> Params:
    logits, pull = jax.vjp(lambda own: function(own, frozen, images), params)
    (gradients,) = pull(cotangents.astype(logits.dtype))
    return gradients


@partial(jax.jit, static_argnums=0)
def _pushed(
    function: Function, params: Params, frozen: Frozen, images: Array, tangent: Params
) -> Array:
    _, change = jax.jvp(lambda own: function(own, frozen, images), (params,), (tangent,))
    return change


def _tangent(params: Params, direction: Params) -> Params:
    """The direction in the parameters' own dtypes."""
    own, given = (jax.tree.structure(tree) for tree in (params, direction))
    if own != given:
        raise KernelError(f"the direction is {given} and the parameters are {own}.")
    for leaf, change in zip(jax.tree.leaves(params), jax.tree.leaves(direction), strict=True):
        if leaf.shape != change.shape:
            raise KernelError(
                f"an array of the direction has shape {change.shape} and its parameter "
                f"{leaf.shape}: a direction is shaped as the parameters."
            )
        if not bool(jnp.isfinite(change).all()):
            raise KernelError(
                "the direction holds NaN or infinite values: look at the gradients it is made of."
            )
    return jax.tree.map(lambda leaf, change: jnp.asarray(change, leaf.dtype), params, direction)


def _no_tangent(
    model: Model, images: np.ndarray, dtype: np.dtype
) -> Callable[[list[int], Any], KernelError]:
    """As `not_finite`, for derivatives of all logits at once."""

    def error(places: list[int], _row: Any) -> KernelError:
        typed = images.astype(dtype)
        classes = model.function(*model[1:], jnp.asarray(typed[:1])).shape[1]
        return not_finite(model, typed, places, np.ones((1, classes)))

    return error
