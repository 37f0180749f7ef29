"""Errors of the kernel side: refusals with what would help."""

from collections.abc import Sequence

_NAMED = 5


class KernelError(ValueError):
    """A kernel that cannot be computed or used: shapes, memory, numbers that are not finite."""


class SingularKernelError(KernelError):
    """A labelled block that has no Cholesky factor, even with the largest jitter."""


class NotFiniteError(KernelError):
    """Gradients that hold NaN or infinity.

    Attributes:
        images: positions in the set given, or the caller's names.
        where: in the network, in words.
    """

    def __init__(
        self, images: Sequence[int | str], where: str, naming: str = "places in the set given"
    ):
        """Name the images, a few of them, and the layer.

        Args:
            images: positions or names.
            where: in the network, in words.
            naming: says in words what the names are.
        """
        self.images, self.where = list(images), where
        more = f" and {len(self.images) - _NAMED} more" if len(self.images) > _NAMED else ""
        named = ", ".join(map(str, self.images[:_NAMED]))
        super().__init__(
            f"the gradients of images [{named}]{more} ({naming}) are not finite: {where}. Look "
            "for NaN or huge values in those images, or in the network's weights."
        )

    def renamed(self, names: Sequence[int | str], naming: str) -> "NotFiniteError":
        """The same error with the caller's names.

        Args:
            names: of all images of the set, by position.
            naming: says in words what these names are.
        """
        return NotFiniteError([names[int(image)] for image in self.images], self.where, naming)
