"""What the kernel side refuses, and why."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_NAMED = 5


class KernelError(ValueError):
    """A kernel that cannot be computed or used: shapes, memory, numbers that are not finite."""


class SingularKernelError(KernelError):
    """A labelled block that has no Cholesky factor, even with the largest jitter."""


class NotFiniteError(KernelError):
    """Gradients that hold NaN or infinity.

    Attributes:
        places: of their images, in the set that was given or as whoever gave it numbers them.
        where: in the network, in words.
    """

    def __init__(
        self, places: Sequence[int], where: str, numbered: str = "places in the set given"
    ):
        """Name the images, a few of them, and the place in the network."""
        self.places, self.where = list(places), where
        more = f" and {len(self.places) - _NAMED} more" if len(self.places) > _NAMED else ""
        super().__init__(
            f"the gradients of images {self.places[:_NAMED]}{more} ({numbered}) are not finite: "
            f"{where}. Look for NaN or huge values in those images, or in the network's weights."
        )


@contextmanager
def numbered(indices: Sequence[int]) -> Iterator[None]:
    """Name images by the data set's own numbers, if their gradients are not finite.

    Args:
        indices: of the images that are given to what is done within, in their order.
    """
    try:
        yield
    except NotFiniteError as error:
        named = [int(indices[place]) for place in error.places]
        raise NotFiniteError(named, error.where, "indices of the data set") from None
