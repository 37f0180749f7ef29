"""Taps: the inputs of every layer that consumes a parameter, and the cotangents of its output.

One backward pass to the outputs of the layers, for one or more projections of the logits; the vjp
of a layer's own operator then gives its parameters' gradients, whatever the operator. A layer that
multiplies by a matrix has a faster rule: from patches a_t and cotangents δ_t at its positions to
rows of the Jacobian. Convolutions see their input as patches, by shifted slices
(docs/mathematics.md, 2).
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernel.errors import NotFiniteError
from kernel.model import Frozen, Function, Images, Model, Params


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution, one entry an axis of the image.

    Attributes:
        kernel: sizes of the kernel.
        stride: steps between its positions.
        edges: padding before and after.
        dilation: steps between its entries.
        groups: channels are split into so many groups, each with kernels of its own.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def slices(self, padded: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """For each entry of the kernel the pixels that it meets, of an image with its padding."""
        axes = []
        for n, k, s, d in zip(padded, self.kernel, self.stride, self.dilation, strict=True):
            last = (n - d * (k - 1) - 1) // s * s  # where the kernel's last position begins
            axes.append([slice(d * i, d * i + last + 1, s) for i in range(k)])
        return list(itertools.product(*axes))


@dataclass(frozen=True)
class AffineRule:
    """A dense layer, or a convolution if it has a window.

    Attributes:
        weight: name of the trainable matrix (out, in) or kernel (out, in / groups, …).
        bias: name of the trainable bias (out,); None if there is none.
        inputs: channels of the input, those of all groups.
        outputs: channels of the output.
        window: of a convolution.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    window: Window | None = None

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.window.groups if self.window else 1

    @property
    def features(self) -> int:
        """Entries of a patch in one group."""
        return self.inputs // self.groups * math.prod(self.window.kernel if self.window else ())

    @property
    def width(self) -> int:
        """Columns of the Jacobian for one output channel: its kernel's, and the bias."""
        return self.features + (1 if self.bias else 0)

    def patches(self, x: Array) -> Array:
        """The input of one image as (groups, features, positions), a channel before its window.

        Features come first because a product with the cotangents' channels is then one of matrices
        as they lie: faster on a CPU than patches that lie one after another.
        """
        if self.window is None:
            return x.reshape(-1, self.inputs).T[None]
        padded = jnp.pad(x, ((0, 0), (0, 0), *self.window.edges))
        shifted = [padded[:, :, *index] for index in self.window.slices(padded.shape[2:])]
        columns = jnp.stack(shifted, axis=2)  # (copies, channels, window, …)
        return jnp.moveaxis(columns, 0, 2).reshape(self.groups, self.features, -1)

    def cotangents(self, cotangent: Array) -> Array:
        """(rows, outputs, positions) from the cotangents of one image, one a row."""
        if self.window is None:
            return cotangent.reshape(len(cotangent), -1, self.outputs).swapaxes(1, 2)
        return jnp.moveaxis(cotangent, 2, 1).reshape(len(cotangent), self.outputs, -1)

    def rows(self, x: Array, cotangent: Array, start: Array, outputs: int) -> Array:
        """Columns of the Jacobian for some output channels, kernels first, then biases.

        Args:
            x: the layer's input for one image.
            cotangent: (rows, …), cotangents of its output, one for each row.
            start: the first output channel; all of them if `outputs` is their number.
            outputs: how many; past the last one they count as zeros.

        Returns:
            (rows, outputs · width), in the order of the parameters' own entries.
        """
        delta = self.cotangents(cotangent)
        if outputs < self.outputs:
            delta = jnp.pad(delta, ((0, 0), (0, -self.outputs % outputs), (0, 0)))
            delta = jax.lax.dynamic_slice_in_dim(delta, start, outputs, axis=1)
        patches = self.patches(x)
        if self.groups == 1:
            # one product of two matrices, whose result lies as it is wanted: XLA turns an einsum
            # with groups around, and then takes most of its time to turn the result back
            kernels = delta.reshape(-1, delta.shape[2]) @ patches[0].T
        else:
            grouped = delta.reshape(len(delta), self.groups, -1, delta.shape[2])
            kernels = jnp.einsum("rgot,gft->rgof", grouped, patches)
        kernels = kernels.reshape(len(delta), -1)
        if self.bias is None:
            return kernels
        return jnp.concatenate([kernels, delta.sum(axis=2)], axis=1)

    def products(self, x: Array, weight: Array) -> Array:
        """(images, outputs, positions): V a_t at every position, for other weights V, no bias.

        One product of matrices with the patches of all images: V stays as it lies, where a
        convolution would lay it out anew, which takes longer where positions are few.

        Args:
            x: the layer's inputs, images along axis 0.
            weight: V, in the layout of the parameter.
        """
        patches = jnp.moveaxis(jax.vmap(self.patches)(x), 0, 2)  # (groups, features, images, …)
        matrices = weight.reshape(self.groups, -1, self.features)
        found = matrices @ patches.reshape(self.groups, self.features, -1)
        found = found.reshape(self.outputs, len(x), -1)
        return jnp.moveaxis(found, 0, 1)

    def shaped(self, row: Array) -> dict[str, Array]:
        """The parameters' gradients, each in the layout of the parameter, from a whole row."""
        size = self.outputs * self.features
        kernel = self.window.kernel if self.window else ()
        weight = row[:size].reshape(self.outputs, self.inputs // self.groups, *kernel)
        return {self.weight: weight} | ({} if self.bias is None else {self.bias: row[size:]})


class LinearHead(NamedTuple):
    """A network that is one linear layer, f = Wh + b of its rows h, by what of it is trained.

    Attributes:
        inputs: entries of h where W is trained; 0 where it is not.
        bias: whether b is trained.
    """

    inputs: int
    bias: bool

    @property
    def width(self) -> int:
        """Columns of the features whose inner products are the kernel."""
        return self.inputs + self.bias

    def features(
        self, rows: Float[np.ndarray, "examples _"], norm: float
    ) -> Float[np.ndarray, "examples width"]:
        """Φ, in the dtype of the rows.

        Args:
            rows: h of every image.
            norm: s, the root of the scaled sum of squares of the projections.
        """
        found = np.full((len(rows), self.width), norm, rows.dtype)
        if self.inputs:
            # (49) Φ = s[h, 1] with s² = c Σ_v ‖v‖², as ∂(v · f)/∂(W, b) = v ⊗ [h, 1]
            np.multiply(rows, found[:1, :1], out=found[:, : self.inputs])
        return found


@runtime_checkable
class Linear(Protocol):
    """A network's function that may be one linear layer on its images, which are rows."""

    def linear_head(self, params: Mapping[str, Array]) -> LinearHead | None:
        """The layer, if that is all there is; its parameters are a dict by name."""
        ...


Inputs = dict[str, tuple[Any, ...]]
Cotangents = dict[str, list[Array]]
Projections = Array | Callable[[Array], Array]
"""One v a row, or what makes them of the logits that a pass has anyway."""


@runtime_checkable
class Site(Protocol):
    """A node of the network's graph that consumes trainable parameters."""

    @property
    def name(self) -> str:
        """Name of its tap."""
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
        """Every node that consumes arrays of the network, in order."""
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

    def rule(self, site: str, params: Mapping[str, Array]) -> AffineRule | None:
        """The rule of a site that multiplies its first input by its parameters, and no more."""
        ...


def taps(
    function: Tapped,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    image: Float[Array, "..."],
    projections: Projections,
    sites: Collection[str],
) -> tuple[Inputs, Cotangents, Float[Array, " classes"]]:
    """Inputs and cotangents of the layers for one image; map it over images with `vmap`.

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
            # (14) ∂(v · f(x))/∂θ = Σ_{s uses θ} (∂h_s(θ, u_s)/∂θ)ᵀ δ_s
            gradients[name] = gradients[name] + own[name][0]
    return gradients


_NAMED = 5  # of the weights


def not_finite(
    model: Model, images: Images, bad: list[int], projections: np.ndarray
) -> NotFiniteError:
    """The error for images whose gradients are not finite.

    Args:
        model: the network.
        images: all of them.
        bad: positions of those.
        projections: one v a row.
    """
    where = _layer(model, jnp.asarray(images[bad[0]]), jnp.asarray(projections, images.dtype))
    return NotFiniteError(bad, where)


def check_gradients(
    model: Model, images: Images, idx: np.ndarray, finite: np.ndarray, projections: np.ndarray
) -> None:
    """Refuse gradients that are not finite.

    Args:
        model: the network.
        images: all of them.
        idx: those that were differentiated, padding included.
        finite: whether the gradients of each are.
        projections: one v a row.

    Raises:
        NotFiniteError: they are not, with the images and the layer.
    """
    bad = sorted(set(idx[~finite].tolist()))
    if bad:
        raise not_finite(model, images, bad, projections)


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
