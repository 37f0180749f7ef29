"""Per-example gradients of projected logits, the rows of the Jacobian that a kernel is made of.

From a model and a batch of images to one row an image: the gradient of v · f(x) with respect to
all parameters: by the general rule from taps where the network's layers can be tapped, else by
`vmap(grad)`. It is the reference for the faster contractions of `kernel.layers.passes`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.layers.taps import Tapped, tap_gradients
from kernel.model import Frozen, Function, Model, Params


def per_example_gradients(
    model: Model,
    images: Float[Array, "batch ..."],
    projection: Float[Array, " classes"],
) -> Float[Array, "batch parameters"]:
    """Row i is ∂(v · f(x_i))/∂θ, flattened.

    Args:
        model: the network; its dtype is the dtype of the result.
        images: one row an example, of the same dtype as the parameters.
        projection: v, the weights of the logits.

    Returns:
        Gradients with all parameter arrays, in the order of `jax.tree.leaves`, flattened and laid
        side by side.
    """
    return _gradients(model.function, model.params, model.frozen, images, projection)


def image_gradients(
    function: Function,
    params: Params,
    frozen: Frozen,
    image: Float[Array, "..."],
    projection: Float[Array, " classes"],
) -> list[Array]:
    """∂(v · f(x))/∂θ for one image: from taps if the function has them, else by `grad`.

    Args:
        function: the network.
        params: its trainable parameters.
        frozen: its other arrays.
        image: one image, without a batch axis.
        projection: v, the weights of the logits.

    Returns:
        For each array of `jax.tree.leaves(params)` one shaped as it.
    """
    if isinstance(function, Tapped):
        names = sorted(params)  # the order of the leaves of a dict
        gradients = tap_gradients(function, params, frozen, image, projection, names)
        return [gradients[name] for name in names]
    gradients = jax.grad(lambda p: projection @ function(p, frozen, image[None])[0])(params)
    return jax.tree.leaves(gradients)


@partial(jax.jit, static_argnums=0)
def _gradients(
    function: Function, params: Params, frozen: Frozen, images: Array, projection: Array
) -> Array:
    gradients = jax.vmap(
        lambda image: image_gradients(function, params, frozen, image, projection)
    )(images)
    return jnp.concatenate([leaf.reshape(len(images), -1) for leaf in gradients], axis=1)
