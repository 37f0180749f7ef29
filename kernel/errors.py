"""Exceptions of the kernel side."""

from collections.abc import Sequence

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
        self, places: Sequence[int | str], where: str, numbered: str = "places in the set given"
    ):
        """Name the images, a few of them, and the place in the network."""
        self.places, self.where = list(places), where
        more = f" and {len(self.places) - _NAMED} more" if len(self.places) > _NAMED else ""
        named = ", ".join(map(str, self.places[:_NAMED]))
        super().__init__(
            f"the gradients of images [{named}]{more} ({numbered}) are not finite: {where}. Look "
            "for NaN or huge values in those images, or in the network's weights."
        )

    def renamed(self, names: Sequence[int | str], numbered: str) -> "NotFiniteError":
        """The same of images that whoever gave them numbers otherwise.

        Args:
            names: of the images of the set, by place.
            numbered: what these names are, in words.
        """
        return NotFiniteError([names[int(place)] for place in self.places], self.where, numbered)
