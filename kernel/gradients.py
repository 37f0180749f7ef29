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


def image_gradients(
    function: Function,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "..."],
    projection: Float[Array, " classes"],
    places: tuple[int, ...] | None = None,
) -> list[Array]:
    """∂(v · f(x))/∂θ for one image: from taps if the function has them, else by `grad`.

    Args:
        function: the network.
        params: its trainable parameters.
        frozen: its other arrays.
        image: one image, without a batch axis.
        projection: v, the weights of the logits.
        places: which parameter arrays, by their place in `jax.tree.leaves`; all if None.

    Returns:
        For each place an array shaped as the parameter.
    """
    leaves, structure = jax.tree.flatten(params)
    chosen = tuple(range(len(leaves))) if places is None else places
    if isinstance(function, Tapped):
        names = [sorted(params)[place] for place in chosen]  # the order of the leaves of a dict
        gradients = tap_gradients(function, params, frozen, image, projection, names)
        return [gradients[name] for name in names]

    def projected(selected: list[Array]) -> Array:
        rebuilt = list(leaves)
        for place, leaf in zip(chosen, selected, strict=True):
            rebuilt[place] = leaf
        logits = function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])
        return projection @ logits[0]

    return jax.grad(projected)([leaves[place] for place in chosen])


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
    gradients = jax.vmap(
        lambda image: image_gradients(function, params, frozen, image, projection, chosen)
    )(images)
    rows = jnp.concatenate([leaf.reshape(len(images), -1) for leaf in gradients], axis=1)
    if width is None:
        return rows
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % width)))
    return jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1)
