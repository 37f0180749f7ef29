"""The pool: labelled and unlabelled train images, as data-set indices.

Immutable; `acquire` returns the next pool. An index that is labelled twice, repeated or out of
range is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from trainer.errors import DataError, some


@dataclass(frozen=True, eq=False)
class Pool:
    """A partition of the indices 0 to examples-1, in two arrays that cannot be written to.

    Attributes:
        labelled: in the order in which they were labelled.
        unlabelled: ascending.

    Raises:
        DataError: the two are no partition, or nothing is labelled.
    """

    labelled: Int64[np.ndarray, " labelled"]
    unlabelled: Int64[np.ndarray, " unlabelled"]

    def __post_init__(self) -> None:
        """Check the partition; keep read-only copies."""
        together = np.sort(np.concatenate([self.labelled, self.unlabelled]))
        if not np.array_equal(together, np.arange(len(together))):
            raise DataError(
                "labelled and unlabelled must hold each index from 0 to "
                f"{len(together) - 1} exactly once; use Pool.of to make the one from the other."
            )
        if len(self.labelled) == 0:
            raise DataError(
                "the labelled set is empty; label at least one image first (Pool.initial draws "
                "them at random)."
            )
        kept = {"labelled": self.labelled.copy(), "unlabelled": np.sort(self.unlabelled)}
        for field, array in kept.items():
            array.flags.writeable = False
            object.__setattr__(self, field, array)

    @classmethod
    def initial(cls, examples: int, labelled: int, rng: np.random.Generator) -> "Pool":
        """A pool of `examples` images of which `labelled`, drawn uniformly, are labelled.

        Raises:
            DataError: more are to be labelled than there are, or none.
        """
        if not 1 <= labelled <= examples:
            raise DataError(
                f"{labelled} images are to be labelled at first and the data set has {examples}; "
                f"give a number from 1 to {examples}."
            )
        return cls.of(examples, rng.choice(examples, labelled, replace=False))

    @classmethod
    def of(cls, examples: int, labelled_indices: np.ndarray | Sequence[Any]) -> "Pool":
        """A pool of `examples` images of which those with these indices are labelled.

        Raises:
            DataError: an index is no integer, repeated or out of range, or there is none.
        """
        labelled = _checked(labelled_indices, examples)
        return cls(labelled, np.setdiff1d(np.arange(examples, dtype=np.int64), labelled))

    @property
    def examples(self) -> int:
        """Number of images, labelled or not."""
        return len(self.labelled) + len(self.unlabelled)

    def acquire(self, indices: np.ndarray | Sequence[Any]) -> "Pool":
        """The pool after the images with these indices were labelled, in this order.

        Raises:
            DataError: an index is no integer, repeated, out of range or labelled already, or there
                are more than unlabelled images.
        """
        if len(indices) > len(self.unlabelled):
            raise DataError(
                f"{len(indices)} images are to be labelled and {len(self.unlabelled)} are "
                "unlabelled: the query is larger than the pool. Ask for fewer."
            )
        new = _checked(indices, self.examples)
        known = new[np.isin(new, self.labelled)]
        if len(known):
            raise DataError(
                f"{len(known)} of {len(new)} queried images are labelled already: {some(known)}. "
                "Query dataset-level indices out of `unlabelled`."
            )
        return Pool(np.concatenate([self.labelled, new]), np.setdiff1d(self.unlabelled, new))

    def candidates(
        self, subset: int | None, rng: np.random.Generator
    ) -> Int64[np.ndarray, " candidates"]:
        """The indices to be scored, ascending: a uniform draw of unlabelled ones.

        Args:
            subset: how many; None, or more than there are, for all.
            rng: what draws them; not used where all are taken.

        Raises:
            DataError: subset is less than 1.
        """
        if subset is not None and subset < 1:
            raise DataError(f"subset is {subset}; at least 1 candidate is needed, or None for all.")
        if subset is None or subset >= len(self.unlabelled):
            return self.unlabelled.copy()
        return np.sort(rng.choice(self.unlabelled, subset, replace=False))


def _checked(indices: np.ndarray | Sequence[Any], examples: int) -> Int64[np.ndarray, " indices"]:
    """Indices as int64, every one an integer, within the data set and only there once."""
    array = np.asarray(indices)
    if array.ndim != 1:
        raise DataError(f"indices have the shape {array.shape}; a flat list of them is needed.")
    if array.size == 0:
        return np.empty(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"indices must be integers and are {array.dtype} ({some(array)}). From a mask, take "
            "np.flatnonzero(mask)."
        )
    outside = array[(array < 0) | (array >= examples)]
    if len(outside):
        raise DataError(
            f"{len(outside)} of {len(array)} indices are out of range: {some(outside)}; the data "
            f"set has {examples} images, 0 to {examples - 1}."
        )
    values, counts = np.unique(array, return_counts=True)
    if len(values) < len(array):
        raise DataError(
            f"indices are repeated: {some(values[counts > 1])}. Each image is labelled once."
        )
    return array.astype(np.int64)
