"""Which image a message means: the data set's own number of it, not its place in what was computed.

From a refusal by the network or its kernel, which know images by their places, to the same refusal
by the numbers that a person has given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

import kernel.errors
import trainer.predict

_NUMBERS = "numbered as in the data set"


@contextmanager
def numbered(
    indices: Sequence[int] | np.ndarray, tests: Sequence[int] | np.ndarray = ()
) -> Iterator[None]:
    """Name images by their numbers, if their logits, features or gradients are not finite.

    Args:
        indices: data-set indices of the images that what is done within is given, in their order.
        tests: numbers of the test images that come after them, if any do.

    Raises:
        NetworkError, KernelError: what is raised within, renamed.
    """
    try:
        yield
    except (trainer.predict.NotFiniteError, kernel.errors.NotFiniteError) as error:
        names = [int(index) for index in indices] + [f"test image {n}" for n in tests]
        raise error.renamed(names, _NUMBERS) from None
