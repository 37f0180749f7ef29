"""Gradients of a loss: their sum over a set, their squared lengths, and their products with one.

With a cotangent d_i = ∂ℓ/∂f for each image, Σ_i J_iᵀd_i takes one vjp a chunk; ‖J_iᵀd_i‖² and
v·J_iᵀd_i one pass forth and back, then one layer after another. A layer that multiplies has patches
a_t and cotangents δ_t at its positions: its part of the length is that of Σ_t δ_t a_tᵀ, formed for
one image and let go, or Σ_tt' (a_t·a_t' + 1)(δ_t·δ_t') with the 1 for a bias, whichever needs fewer
multiplications. No set has a gradient for each of its images at a time (docs/mathematics.md, 6).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from kernel.contract import map_in_order
from kernel.errors import KernelError
from kernel.jacobian import (
    LayerTaps,
    block_rows,
    contract_own_factors,
    kronecker_factors,
    map_images,
    tap_chunk,
)
from kernel.linalg import on_host
from kernel.model import Frozen, Function, Model, Params
from kernel.param_groups import Block, ParamGroup, param_groups
from kernel.plan import Report, default_chunk, threads_of
from kernel.taps import Projections, Tapped, not_finite

_NAMED = 5
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Chunks:
    """Images in chunks of one shape, so that what is compiled for one serves all.

    Attributes:
        dtype: of the network's parameters, in which everything is computed.
        share: images in a chunk; the last is padded by repeating the last image.
        threads: that work on chunks at the same time.
    """

    dtype: np.dtype
    share: int
    threads: int
    _images: np.ndarray
    _cotangents: np.ndarray | None

    @property
    def count(self) -> int:
        """Images of the set."""
        return len(self._images)

    def images(self, start: int) -> Array:
        """The chunk that begins with this image."""
        return jnp.asarray(self._images[self._idx(start)], self.dtype)

    def cotangents(self, start: int) -> Array:
        """Their cotangents; zeros for the padding."""
        assert self._cotangents is not None
        rows = self._cotangents[start : start + self.share]
        padding = ((0, self.share - len(rows)), (0, 0))
        return jnp.asarray(np.pad(rows, padding), self.dtype)

    def check(
        self, start: int, finite: np.ndarray, error: Callable[[list[int], Any], KernelError]
    ) -> None:
        """Refuse a chunk in which some images' numbers are not finite.

        Args:
            start: of the chunk.
            finite: for each of its images.
            error: indices of those that are not, and a cotangent of the first → what to raise.

        Raises:
            KernelError: there are some.
        """
        if finite.all():
            return
        bad = sorted(set(self._idx(start)[~finite].tolist()))
        row = None if self._cotangents is None else self._cotangents[bad[:1]]
        raise error(bad, row)

    def map(
        self, work: Callable[[int], _Result], progress: Report | None = None
    ) -> Iterator[tuple[int, _Result]]:
        """The number of images of every chunk, padding apart, and the work done on it."""
        for start, result in map_in_order(work, range(0, self.count, self.share), self.threads):
            count = min(self.share, self.count - start)
            yield count, result
            if progress is not None:
                progress(float(start + count), float(self.count))

    def _idx(self, start: int) -> np.ndarray:
        return np.minimum(np.arange(start, start + self.share), self.count - 1)


def chunks_of(
    model: Model, images: np.ndarray, cotangents: np.ndarray | None, chunk: int | None
) -> Chunks:
    """Images cut for a network.

    Args:
        model: the network.
        images: (images, …), of any floating dtype.
        cotangents: (images, classes); None where there are none.
        chunk: images differentiated at a time, on all cores; None chooses for the machine.

    Raises:
        KernelError: no images, a chunk of none, nothing to train; not one finite row an image.
    """
    leaves = jax.tree.leaves(model.params)
    if not leaves:
        raise KernelError("the network has no trainable parameter, so it has no gradient.")
    if len(images) == 0:
        raise KernelError("gradients need at least one image, and there are none.")
    if chunk is not None and chunk < 1:
        raise KernelError(f"chunk must be at least 1, not {chunk}.")
    if cotangents is not None:
        _check_cotangents(images, cotangents)
    threads, share = threads_of(chunk or default_chunk())
    return Chunks(np.dtype(jnp.result_type(*leaves)), share, threads, images, cotangents)


def _check_cotangents(images: np.ndarray, cotangents: np.ndarray) -> None:
    if len(cotangents) != len(images):
        raise KernelError(
            f"there are {len(images):,} images and {len(cotangents):,} rows of cotangents; give "
            "∂ℓ/∂f of each image, one row an image."
        )
    bad = np.flatnonzero(~np.isfinite(cotangents).all(axis=1))
    if len(bad):
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise KernelError(
            f"the cotangents of images {bad[:_NAMED].tolist()}{more} (places in the set given) are "
            "not finite: look for NaN or huge values in the network's logits."
        )


def total(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"],
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Params:
    """Σ_i J_iᵀd_i: the gradient of the summed loss, by one vjp a chunk.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: called with the images done and all images.

    Returns:
        Arrays shaped and typed as `model.params`; chunks are summed in float64.

    Raises:
        KernelError: no images, or not one row an image; cotangents or gradients that are not
            finite, with the images.
    """
    cut = chunks_of(model, images, cotangents, chunk)
    leaves, structure = jax.tree.flatten(model.params)
    sums = [np.zeros(leaf.shape) for leaf in leaves]

    def pulled(start: int) -> list[Array]:
        some, rows = cut.images(start), cut.cotangents(start)
        return jax.tree.leaves(jax.block_until_ready(_pulled(*model, some, rows)))

    for _, gradients in cut.map(pulled, progress):
        for number, gradient in enumerate(gradients):
            sums[number] += np.asarray(gradient)
    if not all(np.isfinite(own).all() for own in sums):
        lengths_and_products(model, images, cotangents, chunk=chunk)  # tells which images
        raise KernelError(
            f"the gradients of {len(images):,} images are finite and their sum is not: their "
            f"numbers are too large for {cut.dtype}; compute in float64, or look at the weights."
        )
    typed = [jnp.asarray(own, leaf.dtype) for own, leaf in zip(sums, leaves, strict=True)]
    return jax.tree.unflatten(structure, typed)


@partial(jax.jit, static_argnums=0)
def _pulled(
    function: Function, params: Params, frozen: Frozen, images: Array, cotangents: Array
) -> Params:
    logits, pull = jax.vjp(lambda own: function(own, frozen, images), params)
    (gradients,) = pull(cotangents.astype(logits.dtype))
    return gradients


def squared_length(direction: Params) -> float:
    """‖v‖² over all parameters, in float64: of `total`, the training dynamics G(S)."""
    flat = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(direction))
    # (41) G(S) = ‖g_S‖²
    return float(sum(own @ own for own in flat))


LossGradient = Callable[[Array], Array]
"""Maps one image's logits (classes,) to its cotangent d_i, (classes,)."""


class Lengths(NamedTuple):
    """Lengths and products of some images, and their logits.

    Attributes:
        lengths: ‖J_iᵀd_i‖².
        products: v·J_iᵀd_i; zeros without a direction.
        logits: f, which the pass has anyway.
    """

    lengths: Float64[np.ndarray, " images"]
    products: Float64[np.ndarray, " images"]
    logits: Float64[np.ndarray, "images classes"]


def lengths_and_products(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"] | LossGradient,
    direction: Params | None = None,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Lengths:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in one pass: what is formed of a gradient serves both.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image; or a function that makes them of the logits of this very
            pass, the same from call to call, for which a pass is compiled.
        direction: v, shaped as `model.params`; None for the lengths alone.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: called with the images done and all images.

    Raises:
        KernelError: no images, or not one row an image; nothing to train; cotangents or gradients
            or logits that are not finite, with the images; a direction that is shaped otherwise or
            not finite.
    """
    given, gradient = (None, cotangents) if callable(cotangents) else (cotangents, None)
    cut = chunks_of(model, images, given, chunk)
    image = jax.ShapeDtypeStruct(images.shape[1:], cut.dtype)
    blocks = cheapest(param_groups(model, image))
    along = None
    if direction is not None:
        along = laid_out(model, blocks, _tangent(model.params, direction))
    typed = np.asarray(images, cut.dtype)

    def error(idx: list[int], row: Any) -> KernelError:
        if gradient is not None:
            f = model.function(*model[1:], jnp.asarray(typed[idx[:1]]))
            row = np.asarray(gradient(f[0]))[None]
        return not_finite(model, typed, idx, row)

    def squared(start: int) -> np.ndarray:
        rows = None if given is None else cut.cotangents(start)
        own = (*model[1:], cut.images(start), rows, along)
        found = squares(model.function, blocks, not on_host(), *own, gradient=gradient)
        values = np.concatenate([np.asarray(own, np.float64) for own in found], axis=1)
        cut.check(start, np.isfinite(values.sum(axis=1)), error)
        return values

    found = np.concatenate([values[:count] for count, values in cut.map(squared, progress)])
    return Lengths(found[:, 0], found[:, 1], found[:, 2:])


# Columns of layers without a rule from which their gradients are formed for one image at a time.
SINGLY = 2**20


def cheapest(groups: Sequence[ParamGroup]) -> tuple[Block, ...]:
    """Every group in the form in which an image's own length takes the fewest multiplications."""

    def work(group: ParamGroup, form: str) -> int:
        return group.forming(form, 1) + group.contracting(form, 1, False)

    return tuple(Block.whole(own, min(own.forms, key=partial(work, own))) for own in groups)


def singly(function: Function, blocks: Sequence[Block]) -> bool:
    """Whether images go through the network one by one, for their gradients are large."""
    if not isinstance(function, Tapped):
        return True
    return sum(block.columns for block in blocks if not block.by_rule) > SINGLY


class Squares(NamedTuple):
    """‖J_iᵀd_i‖² and v·J_iᵀd_i of a chunk, not finite where a gradient is not, and the logits."""

    values: Float[Array, "images 2"]
    logits: Float[Array, "images classes"]


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="gradient")
def squares(
    function: Function,
    blocks: tuple[Block, ...],
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    cotangents: Float[Array, "images classes"] | None,
    direction: tuple[Float[Array, "..."], ...] | None = None,
    gradient: LossGradient | None = None,
) -> Squares:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in float64, those of single layers in the dtype of the network.

    Args:
        function: the network.
        blocks: every group of it, in any form.
        together: form the gradients of all images at once, not image by image.
        params: trainable parameters.
        frozen: every other array.
        images: of the same dtype as the parameters.
        cotangents: d_i, one row an image; None where `gradient` makes them.
        direction: v, as `laid_out` has it; None for the lengths alone, beside zeros.
        gradient: makes d_i of the logits of the pass itself.
    """

    def of(images: Array, cotangents: Array | None) -> Squares:
        projections = _projections(cotangents, gradient)
        layers = tap_chunk(function, blocks, params, frozen, images, projections)
        return Squares(_squares(blocks, together, layers, direction), layers.logits)

    if not singly(function, blocks):
        return of(images, cotangents)

    def single(one: tuple[Array, Array | None]) -> Squares:
        found = of(*jax.tree.map(lambda own: own[None], one))
        return jax.tree.map(lambda own: own[0], found)

    return jax.lax.map(single, (images, cotangents))


def _projections(cotangents: Array | None, gradient: LossGradient | None) -> Projections:
    """One projection an image."""
    if gradient is not None:
        return lambda logits: gradient(logits)[None]
    assert cotangents is not None
    return cotangents[:, None]


def laid_out(model: Model, blocks: Sequence[Block], direction: Params) -> tuple[Array, ...]:
    """The columns of a direction for every block, in the order of the block's own gradients.

    Args:
        model: the network.
        blocks: every group of it.
        direction: arrays shaped as the parameters.
    """
    leaves = jax.tree.leaves(direction)

    def of(group: ParamGroup) -> list[Array]:
        if group.rule is None:
            return [leaves[idx] for idx in group.leaf_idx]
        by_name = dict(zip(sorted(model.params), leaves, strict=True))
        names = (group.rule.weight, group.rule.bias)  # kernels first, then biases
        return [by_name[name] for name in names if name is not None]

    return tuple(jnp.concatenate([jnp.ravel(leaf) for leaf in of(b.group)]) for b in blocks)


def _squares(
    blocks: tuple[Block, ...],
    together: bool,
    layers: LayerTaps,
    direction: tuple[Array, ...] | None,
) -> Float[Array, "images 2"]:
    total = jnp.zeros((len(layers.logits), 2), jnp.float64)
    ruled = [(n, b) for n, b in enumerate(blocks) if b.form == "rows" and b.by_rule]
    along = direction or (None,) * len(blocks)

    def both(own: LayerTaps) -> Array:
        pairs = [
            _length_and_product(block_rows(n, block, own, jnp.asarray(0)), along[n])
            for n, block in ruled
        ]
        return sum(pairs, jnp.zeros(2, jnp.float64))

    if ruled:
        total += map_images(together)(both, layers._replace(formed={}))
    for number, formed in layers.formed.items():
        total += jax.vmap(lambda own, v=along[number]: _length_and_product(own, v))(formed)
    for number, block in enumerate(blocks):
        if block.form == "factors":
            assert block.group.rule is not None
            bias = block.group.rule.bias is not None
            own = contract_own_factors(bias, kronecker_factors(block, layers, False))
            # rounding may leave a little less than nothing; NaN stays
            lengths = jnp.maximum(own[:, 0, 0].astype(jnp.float64), 0.0)
            total += jnp.stack([lengths, _unformed_product(block, layers, along[number])], axis=1)
    return total


def _length_and_product(values: Any, along: Array | None) -> Float[Array, "2"]:
    """A gradient's squared length, and its product with a direction."""
    flat = values.reshape(-1)
    product = jnp.zeros((), flat.dtype) if along is None else jnp.vdot(flat, along)
    return jnp.stack([jnp.vdot(flat, flat), product]).astype(jnp.float64)


def _unformed_product(block: Block, layers: LayerTaps, along: Array | None) -> Array:
    """Σ_t δ_t·V a_t of each image, for a layer whose gradients are not formed."""
    (site,) = block.group.sites
    rule, x, delta = block.group.rule, layers.inputs[site], layers.cotangents[site]
    assert rule is not None
    if along is None:
        return jnp.zeros(len(x), jnp.float64)
    own = rule.shaped(along)
    delta = jax.vmap(rule.cotangents)(delta)[:, 0]
    products = (rule.products(x, own[rule.weight]) * delta).sum((1, 2))
    if rule.bias is not None:
        products += delta.sum(2) @ own[rule.bias]
    return products.astype(jnp.float64)


def _tangent(params: Params, direction: Params) -> Params:
    """The direction in the parameters' own dtypes."""
    own, given = (jax.tree.structure(tree) for tree in (params, direction))
    if own != given:
        raise KernelError(f"the direction is {given} and the parameters are {own}.")
    for leaf, change in zip(jax.tree.leaves(params), jax.tree.leaves(direction), strict=True):
        if leaf.shape != change.shape:
            raise KernelError(
                f"an array of the direction has shape {change.shape} and its parameter "
                f"{leaf.shape}: a direction is shaped as the parameters."
            )
        if not bool(jnp.isfinite(change).all()):
            raise KernelError(
                "the direction holds NaN or infinite values: look at the gradients it is made of."
            )
    return jax.tree.map(lambda leaf, change: jnp.asarray(change, leaf.dtype), params, direction)
