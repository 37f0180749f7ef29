"""Per-example gradients from taps: one backward pass to the layers, then each layer by itself.

From one image to the gradients of a projected logit, by the cotangents of the outputs of all layers
that consume a parameter (docs/mathematics.md, 2). Each layer's gradient is the vjp of its own
operator: the rule that holds for every operator, and the reference for faster ones.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


def tap_gradients(
    function: Tapped,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    image: Float[Array, "..."],
    projection: Float[Array, " classes"],
    names: Collection[str],
) -> dict[str, Array]:
    """The gradient of v · f(x) for one image, with respect to some of the parameters.

    Map it over images with `vmap`; only the taps are differentiated, never the parameters.

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
    x = image[None]
    zeros = function.perturbations(params, frozen, x)
    wanted = [site for site in function.sites if not set(names).isdisjoint(site.parameters)]

    def value(perturbations: dict[str, list[Array]]) -> tuple[Array, dict[str, tuple[Any, ...]]]:
        logits, taps = function.tapped(params, frozen, perturbations, x)
        return projection @ logits[0], taps

    cotangents, taps = jax.grad(value, has_aux=True)(
        {site.name: zeros[site.name] for site in wanted}
    )
    gradients: dict[str, Array] = {}
    for site in wanted:
        own = function.pull(site.name, params, frozen, taps[site.name], cotangents[site.name])
        for name in set(names).intersection(own):
            gradients[name] = gradients[name] + own[name] if name in gradients else own[name]
    return {
        name: gradients[name] if name in gradients else jnp.zeros_like(params[name])
        for name in names
    }
