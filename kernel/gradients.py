"""Gradients of a loss: their sum over a set, what they do to other images, and their lengths.

From a model, images and one cotangent d_i = ∂ℓ/∂f for each of them to Σ_i J_iᵀd_i, to J_i v, and to
‖J_iᵀd_i‖². Images go through in chunks of one shape, compiled once and used again as long as the
network's function is the same object; there is never a gradient for each image of a set at a time
(docs/mathematics.md, 6).

A set of images in chunks of one shape, each with its cotangents, on several cores.

From images, and a row of numbers for each, to padded pieces on the device in the dtype of a
network; the same shapes from round to round, so that what is compiled for one serves all.

Squared lengths of the gradients of a chunk of images, each with a cotangent of its own.

From images and cotangents d_i, given or made of the logits that a pass has anyway, to ‖J_iᵀd_i‖²,
and to v·J_iᵀd_i for a v that is the same for all of them, one layer after another. A layer that
multiplies has at its positions t patches a_t and cotangents δ_t; its part is the length of
Σ_t δ_t a_tᵀ, formed for one image and let go, or Σ_tt' (a_t·a_t' + 1)(δ_t·δ_t') with the 1 for a
bias, whichever needs fewer multiplications: for a dense layer at one position (‖a‖² + 1)‖δ‖². Its
part of v is a matrix V of the layer's own shape: what is formed is multiplied with it as it is,
else Σ_t δ_t·V a_t is one product with the patches of all images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from kernel.contract import passing_chunk
from kernel.errors import KernelError
from kernel.jacobian import Part, Seen, alone, factor_of, observed, over, rows_of
from kernel.model import Frozen, Function, Model, Params
from kernel.options import Request
from kernel.param_groups import Unit, units
from kernel.plan import Report, in_order, problem_of, shared, together
from kernel.taps import ELEMENTWISE, Lookup, Product, Projections, Tapped, not_finite

_NAMED = 5
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Chunks:
    """Images that go through a network a few at a time.

    Attributes:
        dtype: of the network's parameters, in which everything is computed.
        share: images in a chunk; the last is padded with repeats of the last image.
        threads: that work on chunks at the same time.
    """

    dtype: np.dtype
    share: int
    threads: int
    _images: np.ndarray
    _cotangents: np.ndarray | None

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self._images)

    def images(self, start: int) -> Array:
        """The chunk from this place on."""
        return jnp.asarray(self._images[self._places(start)], self.dtype)

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
            error: the places of those that are not, and a cotangent of the first → what to raise.

        Raises:
            KernelError: there are some.
        """
        if finite.all():
            return
        bad = sorted(set(self._places(start)[~finite].tolist()))
        row = None if self._cotangents is None else self._cotangents[bad[:1]]
        raise error(bad, row)

    @contextmanager
    def in_order(self, work: Callable[[int], _Result]) -> Iterator[Iterator[tuple[int, _Result]]]:
        """The number of images of every chunk, padding apart, and the work done on it."""
        with in_order(work, range(0, self.count, self.share), self.threads) as results:
            yield ((min(self.share, self.count - start), result) for start, result in results)

    def _places(self, start: int) -> np.ndarray:
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
        _check_chunks(images, cotangents)
    dtype = np.dtype(jnp.result_type(*leaves))
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype)
    threads, share = shared(chunk_size(model, image, len(images), chunk))
    return Chunks(dtype, share, threads, images, cotangents)


def chunk_size(
    model: Model, image: jax.ShapeDtypeStruct, count: int, chunk: int | None = None
) -> int:
    """Images differentiated at a time, on all cores.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.
        count: how many images there are.
        chunk: as many; None chooses for the machine and the network.
    """
    if chunk is not None:
        return chunk
    return passing_chunk(problem_of(model, image, count, 1, Request()), Request())


def _check_chunks(images: np.ndarray, cotangents: np.ndarray) -> None:
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


Answer = Callable[[Array], Array]
"""Of one image's logits (classes,) its cotangent d_i, (classes,)."""


class Squares(NamedTuple):
    """What a chunk comes to.

    Attributes:
        values: ‖J_iᵀd_i‖² and v·J_iᵀd_i; NaN or infinity where a gradient is not finite.
        logits: f of each image, which the pass has anyway.
    """

    values: Float[Array, "images 2"]
    logits: Float[Array, "images classes"]


# As `ELEMENTWISE` for sums over windows of the pixels of one image alone, which have no axis of
# images to run along; what it gains is in benchmarks/dynamics.py.
ALONE = 100
# Columns of layers without a rule from which their gradients are formed for one image at a time.
SINGLY = 2**20


def cheapest(units: Sequence[Unit]) -> tuple[Part, ...]:
    """Every unit in the form in which an image's own length takes the fewest multiplications."""
    return tuple(
        Part(unit, min(unit.forms, key=partial(_work, unit)), unit.outputs) for unit in units
    )


def _work(unit: Unit, form: str) -> int:
    elementwise = ALONE if form == "pixels" else ELEMENTWISE
    return unit.forming(form, 1) + unit.contracting(form, 1, False, elementwise)


def singly(function: Function, parts: Sequence[Part]) -> bool:
    """Whether images go through the network one by one, for their gradients are large."""
    if not isinstance(function, Tapped):
        return True
    return sum(part.columns for part in parts if not part.by_rule) > SINGLY


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="answer")
def squares(
    function: Function,
    parts: tuple[Part, ...],
    together: bool,
    params: Params,
    frozen: Frozen,
    images: Float[Array, "images ..."],
    cotangents: Float[Array, "images classes"] | None,
    direction: tuple[Float[Array, "..."], ...] | None = None,
    answer: Answer | None = None,
) -> Squares:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in float64, those of single layers in the dtype of the network.

    Args:
        function: the network.
        parts: every unit of it, in any form.
        together: form the gradients of all images at once, not image by image.
        params: trainable parameters.
        frozen: every other array.
        images: of the same dtype as the parameters.
        cotangents: d_i, one row an image; None where `answer` makes them.
        direction: v, as `laid_out` has it; None for the lengths alone, beside zeros.
        answer: what makes d_i of the logits of the pass itself.
    """

    def of(images: Array, cotangents: Array | None) -> Squares:
        seen = observed(function, parts, params, frozen, images, _rows(cotangents, answer))
        return Squares(_squares(parts, together, seen, len(images), direction), seen.logits)

    if not singly(function, parts):
        return of(images, cotangents)

    def single(one: tuple[Array, Array | None]) -> Squares:
        found = of(*jax.tree.map(lambda own: own[None], one))
        return jax.tree.map(lambda own: own[0], found)

    return jax.lax.map(single, (images, cotangents))


def _rows(cotangents: Array | None, answer: Answer | None) -> Projections:
    """One projection an image."""
    if answer is not None:
        return lambda logits: answer(logits)[None]
    assert cotangents is not None
    return cotangents[:, None]


def laid_out(model: Model, parts: Sequence[Part], direction: Params) -> tuple[Array, ...]:
    """Of every part the columns of a direction, in the order of the part's own gradients.

    Args:
        model: the network.
        parts: every unit of it.
        direction: arrays shaped as the parameters.
    """
    leaves = jax.tree.leaves(direction)
    by_name = dict(zip(sorted(model.params), leaves, strict=True)) if _named(model) else {}

    def of(unit: Unit) -> list[Array]:
        if isinstance(unit.rule, Product):  # kernels first, then biases
            names = (unit.rule.weight, unit.rule.bias)
            return [by_name[name] for name in names if name is not None]
        return [leaves[place] for place in unit.places]

    return tuple(jnp.concatenate([jnp.ravel(leaf) for leaf in of(part.unit)]) for part in parts)


def _named(model: Model) -> bool:
    return isinstance(model.function, Tapped)


def _squares(
    parts: tuple[Part, ...],
    together: bool,
    seen: Seen,
    count: int,
    direction: tuple[Array, ...] | None,
) -> Array:
    """(images, 2)."""
    total = jnp.zeros((count, 2), jnp.float64)
    ruled = [(n, part) for n, part in enumerate(parts) if part.form == "rows" and part.by_rule]
    along = direction or (None,) * len(parts)

    def both(own: Seen) -> Array:
        pairs = [
            _norms_and_products(rows_of(n, part, own, jnp.asarray(0)), along[n])
            for n, part in ruled
        ]
        return sum(pairs, jnp.zeros(2, jnp.float64))

    if ruled:
        total += over(together)(both, seen._replace(formed={}))
    for number, formed in seen.formed.items():
        total += jax.vmap(lambda own, v=along[number]: _norms_and_products(own, v))(formed)
    for number, part in enumerate(parts):
        if part.form != "rows":
            assert part.unit.rule is not None
            own = alone(part.unit.rule, part.form, factor_of(part, seen, False))
            # rounding may leave a little less than nothing; NaN stays
            lengths = jnp.maximum(own[:, 0, 0].astype(jnp.float64), 0.0)
            total += jnp.stack([lengths, _along(part, seen, along[number], count)], axis=1)
    return total


def _norms_and_products(values: Any, along: Array | None) -> Array:
    """A gradient's squared length, and its product with a direction."""
    flat = values.reshape(-1)
    product = jnp.zeros((), flat.dtype) if along is None else jnp.vdot(flat, along)
    return jnp.stack([jnp.vdot(flat, flat), product]).astype(jnp.float64)


def _along(part: Part, seen: Seen, along: Array | None, count: int) -> Array:
    """Σ_t δ_t·V a_t of each image, for a layer whose gradients are not formed."""
    if along is None:
        return jnp.zeros(count, jnp.float64)
    (site,) = part.unit.sites
    rule, x, delta = part.unit.rule, seen.inputs[site], seen.cotangents[site]
    if isinstance(rule, Lookup):
        entries = x.reshape(count, -1)
        table = along.reshape(rule.entries, -1)
        kept = (entries != rule.padding)[..., None]
        delta = delta.reshape(*entries.shape, -1)
        return jnp.where(kept, table[entries] * delta, 0).sum((1, 2)).astype(jnp.float64)
    assert isinstance(rule, Product)
    own = rule.shaped(along)
    delta = jax.vmap(rule.cotangents)(delta)[:, 0]
    products = (rule.products(x, own[rule.weight]) * delta).sum((1, 2))
    if rule.bias is not None:
        products += delta.sum(2) @ own[rule.bias]
    return products.astype(jnp.float64)


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
        progress: told how many images are done, and of how many.

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

    for _, gradients in _each(cut, pulled, progress):
        for place, gradient in enumerate(gradients):
            sums[place] += np.asarray(gradient)
    if not all(np.isfinite(own).all() for own in sums):
        norms(model, images, cotangents, chunk=chunk)  # tells which images
        raise KernelError(
            f"the gradients of {len(images):,} images are finite and their sum is not: their "
            f"numbers are too large for {cut.dtype}; compute in float64, or look at the weights."
        )
    typed = [jnp.asarray(own, leaf.dtype) for own, leaf in zip(sums, leaves, strict=True)]
    return jax.tree.unflatten(structure, typed)


def along(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    direction: Params,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Float64[np.ndarray, "images classes"]:
    """J_i v: how the logits change as the parameters move along v, by one jvp a chunk.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        direction: v, arrays shaped as `model.params`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images; a direction that is not shaped as the parameters or not finite;
            derivatives that are not finite, with the images.
    """
    cut = chunks_of(model, images, None, chunk)
    tangent = _tangent(model.params, direction)

    def pushed(start: int) -> np.ndarray:
        values = np.asarray(_pushed(*model, cut.images(start), tangent), np.float64)
        cut.check(
            start,
            np.asarray(np.isfinite(values).all(axis=1)),
            _no_tangent(model, images, cut.dtype),
        )
        return values

    found = [values[:count] for count, values in _each(cut, pushed, progress)]
    return np.concatenate(found)


def norms(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    cotangents: Float[np.ndarray, "rows classes"],
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Float64[np.ndarray, " images"]:
    """‖J_iᵀd_i‖², layer by layer in whichever form needs fewer multiplications.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images, or not one row an image; nothing to train; cotangents or gradients
            that are not finite, with the images.
    """
    return _both(model, images, cotangents, None, chunk, progress).lengths


class Both(NamedTuple):
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
    cotangents: Float[np.ndarray, "rows classes"] | Answer,
    direction: Params,
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> Both:
    """‖J_iᵀd_i‖² and v·J_iᵀd_i in one pass: what is formed of a gradient serves both.

    Args:
        model: the network; its dtype is that of the computation.
        images: as the network takes them.
        cotangents: d_i, one row an image; or what makes an image's of the logits of this very pass,
            the same function from call to call, for which a pass is compiled.
        direction: v, shaped as `model.params`.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: told how many images are done, and of how many.

    Raises:
        KernelError: no images, or not one row an image; nothing to train; cotangents or gradients
            or logits that are not finite, with the images; a direction that is shaped otherwise or
            not finite.
    """
    return _both(model, images, cotangents, direction, chunk, progress)


def _both(
    model: Model,
    images: np.ndarray,
    cotangents: np.ndarray | Answer,
    direction: Params | None,
    chunk: int | None,
    progress: Report | None,
) -> Both:
    """Lengths, and products with a direction if there is one."""
    given, answer = (None, cotangents) if callable(cotangents) else (cotangents, None)
    cut = chunks_of(model, images, given, chunk)
    image = jax.ShapeDtypeStruct(images.shape[1:], cut.dtype)
    parts = cheapest(units(model, image))
    along = None
    if direction is not None:
        along = laid_out(model, parts, _tangent(model.params, direction))
    typed = np.asarray(images, cut.dtype)

    def error(places: list[int], row: Any) -> KernelError:
        if answer is not None:
            f = model.function(*model[1:], jnp.asarray(typed[places[:1]]))
            row = np.asarray(answer(f[0]))[None]
        return not_finite(model, typed, places, row)

    def squared(start: int) -> np.ndarray:
        rows = None if given is None else cut.cotangents(start)
        own = (*model[1:], cut.images(start), rows, along)
        found = squares(model.function, parts, together(), *own, answer=answer)
        values = np.concatenate([np.asarray(own, np.float64) for own in found], axis=1)
        cut.check(start, np.isfinite(values.sum(axis=1)), error)
        return values

    found = np.concatenate([values[:count] for count, values in _each(cut, squared, progress)])
    return Both(found[:, 0], found[:, 1], found[:, 2:])


def squared_length(direction: Params) -> float:
    """‖v‖² over all parameters, in float64: of `total`, the training dynamics G(S)."""
    flat = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(direction))
    return float(sum(own @ own for own in flat))


def _each(
    cut: Chunks, work: Callable[[int], Any], progress: Report | None
) -> Iterator[tuple[int, Any]]:
    """Every chunk's number of images, without its padding, and what the work makes of it."""
    done = 0
    with cut.in_order(work) as results:
        for count, result in results:
            yield count, result
            done += count
            if progress is not None:
                progress(float(done), float(cut.count))


@partial(jax.jit, static_argnums=0)
def _pulled(
    function: Function, params: Params, frozen: Frozen, images: Array, cotangents: Array
) -> Params:
    logits, pull = jax.vjp(lambda own: function(own, frozen, images), params)
    (gradients,) = pull(cotangents.astype(logits.dtype))
    return gradients


@partial(jax.jit, static_argnums=0)
def _pushed(
    function: Function, params: Params, frozen: Frozen, images: Array, tangent: Params
) -> Array:
    _, change = jax.jvp(lambda own: function(own, frozen, images), (params,), (tangent,))
    return change


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


def _no_tangent(
    model: Model, images: np.ndarray, dtype: np.dtype
) -> Callable[[list[int], Any], KernelError]:
    """As `not_finite`, for derivatives of all logits at once."""

    def error(places: list[int], _row: Any) -> KernelError:
        typed = images.astype(dtype)
        classes = model.function(*model[1:], jnp.asarray(typed[:1])).shape[1]
        return not_finite(model, typed, places, np.ones((1, classes)))

    return error
