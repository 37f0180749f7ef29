"""Loss gradients in few dimensions, by which images are compared without keeping a gradient.

From images and a cotangent for each to rows of k numbers whose inner products are, on average,
those of their gradients (`kernel.layers.sketch`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.dynamics.chunks import chunks_of
from kernel.engine.devices import together
from kernel.layers.diagnosis import not_finite
from kernel.layers.passes import sketched
from kernel.layers.sketch import random_signs
from kernel.layers.units import Unit, units
from kernel.model import Model


class Folding(NamedTuple):
    """How gradients are folded; the same for all images that are to be compared.

    Attributes:
        units: of the network.
        signs: of each of its columns.
        buckets: k.
    """

    units: tuple[Unit, ...]
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
    found = tuple(units(model, image))
    columns = sum(unit.columns for unit in found)
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
        found = sketched(model.function, how.units, how.buckets, together(), *own)
        cut.check(start, np.asarray(found.finite), error)
        return np.asarray(found.rows)[:, 0]

    with cut.in_order(rows) as results:
        return np.concatenate([values[:count] for count, values in results])
