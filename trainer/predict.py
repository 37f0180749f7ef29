"""From a trained network and normalised images to logits, in eval mode and batch by batch.

Whatever maps images to something other than one finite row of logits an image is refused here,
so that nothing downstream has to ask again.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import nn

from trainer.errors import DataError, NetworkError
from trainer.piecewise import Images


class NotFiniteError(NetworkError):
    """Logits or features that are not finite: of a bad image, or of weights that diverged.

    Attributes:
        what: which numbers.
        place: of the first such image in the set that was given, or as whoever gave it numbers it.
        cause: in words.
    """

    def __init__(
        self, what: str, place: int | str, cause: str, numbered: str = "place in the set given"
    ):
        """Name the image and what may be the cause."""
        self.what, self.place, self.cause = what, place, cause
        super().__init__(f"the {what} of image {place} ({numbered}) are not finite: {cause}")

    def renamed(self, names: Sequence[int | str], numbered: str) -> "NotFiniteError":
        """The same of images that whoever gave them numbers otherwise.

        Args:
            names: of the images of the set, by place.
            numbered: what these names are, in words.
        """
        return NotFiniteError(self.what, names[int(self.place)], self.cause, numbered)


def placement(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the floating dtype of a network: those of its first floating tensor."""
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def to_tensor(
    images: Num[np.ndarray, "examples channels height width"], network: nn.Module
) -> torch.Tensor:
    """A copy of images with the device and dtype of the network.

    Raises:
        DataError: the images are not floating point, so nobody normalised them.
    """
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"images have dtype {images.dtype}; a network needs normalised floating point images: "
            "pass them through Dataset.normalise first"
        )
    device, dtype = placement(network)
    return torch.tensor(np.ascontiguousarray(images), device=device, dtype=dtype)


def forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The network's logits for one batch, in whatever mode and gradient context it is called.

    Args:
        network: maps (batch, channels, height, width) to (batch, classes).
        images: one batch.

    Raises:
        NetworkError: it fails on these images, or returns anything but a (batch, classes) tensor.
    """
    try:
        output = network(images)
    except RuntimeError as error:
        raise NetworkError(
            f"the network failed on images of shape {tuple(images.shape)} "
            f"(batch, channels, height, width): {error}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise NetworkError(
            f"the network returned a {type(output).__name__}; it must return one tensor of logits "
            "of shape (batch, classes): wrap it in a module that picks the logits out"
        )
    if output.ndim != 2 or output.shape[0] != images.shape[0]:
        raise NetworkError(
            f"the network returned a tensor of shape {tuple(output.shape)} for "
            f"{images.shape[0]} images; it must return logits of shape ({images.shape[0]}, classes)"
        )
    return output


def logits(
    network: nn.Module,
    images: Images,
    batch_size: int = 512,
) -> Float32[np.ndarray, "examples classes"]:
    """Eval-mode logits of every image; the same for any batch size up to rounding.

    Args:
        network: in eval mode; its own device is used and its state is left as it was.
        images: (examples, channels, height, width), normalised, floating point, read batch by
            batch.
        batch_size: how many images go through the network at once.

    Raises:
        NetworkError: the network is in train mode, does not return (batch, classes) logits, or
            returns one that is not finite (NotFiniteError, naming the first such image).
        DataError: the images are not floating point.
    """
    refuse_training(network)
    return answers(network, images, batch_size)


def refuse_training(network: nn.Module) -> None:
    """Refuse a network of which a part is in train mode.

    Raises:
        NetworkError: naming the first such part.
    """
    training = [name or "the network itself" for name, m in network.named_modules() if m.training]
    if training:
        raise NetworkError(
            f"{len(training)} modules are in train mode, the first of them {training[0]}; "
            "BatchNorm and dropout make logits depend on the batch: call eval() on the network"
        )


def answers(
    network: nn.Module,
    images: Images,
    batch_size: int = 512,
) -> Float32[np.ndarray, "examples classes"]:
    """Finite logits of every image, batch by batch, in whatever mode the network is.

    Raises:
        NetworkError, DataError: as `logits`, but for the mode.
    """
    if batch_size < 1:
        raise NetworkError(f"batch_size is {batch_size}; it must be at least 1")
    rows = []
    with torch.no_grad():
        for start in range(0, max(len(images), 1), batch_size):
            batch = to_tensor(images[start : start + batch_size], network)
            rows.append(forward(network, batch).float().cpu().numpy())
            finite = np.isfinite(rows[-1]).all(axis=1)
            if not finite.all():
                index = start + int(np.argmin(finite))
                cause = (
                    "the image itself has non-finite pixels"
                    if not np.isfinite(images[index : index + 1]).all()
                    else "the image is finite, so the weights or running statistics are not"
                )
                raise NotFiniteError("logits", index, cause)
    return np.concatenate(rows)
