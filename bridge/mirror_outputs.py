"""A mirror's outputs on a probe, as its certificate compares them (`bridge.parity`).

Logits, the outputs of sites, the dependence of images on each other, and per-example gradients as
kernels form them (docs/mathematics.md, 2). A certificate runs its functions once: they are compiled
in pieces, without XLA's optimisations on a CPU, where compiling takes nearly all of the time.
"""

from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bridge.program import SITE, Arrays, Program
from kernel.linalg import on_host
from kernel.model import Function
from kernel.taps import image_gradients, site_gradients, taps

# Images of the probe whose gradients are compared: the most expensive part of a certificate.
GRADIENT_EXAMPLES = 2


class JaxOutputs(NamedTuple):
    """The mirror on n images, in float64; gradients for the first m of them.

    Attributes:
        logits: (n, classes).
        activations: the output of each site; empty if the function has no taps.
        leaks: for each site, and `""` for the logits, the largest directional derivative of the
            other images' rows with respect to image 0; 0 where axis 0 is not the batch.
        alone: (m, classes), logits of each of the first m images in a batch of its own.
        gradients: of `alone @ direction`, for each trainable parameter (m, *shape).
        summed: the size of the terms that each gradient sums, () each; empty without taps.
    """

    logits: Any
    activations: dict[str, Any]
    leaks: dict[str, Any]
    alone: Any
    gradients: dict[str, Any]
    summed: dict[str, Any]


def jax_outputs(
    function: Function, params: Arrays, frozen: Arrays, x: Array, direction: Array
) -> JaxOutputs:
    """The mirror's outputs that are compared in float64.

    Args:
        function: the mirror's function.
        params: trainable parameters by name.
        frozen: every other array by name.
        x: images, (n, channels, height, width).
        direction: (classes,); per-example gradients are those of `logits @ direction`.
    """
    together, activations, leaks = _compiled(_observed)(function, params, frozen, x)
    first = x[:GRADIENT_EXAMPLES]
    if isinstance(function, Program):
        gradients, summed, alone = _tap_gradients(function, params, frozen, first, direction)
    else:
        gradients = _compiled(_image_gradients)(function, params, frozen, first, direction)
        summed, alone = {}, _compiled(_alone)(function, params, frozen, first)
    return JaxOutputs(
        logits=together,
        activations=activations,
        leaks=leaks,
        alone=alone,
        gradients=gradients,
        summed=summed,
    )


# A certificate runs its functions once: on a CPU compiling them takes nearly all of its time.
_UNOPTIMISED = MappingProxyType(
    {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@cache
def _compiled(function: Callable[..., Any], *more: int) -> Callable[..., Any]:
    """The function under `jax.jit`, its first argument and those at `more` static."""
    options = dict(_UNOPTIMISED) if on_host() else None
    return jax.jit(function, static_argnums=(0, *more), compiler_options=options)


def _observed(function: Function, params: Arrays, frozen: Arrays, x: Array) -> tuple[Any, ...]:
    """Logits, activations and leaks, as in `JaxOutputs`."""

    def observed(images: Array) -> tuple[Array, dict[str, Any]]:
        if isinstance(function, Program):
            return function.activations(params, frozen, images)
        return function(params, frozen, images), {}

    tangent = jnp.zeros_like(x).at[0].set(jnp.cos(jnp.arange(x[0].size)).reshape(x[0].shape))
    (together, activations), (logits_tangent, tangents) = jax.jvp(observed, (x,), (tangent,))
    every = {**tangents, "": logits_tangent}
    return together, activations, {name: _leak(own, len(x)) for name, own in every.items()}


def _alone(function: Function, params: Arrays, frozen: Arrays, x: Array) -> Array:
    """Logits of each image in a batch of its own."""
    return jax.vmap(lambda image: function(params, frozen, image[None])[0])(x)


def _image_gradients(
    function: Function, params: Arrays, frozen: Arrays, x: Array, direction: Array
) -> dict[str, Array]:
    """Gradients of each image without taps."""
    leaves = jax.vmap(lambda image: image_gradients(function, params, frozen, image, direction))(x)
    return dict(zip(sorted(params), leaves, strict=True))


def _tap_gradients(
    function: Program, params: Arrays, frozen: Arrays, x: Array, direction: Array
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Gradients of each image as kernels form them, the sizes of the terms they sum, and logits."""
    names = tuple(site.name for site in function.sites if site.parameters)
    tapped = _compiled(_tapped, 5)(function, params, frozen, x, direction, names)
    inputs, cotangents, logits = tapped
    # Rounding errs in each entry of δ_s by itself, so that the error of a sum Σ_p J_pᵀδ_p is
    # proportional to √Σ_p(J_pᵀδ_p)² even where the terms cancel. With independent signs ±1,
    # E(Σ_p ±J_pᵀδ_p)² is that sum of squares. NumPy draws them: XLA compiles longer than it draws.
    signs = {
        name: [
            np.random.default_rng(k).choice([-1.0, 1.0], own.shape[1:]) for own in cotangents[name]
        ]
        for k, name in enumerate(names)
    }
    gradients = {name: jnp.zeros((len(x), *array.shape)) for name, array in params.items()}
    squares = dict(gradients)
    for site in names:
        single, renamed = function.single(site)
        own = {renamed[name]: array for name, array in params.items() if name in renamed}
        others = {renamed[name]: array for name, array in frozen.items() if name in renamed}
        leaves, tree = jax.tree.flatten(inputs[site])
        # sizes, plain numbers in the program, are arrays of weak type once they were compiled
        numbers = tuple(leaf[0].item() if leaf.weak_type else None for leaf in leaves)
        arrays = [leaf for leaf in leaves if not leaf.weak_type]
        given = arrays, cotangents[site], signs[site]
        pulled = _compiled(_pulled, 1, 2)(single, tree, numbers, own, others, *given)
        for name in params.keys() & renamed.keys():
            gradient, terms = pulled[renamed[name]]
            gradients[name] += gradient
            squares[name] += terms
    summed = {name: jnp.sqrt(jnp.max(square)) for name, square in squares.items()}
    return gradients, summed, logits


def _tapped(
    function: Program,
    params: Arrays,
    frozen: Arrays,
    x: Array,
    direction: Array,
    names: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Any], Array]:
    """Inputs and cotangents of sites for each image in a batch of its own, and its logits."""

    def of_one(image: Array) -> tuple[dict[str, Any], dict[str, Any], Array]:
        return taps(function, params, frozen, image, direction[None], names)

    return jax.vmap(of_one)(x)


def _pulled(
    site: Program,
    tree: Any,
    numbers: tuple[int | float | None, ...],
    params: Arrays,
    frozen: Arrays,
    arrays: list[Array],
    cotangents: list[Array],
    signs: list[Array],
) -> dict[str, tuple[Array, Array]]:
    """Gradients of one site's parameters, and squares of the sizes of their terms.

    Its inputs are those arrays, a row an image, in the places where there is no number.
    """

    def of_one(rows: list[Array], own: list[Array]) -> dict[str, tuple[Array, Array]]:
        remaining = iter(rows)
        leaves = [next(remaining) if number is None else number for number in numbers]
        values = jax.tree.unflatten(tree, leaves)
        signed = [jnp.concatenate([d, d * sign]) for d, sign in zip(own, signs, strict=True)]
        both = site_gradients(site, SITE, params, frozen, values, signed)
        return {name: (gradient, terms**2) for name, (gradient, terms) in both.items()}

    return jax.vmap(of_one)(arrays, cotangents)


def jax_logits(function: Function, params: Arrays, frozen: Arrays, x: Array) -> Array:
    """Logits (n, classes), in the dtype of the arrays."""
    return _compiled(_logits)(function, params, frozen, x)


def _logits(function: Function, params: Arrays, frozen: Arrays, x: Array) -> Array:
    return function(params, frozen, x)


def _leak(tangents: Any, examples: int) -> Array:
    """Largest tangent of the rows of images whose own tangent is 0."""
    rows = [leaf[1:] for leaf in jax.tree.leaves(tangents) if leaf.ndim and len(leaf) == examples]
    sizes = [jnp.max(jnp.abs(row)) for row in rows if jnp.issubdtype(row.dtype, jnp.floating)]
    return jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros(())
