"""A network as a pure function, and the kinds of kernel as projections of its logits."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from kernel import x64  # noqa: F401
from kernel.errors import KernelError
from kernel.options import KINDS, PROBES, Precision

Params = PyTree[Float[Array, "..."]]
Frozen = PyTree[Array]
Function = Callable[[Params, Frozen, Array], Array]


@runtime_checkable
class Piecewise(Protocol):
    """Images that are made when they are read, as an array of them would be."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them, (examples, ...)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, some: Any, /) -> np.ndarray:
        """Those at a slice or an array of positions."""
        ...


Images = Float[np.ndarray, "examples ..."] | Piecewise


class Selection:
    """Images in an order and a dtype, which are made when they are read.

    Attributes:
        dtype: of what is read.
    """

    def __init__(self, images: Images, order: np.ndarray, dtype: str):
        """Nothing is read yet.

        Args:
            images: from which they are taken.
            order: positions among them.
            dtype: of what is read.
        """
        self._images, self._order, self.dtype = images, order, np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them, (examples, ...)."""
        return (len(self._order), *self._images.shape[1:])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._order)

    def __getitem__(self, some: Any, /) -> np.ndarray:
        """Those at a slice or an array of positions, or one at a position."""
        positions = self._order[some]
        found = np.asarray(self._images[np.atleast_1d(positions)], self.dtype)
        return found if np.ndim(positions) else found[0]


def selection(images: Images, order: np.ndarray | None, dtype: str) -> Images:
    """Images in an order and a dtype: an array of an array, else read piece by piece."""
    if isinstance(images, np.ndarray):
        return np.asarray(images if order is None else images[order], dtype)
    return Selection(images, np.arange(len(images)) if order is None else order, dtype)


class Model(NamedTuple):
    """A network as a function of its trainable parameters.

    `function(params, frozen, images)` maps a batch of images to logits of shape (batch, classes),
    each row depending on its own image only. It is the same object from one round to the next,
    so that what JAX compiled for it is kept; the arrays change.
    """

    function: Function
    params: Params
    frozen: Frozen


class Directions(NamedTuple):
    """Projections of the logits that a kernel is taken of.

    Attributes:
        projections: (projections, classes), one v of v · f(x) a row.
        scale: factor of the summed products of gradients.
        square: every pair of projections has an entry of its own (`full`).
    """

    projections: Float[np.ndarray, "projections classes"]
    scale: float
    square: bool


def directions(
    kind: str, classes: int, probes: int = PROBES, rng: np.random.Generator | None = None
) -> Directions:
    """The directions of a kind.

    Args:
        kind: one of `KINDS`.
        classes: C.
        probes: m, how many projections `rademacher` takes.
        rng: where they come from.

    Raises:
        KernelError: unknown kind; no probes; no generator for random ones.
    """
    if kind not in KINDS:
        raise KernelError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}.")
    if probes < 1:
        raise KernelError(f"probes must be at least 1, not {probes}.")
    if kind == "single":
        # (7) ∇f¹(x)·∇f¹(x')
        return Directions(np.eye(1, classes), 1.0, False)
    if kind == "sum":
        # (8) the kernel of Σ_c f_c/√C
        return Directions(np.ones((1, classes)), 1.0 / classes, False)
    if kind == "rademacher":
        signs = require_rng(rng, "the kind rademacher").choice((-1.0, 1.0), size=(probes, classes))
        # (10) the mean over m vectors r of rᵀΘr / C
        return Directions(signs, 1.0 / (probes * classes), False)
    if kind == "trace":
        # (9) (1/C) Σ_c Θ_cc
        return Directions(np.eye(classes), 1.0 / classes, False)
    return Directions(np.eye(classes), 1.0, True)


def dtype_of(precision: Precision) -> Literal["float32", "float64"]:
    """Dtype of the arrays that a kernel in this precision is made of."""
    return "float32" if precision == "tf32" else precision


def rounding_of(precision: Precision) -> float:
    """Relative distance of neighbouring numbers in products of this precision."""
    return 2.0**-10 if precision == "tf32" else float(np.finfo(precision).eps)


def matmul_precision(precision: Precision) -> str:
    """`jax.default_matmul_precision` of the products between images.

    Raises:
        KernelError: TF32 where there is no GPU.
    """
    backend = jax.default_backend()
    if precision == "tf32" and backend != "gpu":
        raise KernelError(
            f"TF32 is arithmetic of NVIDIA GPUs and this process computes on {backend!r}; use "
            "float32."
        )
    return "tensorfloat32" if precision == "tf32" else "highest"


def require_rng(rng: np.random.Generator | None, what: str) -> np.random.Generator:
    """The generator, where one is needed.

    Raises:
        KernelError: there is none.
    """
    if rng is None:
        raise KernelError(f"{what} is random: give it a generator as rng.")
    return rng


def classes_of(model: Model, image: jax.ShapeDtypeStruct) -> int:
    """C, the number of logits of one image.

    Raises:
        KernelError: the model returns something else than one row of logits an image.
    """
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    logits = jax.eval_shape(model.function, model.params, model.frozen, one)
    if logits.ndim != 2:
        raise KernelError(
            f"the model maps one image to an array of shape {logits.shape}; a kernel needs logits "
            "of shape (1, classes)."
        )
    return logits.shape[1]
