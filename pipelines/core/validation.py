"""Validation of images, labels and counts from a user's own program."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipelines.core.errors import PipelineError
from trainer.errors import DataError
from trainer.pool import Pool


def whole(value: object) -> int | None:
    """The whole number of a Python or NumPy number, or of an array or tensor without axes.

    None for anything else: truth values, text, NaN, 0.5, and arrays with axes even of one element.
    """
    if isinstance(value, np.ndarray | np.generic | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    number: Any = value
    return int(number) if number == int(number) else None


def checked_count(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        PipelineError: it is none.
    """
    number = whole(value)
    if number is None or number < least:
        raise PipelineError(f"{name} is {value!r}; it must be a whole number, {least} or more.")
    return number


def checked_images(images: object) -> np.ndarray:
    """Images as float32 (examples, channels, height, width).

    Raises:
        PipelineError: they are no array or tensor of finite, normalised images.
    """
    array = images
    if isinstance(images, torch.Tensor) and images.layout == torch.strided:
        array = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()
    if not isinstance(array, np.ndarray) or array.ndim != 4 or not len(array):
        shaped = isinstance(array, np.ndarray)
        raise PipelineError(
            f"images are {f'shape {array.shape}' if shaped else type(images).__name__}; they must "
            "be an array or tensor of shape (examples, channels, height, width)."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise PipelineError(
            f"images have dtype {array.dtype}; give them as the network takes them: floating "
            "point and normalised."
        )
    if np.ma.is_masked(array):
        raise PipelineError("images are masked in part; fill these pixels as the network expects.")
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
        single = np.asarray(array).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(single).all(axis=(1, 2, 3)))
    if len(bad):
        raise PipelineError(f"images {bad[:5].tolist()} hold NaN or infinite values.")
    return single


def checked_labels(labelled: object, examples: int) -> tuple[Pool, np.ndarray]:
    """The pool, and int64 labels of its labelled images in their order.

    Indices may be text, as the keys of JSON are.

    Args:
        labelled: {index of an image: class from 0}.
        examples: number of images.

    Raises:
        PipelineError: no labels, an image that is labelled twice, or with no whole number from 0.
        DataError: an index of no image.
    """
    if not isinstance(labelled, Mapping):
        raise PipelineError(
            f"labelled is a {type(labelled).__name__}; it must be the labels so far as a mapping "
            "{index into images: class}, without the images that have none."
        )
    if not labelled:
        raise PipelineError("the labelled set is empty: label a few images at random first.")
    found: dict[int, int] = {}
    keys: dict[int, object] = {}
    for key, label in labelled.items():
        index = checked_index(key, examples)
        if index in found:
            raise PipelineError(
                f"image {index} is labelled twice, as {keys[index]!r} and as {key!r}: keep one."
            )
        found[index], keys[index] = checked_label(label, index), key
    return Pool.of(examples, list(found)), np.array(list(found.values()), np.int64)


def checked_index(key: object, examples: int | None = None) -> int:
    """The index of an image, given as a whole number or its digits.

    Raises:
        PipelineError: neither.
        DataError: there is no such image among the examples.
    """
    digits = isinstance(key, str) and key.isascii() and key.isdigit()
    index = int(key) if isinstance(key, str) and digits else whole(key)
    if index is None:
        raise PipelineError(
            f"an image is numbered {key!r}; indices into images are whole numbers from 0."
        )
    if examples is not None and not 0 <= index < examples:
        raise DataError(
            f"image {index} is out of range: there are {examples} images, 0 to {examples - 1}."
        )
    return index


def checked_label(label: object, index: int, classes: int | None = None) -> int:
    """The class of an image.

    Raises:
        PipelineError: it is no whole number from 0, or there are not as many classes.
    """
    number = whole(label)
    most = 2**31 if classes is None else classes
    if number is not None and 0 <= number < most:
        return number
    shown = repr(label.item() if isinstance(label, np.generic) else label)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    needed = "from 0" if classes is None else f"from 0 to {classes - 1}"
    if label is None or (isinstance(label, float) and math.isnan(label)):
        advice = "leave images without a label out"
    elif isinstance(label, str):
        advice = "give the number of the class in the order of the network's logits"
    elif getattr(label, "shape", ()) or isinstance(label, list | tuple):
        advice = "of a row with an entry a class, give the position of the largest, its argmax"
    else:
        advice = "give the class as the network's loss takes it"
    raise PipelineError(
        f"image {index} is labelled {shown}; labels are whole numbers {needed}: {advice}."
    )
