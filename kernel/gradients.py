"""Per-example gradients of projected logits, the rows of the Jacobian that a kernel is made of.

From a model and a batch of images to one row an image: the gradient of v · f(x) with respect to
the chosen parameters: from taps where the network's layers can be tapped, else by `vmap(grad)`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.model import Frozen, Function, Model, Params
from kernel.taps import Tapped, tap_gradients


def parameter_sizes(params: Params) -> tuple[int, ...]:
    """Number of entries of each parameter array, in the order of `jax.tree.leaves`."""
    return tuple(leaf.size for leaf in jax.tree.leaves(params))


class Group(NamedTuple):
    """Some columns of the Jacobian: whole parameter arrays, or a part of one.

    Attributes:
        leaves: which parameter arrays, by their place in `jax.tree.leaves`.
        width: None for whole arrays; else the number of entries of a part of the only array.
        part: which part, from 0; entries past the end of the array count as zeros.
    """

    leaves: tuple[int, ...]
    width: int | None = None
    part: int = 0


def per_example_gradients(
    model: Model,
    images: Float[Array, "batch ..."],
    projection: Float[Array, " classes"],
    group: Group | None = None,
) -> Float[Array, "batch parameters"]:
    """Row i is ∂(v · f(x_i))/∂θ, flattened.

    Args:
        model: the network; its dtype is the dtype of the result.
        images: one row an example, of the same dtype as the parameters.
        projection: v, the weights of the logits.
        group: which columns; all parameters if None.

    Returns:
        Gradients with the chosen arrays flattened and laid side by side in that order.
    """
    leaves, width, part = group or Group(tuple(range(len(parameter_sizes(model.params)))))
    start = jnp.asarray((width or 0) * part)
    return _gradients(
        model.function, leaves, width, model.params, model.frozen, images, projection, start
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradients(
    function: Function,
    chosen: tuple[int, ...],
    width: int | None,
    params: Params,
    frozen: Frozen,
    images: Array,
    projection: Array,
    start: Array,
) -> Array:

    def single(image: Array) -> list[Array]:
        if isinstance(function, Tapped):
            return _tapped_rows(function, chosen, params, frozen, image, projection)
        return _plain_rows(function, chosen, params, frozen, image, projection)

    gradients = jax.vmap(single)(images)
    rows = jnp.concatenate([leaf.reshape(len(images), -1) for leaf in gradients], axis=1)
    if width is None:
        return rows
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % width)))
    return jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1)


def _plain_rows(
    function: Function,
    chosen: tuple[int, ...],
    params: Params,
    frozen: Frozen,
    image: Array,
    projection: Array,
) -> list[Array]:
    """Gradients of one image by `grad`: for any function, and the reference for taps."""
    leaves, structure = jax.tree.flatten(params)

    def projected(selected: list[Array]) -> Array:
        rebuilt = list(leaves)
        for place, leaf in zip(chosen, selected, strict=True):
            rebuilt[place] = leaf
        logits = function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])
        return projection @ logits[0]

    return jax.grad(projected)([leaves[place] for place in chosen])


def _tapped_rows(
    function: Tapped,
    chosen: tuple[int, ...],
    params: dict[str, Array],
    frozen: dict[str, Array],
    image: Array,
    projection: Array,
) -> list[Array]:
    """The same from taps."""
    names = [sorted(params)[place] for place in chosen]  # the order of jax.tree.leaves
    gradients = tap_gradients(function, params, frozen, image, projection, names)
    return [gradients[name] for name in names]
