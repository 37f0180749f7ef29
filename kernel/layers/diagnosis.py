"""Which layer and which images, when gradients are not finite.

From a network and an image whose gradients hold NaN or infinity to the first layer whose output
does, or else the last layer whose cotangent does, in words for a message.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kernel.errors import NotFiniteError
from kernel.layers.taps import Tapped, taps
from kernel.model import Model

_NAMED = 5  # of the weights


def not_finite(
    model: Model, images: np.ndarray, places: list[int], projections: np.ndarray
) -> NotFiniteError:
    """The error for images whose gradients are not finite.

    Args:
        model: the network.
        images: all of them.
        places: of the bad ones.
        projections: one v a row.
    """
    where = _layer(model, jnp.asarray(images[places[0]]), jnp.asarray(projections, images.dtype))
    return NotFiniteError(places, where)


def _layer(model: Model, image: Array, projections: Array) -> str:
    if not bool(jnp.isfinite(image).all()):
        return "the first of them holds values that are not finite"
    wrong = [name for name, leaf in _named(model.params) if not _finite(leaf)]
    if wrong:
        return f"the weights {', '.join(wrong[:_NAMED])} are not finite"
    if not isinstance(model.function, Tapped):
        return "where in the network is not known, because its layers cannot be observed"
    sites = [site.name for site in model.function.sites if site.parameters]
    inputs, cotangents, logits = taps(model.function, *model[1:], image, projections, sites)
    for site in sites:
        if not _finite(inputs[site]):
            return f"what enters the layer {site!r} is not finite"
    if not _finite(logits):
        return f"the logits are not finite, although what enters the last layer {sites[-1]!r} is"
    for site in reversed(sites):
        if not _finite(cotangents[site]):
            return f"the gradient that comes back to the layer {site!r} is not finite"
    return "the products of its layers' inputs and cotangents overflow"


def _named(params) -> list[tuple[str, Array]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _finite(values) -> bool:
    arrays = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in arrays)
