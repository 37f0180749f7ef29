"""Taps: one backward pass to the outputs of the layers, from which each layer goes on by itself.

From one image to the inputs of every layer that consumes a parameter and the cotangents of its
output, for one or more projections of the logits (docs/mathematics.md, 2). The vjp of a layer's own
operator then gives its parameters' gradients: the rule that holds for every operator, and the
reference for faster ones.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernel.layers.rules import Rule

Inputs = dict[str, tuple[Any, ...]]
Cotangents = dict[str, list[Array]]
Projections = Array | Callable[[Array], Array]
"""One v a row, or what makes them of the logits that a pass has anyway."""


@runtime_checkable
class Site(Protocol):
    """A place where trainable parameters enter the network."""

    @property
    def name(self) -> str:
        """What its tap is called."""
        ...

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trainable parameters that it consumes."""
        ...


@runtime_checkable
class Tapped(Protocol):
    """A network's function whose layers can be perturbed; its parameters are a dict by name."""

    @property
    def sites(self) -> Sequence[Site]:
        """Every place where arrays of the network enter, in order."""
        ...

    def __call__(self, params: Mapping[str, Array], frozen: Mapping[str, Array], x: Array) -> Array:
        """Logits of images."""
        ...

    def perturbations(
        self, params: Mapping[str, Array], frozen: Mapping[str, Array], x: Array
    ) -> dict[str, list[Array]]:
        """Zeros, shaped as the outputs of each site with a trainable parameter."""
        ...

    def tapped(
        self,
        params: Mapping[str, Array],
        frozen: Mapping[str, Array],
        perturbations: Mapping[str, list[Array]],
        x: Array,
    ) -> tuple[Array, dict[str, tuple[Any, ...]]]:
        """Logits with perturbations added to sites' outputs, and the inputs of those sites."""
        ...

    def pull(
        self,
        site: str,
        params: Mapping[str, Array],
        frozen: Mapping[str, Array],
        inputs: tuple[Any, ...],
        cotangents: list[Array],
    ) -> dict[str, Array]:
        """Gradients of a site's own parameters from the cotangents of its outputs."""
        ...

    def rule(self, site: str, params: Mapping[str, Array]) -> Rule | None:
        """How a site multiplies its first input by its parameters, if that is all it does."""
        ...


def taps(
    function: Tapped,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    image: Float[Array, "..."],
    projections: Projections,
    sites: Collection[str],
) -> tuple[Inputs, Cotangents, Float[Array, " classes"]]:
    """What reaches the layers from both sides, for one image; map it over images with `vmap`.

    Args:
        function: the network.
        params: trainable parameters by name.
        frozen: every other array by name.
        image: one image, without a batch axis.
        projections: one v a row, (projections, classes), or what makes them of the logits; the
            network is differentiated backwards once for each.
        sites: names of the layers.

    Returns:
        The inputs of each layer, the cotangents of each of its outputs with the projections along
        axis 0, and the logits.
    """
    x = image[None]
    zeros = function.perturbations(params, frozen, x)

    def logits(perturbations: dict[str, list[Array]]) -> tuple[Array, Inputs]:
        values, inputs = function.tapped(params, frozen, perturbations, x)
        return values[0], inputs

    found, pull, inputs = jax.vjp(logits, {name: zeros[name] for name in sites}, has_aux=True)
    (cotangents,) = jax.vmap(pull)(rows_at(projections, found))
    return inputs, cotangents, found


def rows_at(projections: Projections, logits: Array) -> Array:
    """The projections of an image with these logits, in their dtype."""
    rows = projections(logits) if callable(projections) else projections
    return rows.astype(logits.dtype)


def site_gradients(
    function: Tapped,
    site: str,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    inputs: tuple[Any, ...],
    cotangents: list[Array],
) -> dict[str, Array]:
    """Gradients of one layer's parameters, one a projection along axis 0, by the general rule."""
    return jax.vmap(lambda own: function.pull(site, params, frozen, inputs, own))(cotangents)


def tap_gradients(
    function: Tapped,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    image: Float[Array, "..."],
    projection: Float[Array, " classes"],
    names: Collection[str],
) -> dict[str, Array]:
    """The gradient of v · f(x) for one image, with respect to some parameters, by the general rule.

    Args:
        function: the network.
        params: trainable parameters by name.
        frozen: every other array by name.
        image: one image, without a batch axis.
        projection: v, the weights of the logits.
        names: the parameters asked for.

    Returns:
        For each name an array shaped as the parameter: the sum over the sites that consume it.
    """
    wanted = [s.name for s in function.sites if not set(names).isdisjoint(s.parameters)]
    inputs, cotangents, _ = taps(function, params, frozen, image, projection[None], wanted)
    gradients = {name: jnp.zeros_like(params[name]) for name in names}
    for site in wanted:
        own = site_gradients(function, site, params, frozen, inputs[site], cotangents[site])
        for name in set(names).intersection(own):
            gradients[name] = gradients[name] + own[name][0]
    return gradients
