"""The three forms in which a posterior is given a kernel, read through one set of blocks.

From a dense kernel, features whose inner products are the kernel, or a kernel between anchors and
everything, to the blocks that conditioning needs: K_LL, K_LU by columns, the candidates' diagonal
and rows of K_UU. "Rows" are examples, or example-class pairs of the kind `full`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from kernel.errors import KernelError
from kernel.ntk import Kernel, Precision
from kernel.regression.linalg import Matrix

_FINITE_ENTRIES = 2**22


class Features(NamedTuple):
    """A kernel ΦΦᵀ by its features, such as sketched gradients.

    Attributes:
        values: Φ with every scale in it, float32 or float64, (examples, dimensions); the labelled
            images first, then the candidates.
        precision: by which the rounding of inner products is judged; its dtype is that of `values`.
        logits: of the network whose gradients they are, if the pass that made them left any.
    """

    values: Float[np.ndarray | Array, "examples dimensions"]
    precision: Precision
    logits: Float[np.ndarray, "examples classes"] | None = None


class Cross(NamedTuple):
    """A kernel between anchors and all examples, for pools whose U×U kernel does not fit.

    Attributes:
        values: (anchors, examples): anchors are the labelled images, then the candidates of the
            reference sample in its order; examples the labelled images, then all candidates.
        diagonal: k(x, x) of every example.
        precision: what gradients and contraction were computed in.
    """

    values: Float[np.ndarray, "anchors examples"]
    diagonal: Float[np.ndarray, " examples"]
    precision: Precision


Given = Kernel | Features | Cross


@dataclass(frozen=True)
class Blocks:
    """What conditioning reads of a kernel, whatever its form.

    Attributes:
        given: the kernel.
        labelled: rows of the labelled set.
        each: rows of one example: the classes for the kind `full`, else 1.
    """

    given: Given
    labelled: int
    each: int

    @property
    def matrix(self) -> Matrix:
        """The array given, pairs of a full kernel flattened to rows; a view."""
        values = self.given.values
        return values.reshape(len(values) * self.each, -1) if values.ndim == 4 else values

    @property
    def candidates(self) -> int:
        """Rows of the candidates."""
        last = 0 if isinstance(self.given, Features) else 1
        return self.matrix.shape[last] - self.labelled

    def labelled_block(self) -> Float[np.ndarray, "labelled labelled"]:
        """K_LL."""
        if isinstance(self.given, Features):
            rows = self.matrix[: self.labelled]
            return np.asarray(rows @ rows.T, np.float64)
        return np.asarray(self.matrix[: self.labelled, : self.labelled], np.float64)

    def cross(self, start: int, stop: int) -> Matrix:
        """K_L,x for the candidates' rows from start to stop, in float64."""
        own = slice(self.labelled + start, self.labelled + stop)
        if isinstance(self.given, Features):
            block = self.matrix[: self.labelled] @ self.matrix[own].T
        else:
            block = self.matrix[: self.labelled, own]
        return block.astype("float64")

    def diagonal(self) -> Float[np.ndarray, " candidates"]:
        """k(x, x) of the candidates' rows."""
        if isinstance(self.given, Cross):
            return np.array(self.given.diagonal[self.labelled :], np.float64)
        if isinstance(self.given, Kernel):
            return np.array(self.matrix.diagonal()[self.labelled :], np.float64)
        squares = np.empty(self.candidates)
        step = max(1, _FINITE_ENTRIES // self.matrix.shape[1])
        for start in range(0, len(squares), step):  # in float64, a few rows at a time
            rows = self.matrix[self.labelled + start : self.labelled + start + step]
            wide = np.asarray(rows, np.float64)
            squares[start : start + step] = np.einsum("ij,ij->i", wide, wide)
        return squares

    def candidate_rows(
        self, sample: np.ndarray, start: int, stop: int
    ) -> Float[np.ndarray, "chosen candidates"]:
        """K_x,U for the sample's rows from start to stop; of a dense or a cross kernel."""
        chosen = np.arange(start, stop) if isinstance(self.given, Cross) else sample[start:stop]
        return np.asarray(self.matrix[self.labelled + chosen, self.labelled :], np.float64)


def check_finite(name: str, array: Matrix) -> None:
    """Refuse entries that are not finite, a few rows at a time.

    Raises:
        KernelError: there are some.
    """
    step = max(1, _FINITE_ENTRIES * len(array) // max(array.size, 1))
    for start in range(0, len(array), step):
        if not np.isfinite(np.asarray(array[start : start + step])).all():
            raise KernelError(f"the {name} hold entries that are not finite.")
