"""The empirical Neural Tangent Kernel of a network between all images of a set.

From a model and images to Θ(x,x') = J(x)J(x')ᵀ, whole or reduced to a scalar-valued kernel
(docs/mathematics.md, 2). The parameters are split into groups whose Jacobian fits in the memory
given; each group's Jacobian is formed once and its Gram matrix added, so that no entry of the
Jacobian is kept or contracted twice.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kernel.errors import KernelError
from kernel.gradients import Group, parameter_sizes, per_example_gradients
from kernel.model import Model
from kernel.sketch import fold, random_signs

Kind = Literal["single", "sum", "trace", "rademacher", "full"]
KINDS: tuple[Kind, ...] = ("single", "sum", "trace", "rademacher", "full")
Precision = Literal["float32", "float64"]
GIB = 2**30
# Examples differentiated at a time.
CHUNK = 8
# Random projections of the logits for `rademacher`.
PROBES = 4


class Kernel(NamedTuple):
    """A kernel between the examples of one set.

    Attributes:
        values: float64, (examples, examples) for a scalar-valued kernel K that stands for
            K ⊗ I_C, or (examples, classes, examples, classes) for the kind `full`.
        precision: the dtype that gradients and contraction were computed in, which is what the
            rounding of `values` is judged by.
    """

    values: Float[np.ndarray, "..."]
    precision: Precision


def empirical_ntk(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    kind: str = "single",
    *,
    probes: int = PROBES,
    sketch: int | None = None,
    rng: np.random.Generator | None = None,
    precision: Precision = "float32",
    chunk: int = CHUNK,
    memory_gib: float = 4.0,
    progress: Callable[[int, int], None] | None = None,
) -> Kernel:
    """The kernel of a network between all pairs of images.

    `single` is ∇f¹·∇f¹ of the first logit ([L]), `sum` that of Σ_c f_c/√C ([P]'s pNTK), `trace`
    the mean over classes of Θ_cc, `rademacher` the mean over random ±1 projections r of the logits
    of rᵀΘr/C, unbiased for `trace`, and `full` every entry of Θ.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the examples, as the network takes them, without augmentation.
        kind: which kernel, one of `KINDS`.
        probes: m, how many projections `rademacher` takes.
        sketch: k, the number of dimensions that gradients are folded to before they are
            contracted; None keeps them whole.
        rng: where projections and the signs of a sketch come from.
        precision: of gradients and contraction; the result is stored in float64 either way.
        chunk: how many examples are differentiated at a time.
        memory_gib: GiB that the Jacobian may take; it decides the number of passes.
        progress: called with the number of example-passes done and their total.

    Raises:
        KernelError: unknown kind; no images; not even one parameter, or not the sketch, fits in
            the memory given; a sketch of no or too many dimensions; no generator where one is
            needed; gradients that are not finite.
    """
    _check(kind, len(images), chunk, probes)
    model = cast(model, precision)
    images = np.asarray(images, precision)
    projections, scale = _projections(kind, _classes(model, images), probes, rng)
    # A row of the Jacobian for each logit of `full`; one pass after another for the others.
    rows_an_example = len(projections) if kind == "full" else 1
    rows = len(images) * rows_an_example
    chunk = min(chunk, len(images))
    if sketch is None:
        groups, signs = parameter_groups(model, rows, precision, memory_gib), None
    else:
        sizes = parameter_sizes(model.params)
        signs = jnp.asarray(random_signs(sum(sizes), sketch, _given(rng, "a sketch")))
        _check_sketch(rows, sketch, chunk * sum(sizes), precision, memory_gib)
        groups = [Group(tuple(range(len(sizes))))]
    total = len(images) * len(projections) * len(groups)
    done = 0
    values = np.zeros((rows, rows))
    for group in groups:
        jacobians = []
        for projection in projections:
            parts = []
            for start in range(0, len(images), chunk):
                part = _chunk_gradients(model, images, start, chunk, projection, group)
                parts.append(part if signs is None else fold(part, signs, sketch))
                done += len(part)
                if progress is not None:
                    progress(done, total)
            jacobians.append(jnp.concatenate(parts))
            if kind != "full":
                values += gram(jacobians.pop())
        if kind == "full":
            stacked = jnp.stack(jacobians, axis=1)
            values += gram(stacked.reshape(rows, -1))
    values *= scale
    if kind == "full":
        values = values.reshape(len(images), rows_an_example, len(images), rows_an_example)
    return Kernel(values, precision)


def _check(kind: str, examples: int, chunk: int, probes: int) -> None:
    if kind not in KINDS:
        raise KernelError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}.")
    if examples == 0:
        raise KernelError("a kernel needs at least one image, and there are none.")
    for name, value in (("chunk", chunk), ("probes", probes)):
        if value < 1:
            raise KernelError(f"{name} must be at least 1, not {value}.")


def _check_sketch(
    rows: int, sketch: int, chunk: int, precision: Precision, memory_gib: float
) -> None:
    """The sketch of every row, and the gradients of one chunk, each with one working copy."""
    needed = 2 * (rows * sketch + chunk) * np.dtype(precision).itemsize / GIB
    if needed > memory_gib:
        raise KernelError(
            f"a sketch of {sketch:,} dimensions for {rows:,} rows needs {needed:.3g} GiB and "
            f"{memory_gib:g} GiB are given: raise the kernel's memory, or lower sketch, chunk or "
            "the number of candidates."
        )


def _given(rng: np.random.Generator | None, what: str) -> np.random.Generator:
    if rng is None:
        raise KernelError(f"{what} is random: give it a generator as rng.")
    return rng


def cast(model: Model, dtype: Precision) -> Model:
    """The same model with its floating-point arrays in another dtype."""

    def to(leaf):
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return Model(model.function, jax.tree.map(to, model.params), jax.tree.map(to, model.frozen))


def _classes(model: Model, images: np.ndarray) -> int:
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    logits = jax.eval_shape(model.function, model.params, model.frozen, one)
    if logits.ndim != 2:
        raise KernelError(
            f"the model maps one image to an array of shape {logits.shape}; a kernel needs logits "
            "of shape (1, classes)."
        )
    return logits.shape[1]


def _projections(
    kind: str, classes: int, probes: int, rng: np.random.Generator | None
) -> tuple[np.ndarray, float]:
    """Directions of the logits, one backward pass each, and the factor of their summed Gram."""
    if kind == "single":
        return np.eye(1, classes), 1.0
    if kind == "sum":
        return np.ones((1, classes)), 1.0 / classes
    if kind == "rademacher":
        signs = _given(rng, "the kind rademacher").choice((-1.0, 1.0), size=(probes, classes))
        return signs, 1.0 / (probes * classes)
    return np.eye(classes), 1.0 / classes if kind == "trace" else 1.0


def parameter_groups(
    model: Model, rows: int, precision: Precision, memory_gib: float
) -> list[Group]:
    """Consecutive parameter arrays whose Jacobian, with one working copy, fits in the memory.

    An array that does not fit by itself is taken in parts of equal width.
    """
    columns = int(memory_gib * GIB / (2 * rows * np.dtype(precision).itemsize))
    if columns < 1:
        raise KernelError(
            f"one column of the Jacobian of {rows:,} rows does not fit in {memory_gib:g} GiB: "
            "raise the kernel's memory or score fewer candidates."
        )
    groups: list[Group] = []
    current: tuple[int, ...] = ()
    used = 0
    for place, size in enumerate(parameter_sizes(model.params)):
        if current and used + size > columns:
            groups.append(Group(current))
            current, used = (), 0
        if size > columns:
            groups += [Group((place,), columns, part) for part in range(-(-size // columns))]
        else:
            current, used = (*current, place), used + size
    groups += [Group(current)] if current else []
    if not groups:
        raise KernelError("the network has no trainable parameter, so its kernel is zero.")
    return groups


def _chunk_gradients(
    model: Model,
    images: np.ndarray,
    start: int,
    chunk: int,
    projection: np.ndarray,
    group: Group,
) -> jax.Array:
    """Gradients of one chunk; the last is padded with repeats so that one shape is compiled."""
    places = np.minimum(np.arange(start, start + chunk), len(images) - 1)
    direction = jnp.asarray(projection, images.dtype)
    rows = per_example_gradients(model, jnp.asarray(images[places]), direction, group)
    rows = rows[: len(images) - start]
    finite = np.asarray(jnp.isfinite(rows).all(axis=1))
    if not finite.all():
        bad = (start + np.flatnonzero(~finite)[:5]).tolist()
        raise KernelError(
            f"the gradients of images {bad} (places in the set given) are not finite: look for "
            "NaN or huge values in those images, or in the network's weights."
        )
    return rows


def gram(jacobian: Float[jax.Array, "rows columns"]) -> Float[np.ndarray, "rows rows"]:
    """J Jᵀ in float64, contracted in J's own dtype."""
    if jax.default_backend() == "cpu":
        # NumPy sees that both sides are the same array and does half the work
        rows = np.asarray(jacobian)
        return (rows @ rows.T).astype(np.float64)
    return np.asarray(jacobian @ jacobian.T, np.float64)
