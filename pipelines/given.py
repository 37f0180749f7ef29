"""What people give for a query of their own, checked: images, labels, and whether they fit."""

from collections.abc import Mapping

import numpy as np
import torch

from pipelines.errors import PipelineError
from pipelines.numbered import numbered
from pipelines.strategies.situation import Situation
from trainer.pool import Pool
from trainer.predict import logits


def checked_images(images: np.ndarray | torch.Tensor) -> np.ndarray:
    """Images as float32.

    Raises:
        PipelineError: they are no array of finite, normalised images.
    """
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    if not isinstance(array, np.ndarray) or array.ndim != 4:
        found = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(images).__name__
        raise PipelineError(
            f"images are {found}; they must be an array or tensor of shape (examples, channels, "
            "height, width)."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise PipelineError(
            f"images have dtype {array.dtype}; give them as the network takes them: floating "
            "point and normalised."
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))
    if len(bad):
        raise PipelineError(f"images {bad[:5].tolist()} hold NaN or infinite values.")
    return array.astype(np.float32, copy=False)


def checked_labels(labelled: Mapping[int, int], examples: int) -> tuple[Pool, np.ndarray]:
    """The pool, and int64 labels of its labelled images in their order.

    Raises:
        PipelineError: no labels, or some that are no whole numbers from 0.
        DataError: indices that are repeated or out of range.
    """
    if not isinstance(labelled, Mapping):
        raise PipelineError(
            f"labelled is a {type(labelled).__name__}; it must be the labels so far as a mapping "
            "{index into images: class}."
        )
    if not labelled:
        raise PipelineError("the labelled set is empty: label a few images at random first.")
    wrong = [(i, c) for i, c in labelled.items() if int(c) != c or c < 0]
    if wrong:
        raise PipelineError(
            f"image {wrong[0][0]} is labelled {wrong[0][1]!r}; labels are whole numbers from 0."
        )
    pool = Pool.of(examples, np.fromiter(labelled, np.int64, len(labelled)))
    return pool, np.array([labelled[int(i)] for i in pool.labelled], np.int64)


def check_classes(situation: Situation) -> None:
    """Refuse labels that are no class of the network.

    Raises:
        PipelineError: there is one.
    """
    if situation.answered is None:  # whoever needs all of them asks when it does
        some = situation.candidates[:1]
        with numbered(some):
            one = logits(situation.network, situation.images(some))
    else:
        one = situation.candidate_logits
    classes = one.shape[1]
    outside = np.flatnonzero(situation.labels >= classes)
    if len(outside):
        index, label = situation.labelled[outside[0]], situation.labels[outside[0]]
        raise PipelineError(
            f"image {index} is labelled {label} and the network has {classes} logits: labels go "
            f"from 0 to {classes - 1}. Either the label is wrong or the network has the wrong "
            "number of classes."
        )
