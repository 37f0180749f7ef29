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

Kind = Literal["single", "sum", "trace", "full"]
KINDS: tuple[Kind, ...] = ("single", "sum", "trace", "full")
Precision = Literal["float32", "float64"]
GIB = 2**30
# Examples differentiated at a time.
CHUNK = 8


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
    precision: Precision = "float32",
    chunk: int = CHUNK,
    memory_gib: float = 4.0,
    progress: Callable[[int, int], None] | None = None,
) -> Kernel:
    """The kernel of a network between all pairs of images.

    `single` is ∇f¹·∇f¹ of the first logit ([L]), `sum` that of Σ_c f_c/√C ([P]'s pNTK), `trace`
    the mean over classes of Θ_cc, `full` every entry of Θ.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the examples, as the network takes them, without augmentation.
        kind: which kernel, one of `KINDS`.
        precision: of gradients and contraction; the result is stored in float64 either way.
        chunk: how many examples are differentiated at a time.
        memory_gib: GiB that the Jacobian may take; it decides the number of passes.
        progress: called with the number of example-passes done and their total.

    Raises:
        KernelError: unknown kind; no images; not even one parameter fits in the memory given;
            gradients that are not finite.
    """
    if kind not in KINDS:
        raise KernelError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}.")
    if len(images) == 0:
        raise KernelError("a kernel needs at least one image, and there are none.")
    if chunk < 1:
        raise KernelError(f"chunk must be at least 1, not {chunk}.")
    model = cast(model, precision)
    images = np.asarray(images, precision)
    projections, scale = _projections(kind, _classes(model, images))
    # A row of the Jacobian for each logit of `full`; one pass after another for the others.
    rows_an_example = len(projections) if kind == "full" else 1
    groups = parameter_groups(model, len(images) * rows_an_example, precision, memory_gib)
    chunk = min(chunk, len(images))
    total = len(images) * len(projections) * len(groups)
    done = 0
    values = np.zeros((len(images) * rows_an_example,) * 2)
    for group in groups:
        jacobians = []
        for projection in projections:
            rows = []
            for start in range(0, len(images), chunk):
                rows.append(_chunk_gradients(model, images, start, chunk, projection, group))
                done += len(rows[-1])
                if progress is not None:
                    progress(done, total)
            jacobians.append(jnp.concatenate(rows))
            if kind != "full":
                values += gram(jacobians.pop())
        if kind == "full":
            stacked = jnp.stack(jacobians, axis=1)
            values += gram(stacked.reshape(values.shape[0], -1))
    values *= scale
    if kind == "full":
        values = values.reshape(len(images), rows_an_example, len(images), rows_an_example)
    return Kernel(values, precision)


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


def _projections(kind: str, classes: int) -> tuple[np.ndarray, float]:
    """Directions of the logits, one backward pass each, and the factor of their summed Gram."""
    if kind == "single":
        return np.eye(1, classes), 1.0
    if kind == "sum":
        return np.ones((1, classes)), 1.0 / classes
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
