"""What the mirror computes for the parity certificate: the JAX side of `bridge.reference`.

From a function, its arrays and a few images to logits, the output of every site, how far the
outputs of one image move with another, and per-example gradients, formed as the kernels form them.
Compiled once a mirror.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bridge.program import Arrays, Program
from kernel.layers.gradients import image_gradients
from kernel.model import Function

# How many images of the probe have their gradients compared: the dearest part of a certificate.
GRADIENTS = 2


class Evidence(NamedTuple):
    """What the mirror computes for n images, in float64; gradients for the first m of them.

    Attributes:
        logits: (n, classes).
        activations: the output of each site; none if the function has no taps.
        leaks: for each site, and `""` for the logits, how far the rows of other images move when
            image 0 does; 0 where axis 0 is not the batch.
        alone: (m, classes), logits of each of the first m images in a batch of its own.
        gradients: of `alone @ direction`, for each trainable parameter (m, *shape).
    """

    logits: Any
    activations: dict[str, Any]
    leaks: dict[str, Any]
    alone: Any
    gradients: dict[str, Any]


@partial(jax.jit, static_argnums=0)
def evidence(
    function: Function, params: Arrays, frozen: Arrays, x: Array, direction: Array
) -> Evidence:
    """Everything that is compared in float64.

    Args:
        function: the mirror's function.
        params: trainable parameters by name.
        frozen: every other array by name.
        x: images, (n, channels, height, width).
        direction: (classes,); per-example gradients are those of `logits @ direction`.
    """

    def observed(images: Array) -> tuple[Array, dict[str, Any]]:
        if isinstance(function, Program):
            return function.activations(params, frozen, images)
        return function(params, frozen, images), {}

    tangent = jnp.zeros_like(x).at[0].set(jnp.cos(jnp.arange(x[0].size)).reshape(x[0].shape))
    (together, activations), (moved, moves) = jax.jvp(observed, (x,), (tangent,))
    first = x[:GRADIENTS]
    leaves = jax.vmap(lambda image: image_gradients(function, params, frozen, image, direction))(
        first
    )
    return Evidence(
        logits=together,
        activations=activations,
        leaks={name: _leak(move, len(x)) for name, move in {**moves, "": moved}.items()},
        alone=jax.vmap(lambda image: function(params, frozen, image[None])[0])(first),
        gradients=dict(zip(sorted(params), leaves, strict=True)),
    )


@partial(jax.jit, static_argnums=0)
def logits(function: Function, params: Arrays, frozen: Arrays, x: Array) -> Array:
    """Logits (n, classes), in the dtype of the arrays."""
    return function(params, frozen, x)


def _leak(move: Any, examples: int) -> Array:
    """Largest movement of the rows of images that stood still."""
    rows = [leaf[1:] for leaf in jax.tree.leaves(move) if leaf.ndim and len(leaf) == examples]
    sizes = [jnp.max(jnp.abs(row)) for row in rows if jnp.issubdtype(row.dtype, jnp.floating)]
    return jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros(())
