"""What the kernels need to know of a network: a pure function and its two sets of arrays."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, PyTree

Params = PyTree[Float[Array, "..."]]
Frozen = PyTree[Array]
Function = Callable[[Params, Frozen, Array], Array]


class Model(NamedTuple):
    """A network as a function of its trainable parameters.

    `function(params, frozen, images)` maps a batch of images to logits of shape (batch, classes),
    each row depending on its own image only. It is the same object from one round to the next,
    so that what JAX compiled for it is kept; the arrays change.
    """

    function: Function
    params: Params
    frozen: Frozen
