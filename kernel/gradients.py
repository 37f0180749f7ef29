"""Per-example gradients of projected logits, the rows of the Jacobian that a kernel is made of.

From a model and a batch of images to one row an image: the gradient of v · f(x) with respect to
the chosen parameters, by `vmap(grad)`. This is the plain form; a faster one must return the same.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.model import Frozen, Function, Model, Params


def parameter_sizes(params: Params) -> tuple[int, ...]:
    """Number of entries of each parameter array, in the order of `jax.tree.leaves`."""
    return tuple(leaf.size for leaf in jax.tree.leaves(params))


def per_example_gradients(
    model: Model,
    images: Float[Array, "batch ..."],
    projection: Float[Array, " classes"],
    leaves: tuple[int, ...] | None = None,
) -> Float[Array, "batch parameters"]:
    """Row i is ∂(v · f(x_i))/∂θ, flattened.

    Args:
        model: the network; its dtype is the dtype of the result.
        images: one row an example, of the same dtype as the parameters.
        projection: v, the weights of the logits.
        leaves: which parameter arrays to differentiate, by their place in `jax.tree.leaves`;
            all of them if None.

    Returns:
        Gradients with the chosen arrays flattened and laid side by side in that order.
    """
    chosen = tuple(range(len(parameter_sizes(model.params)))) if leaves is None else leaves
    return _gradients(model.function, chosen, model.params, model.frozen, images, projection)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(
    function: Function,
    chosen: tuple[int, ...],
    params: Params,
    frozen: Frozen,
    images: Array,
    projection: Array,
) -> Array:
    leaves, structure = jax.tree.flatten(params)

    def projected(selected: list[Array], image: Array) -> Array:
        rebuilt = list(leaves)
        for place, leaf in zip(chosen, selected, strict=True):
            rebuilt[place] = leaf
        logits = function(jax.tree.unflatten(structure, rebuilt), frozen, image[None])
        return projection @ logits[0]

    per_example = jax.vmap(jax.grad(projected), in_axes=(None, 0))
    gradients = per_example([leaves[place] for place in chosen], images)
    return jnp.concatenate([leaf.reshape(len(images), -1) for leaf in gradients], axis=1)
