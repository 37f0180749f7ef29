"""A set of images in chunks of one shape, each with its cotangents, on several cores.

From images, and a row of numbers for each, to padded pieces on the device in the dtype of a
network; the same shapes from round to round, so that what is compiled for one serves all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kernel.engine.ahead import in_order, shared
from kernel.engine.chunking import passing_chunk
from kernel.engine.problem import Request, problem_of
from kernel.errors import KernelError
from kernel.model import Model

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
        _check(images, cotangents)
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


def _check(images: np.ndarray, cotangents: np.ndarray) -> None:
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
