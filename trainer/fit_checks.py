"""What cannot be trained on is refused before the first step, with what to do about it.

From images, labels, a network and settings to nothing, or to one plain message.
"""

import numpy as np
from torch import nn

from trainer import batchnorm
from trainer.errors import FitError
from trainer.train_config import TrainConfig


def check_data(images: np.ndarray, labels: np.ndarray) -> None:
    """Refuse images and labels that do not belong together.

    Raises:
        FitError: they do not, there are none, or an image is not finite.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise FitError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; they must be one whole "
            "number an image, the index of its class"
        )
    if len(images) != len(labels):
        raise FitError(f"there are {len(images)} images and {len(labels)} labels; label each image")
    if len(labels) == 0:
        raise FitError("the labelled set is empty; label at least two images before training")
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise FitError(
            f"image {int(np.argmin(finite))} of the labelled set (counted from 0) has pixels that "
            "are not finite; leave it out or mend it"
        )


def check_network(network: nn.Module, labelled: int, config: TrainConfig) -> None:
    """Refuse a network that cannot be trained on so many images.

    Raises:
        FitError: nothing to train, or batches of one image for BatchNorm.
    """
    if not any(p.requires_grad for p in network.parameters()):
        raise FitError(
            "the network has no trainable parameters; set requires_grad on those to train"
        )
    smallest = labelled // config.plan(labelled)[0]
    if smallest < 2 and batchnorm.has_batchnorm(network):
        raise FitError(
            f"a batch of {smallest} image cannot train BatchNorm, whose statistics need several: "
            "label at least two images, and set batch_size and smallest_batch to 2 or more"
        )


def check_range(labels: np.ndarray, classes: int) -> None:
    """Refuse labels that are no class of the network.

    Raises:
        FitError: naming the first.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise FitError(
            f"label {int(labels[wrong[0]])} of image {int(wrong[0])} of the labelled set is out of "
            f"range: the network has {classes} classes, 0 to {classes - 1}"
        )
