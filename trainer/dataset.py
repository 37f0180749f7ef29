"""`Dataset`: immutable, checked arrays of pixels and labels with their normalisation.

Images stay uint8; `normalise` gives float32. Mean and standard deviation are those of the train
images, counted exactly.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from trainer.disk_images import DiskImages
from trainer.errors import DataError, some

Pixels = np.ndarray | DiskImages  # uint8, (examples, channels, height, width)
Split = tuple[Pixels, np.ndarray]  # images, labels

UNLABELLED = -1  # instead of a class, where nobody has named it yet

_CHUNK_BYTES = 2**24  # of pixels counted at a time: bincount makes an int64 copy of them


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for classification.

    Attributes:
        name: such as `mnist`.
        train_images: the pool that is labelled image by image, uint8, NCHW; an array, or images
            that stay on disk and are decoded where they are read.
        train_labels: class of each train image, 0 to classes-1.
        test_images: never queried, same size and channels.
        test_labels: class of each test image.
        class_names: name of each class, in the order of the labels.
        mean: mean of each channel over the train images, pixels in [0, 1].
        std: standard deviation likewise; 1 for a channel that never changes.
        flip: whether a horizontal flip keeps the label.
        complete: whether every train image has a label, and there are test images. A user's own
            images need not be: UNLABELLED then stands for the labels still to be given.
        remarks: sentences of whoever read it, such as on folders that were not read.

    Raises:
        DataError: arrays that do not fit each other, or labels that name no class.
    """

    name: str
    train_images: UInt8[np.ndarray, "examples channels height width"] | DiskImages
    train_labels: Int64[np.ndarray, " examples"]
    test_images: UInt8[np.ndarray, "tests channels height width"] | DiskImages
    test_labels: Int64[np.ndarray, " tests"]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    complete: bool = True
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the arrays belong together."""
        train, test = (self.train_images, self.train_labels), (self.test_images, self.test_labels)
        _check(self.name, train, test, self.class_names, self.complete)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to show wherever the data or an accuracy on them are reported."""
        train, test = (
            np.bincount(labels[labels >= 0], minlength=self.classes)
            for labels in (self.train_labels, self.test_labels)
        )
        notes = [*self.remarks]
        untested = [n for n, count in zip(self.class_names, test, strict=True) if not count]
        if untested and test.any():
            notes.append(
                f"test has no images of {some(untested)}: the test accuracy is that of the other "
                f"{self.classes - len(untested)} of {self.classes} classes."
            )
        untrained = [
            name
            for name, without, tested in zip(self.class_names, train == 0, test, strict=True)
            if without and tested
        ]
        if untrained:
            notes.append(
                f"test has images of {some(untrained)} and train has none with that label."
            )
        return tuple(notes)

    def fingerprint(self) -> dict[str, str]:
        """Digests of all that a result depends on, beside the names of the classes."""
        digests = {}
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            array = getattr(self, name)
            digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
            on_disk = isinstance(array, DiskImages)
            digest.update(array.digest() if on_disk else np.ascontiguousarray(array).data)
            digests[name] = f"sha256:{digest.hexdigest()[:16]}"
        normalisation = hashlib.sha256(json.dumps([self.mean, self.std]).encode())
        return {**digests, "normalisation": f"sha256:{normalisation.hexdigest()[:16]}"}

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, as `normalise` gives it."""
        _, _, height, width = self.train_images.shape
        return len(self.mean), height, width

    def normalise(
        self, images: Shaped[np.ndarray, "batch channels height width"]
    ) -> Float32[np.ndarray, "batch seen height width"]:
        """Pixels as a network sees them: (x/255 - mean) / std, float32.

        Where there is a mean for each of several channels, images of one are given them all.

        Raises:
            DataError: images that are not uint8, or have another number of channels.
        """
        if images.dtype != np.uint8 or images.shape[1] not in (1, len(self.mean)):
            raise DataError(
                f"got images of type {images.dtype} with {images.shape[1]} channel(s); {self.name} "
                f"normalises uint8 images (0 to 255) with {len(self.mean)} channel(s)."
            )
        mean = np.array(self.mean, np.float32)[:, None, None]
        std = np.array(self.std, np.float32)[:, None, None]
        shape = (len(images), len(self.mean), *images.shape[2:])
        result = np.broadcast_to(images, shape).astype(np.float32, order="C")
        result /= 255
        result -= mean
        result /= std
        return result


def with_preprocessing(
    dataset: Dataset,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
) -> Dataset:
    """The data set, normalised for a network: by another mean, deviation and number of channels.

    Args:
        dataset: as it was read.
        mean: of each channel, or one for all; None keeps that of the images.
        std: likewise.
        channels: of the network; grayscale images are repeated where it takes three.

    Raises:
        DataError: another number of values than there are channels.
    """
    if len(dataset.mean) == channels and mean is None and std is None:
        return dataset
    stored = dataset.train_images.shape[1]
    remarks = dataset.remarks
    if stored == 1 < channels:
        remarks += (f"grayscale images are given to the network as {channels} equal channels.",)
    elif stored != channels:
        raise DataError(
            f"{dataset.name} has {stored} channel(s) and the network takes {channels}: give "
            "another network, or images of as many channels."
        )
    values = {}
    for name, given in (("mean", mean), ("std", std)):
        own = getattr(dataset, name) if given is None else tuple(map(float, given))
        own = own * channels if len(own) == 1 else own
        if len(own) != channels:
            raise DataError(
                f"{name} has {len(own)} values and images have {channels} channel(s): give one for "
                "each."
            )
        values[name] = own
    return replace(dataset, **values, remarks=remarks)


def assemble(
    name: str,
    train: Split,
    test: Split,
    class_names: Sequence[str],
    *,
    flip: bool,
    complete: bool = True,
    remarks: Sequence[str] = (),
) -> Dataset:
    """A data set from (images, labels) of each split, its mean and std counted here.

    Raises:
        DataError: arrays that do not fit each other.
    """
    # before the types of the arrays are checked, whose message says less
    _check(name, train, test, class_names, complete)
    mean, std = moments(train[0])
    return Dataset(
        name=name,
        train_images=train[0],
        train_labels=np.asarray(train[1], np.int64),
        test_images=test[0],
        test_labels=np.asarray(test[1], np.int64),
        class_names=tuple(class_names),
        mean=mean,
        std=std,
        flip=flip,
        complete=complete,
        remarks=tuple(remarks),
    )


def moments(
    images: UInt8[np.ndarray, "examples channels height width"] | DiskImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], from exact counts.

    A channel that never changes gets the deviation 1, so that dividing by it is harmless.
    """
    channels = images.shape[1]
    counts = np.zeros((channels, 256))
    each = max(1, _CHUNK_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), each):
        chunk = images[start : start + each]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    values = np.arange(256) / 255
    mean = share @ values
    variance = np.einsum("cv,cv->c", share, (values[None, :] - mean[:, None]) ** 2)
    constant = np.count_nonzero(counts, axis=1) <= 1
    std = np.where(constant, 1.0, np.sqrt(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def stratified_split(
    labels: Int64[np.ndarray, " examples"], fraction: float, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " tests"]]:
    """Indices for train and for test, both ascending: the same fraction of every class for test.

    A class of n gives round(fraction * n) images, at least one.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        size = max(1, round(fraction * len(members)))
        chosen.append(rng.permutation(members)[:size])
    test = np.sort(np.concatenate(chosen)).astype(np.int64)
    train = np.setdiff1d(np.arange(len(labels)), test).astype(np.int64)
    return train, test


def _check(
    name: str, train: Split, test: Split, class_names: Sequence[str], complete: bool
) -> None:
    classes = len(class_names)
    if classes < 2:
        raise DataError(
            f"{name} has {classes} class(es) ({', '.join(class_names)}); classification needs at "
            "least 2."
        )
    _check_split(f"{name} train", *train, classes, 0 if complete else UNLABELLED)
    if complete or len(test[0]):
        _check_split(f"{name} test", *test, classes)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{name}: train images are {train[0].shape[1:]} and test images {test[0].shape[1:]} "
            "(channels, height, width); they must be the same."
        )


def _check_split(
    what: str, images: Pixels, labels: np.ndarray, classes: int, least: int = 0
) -> None:
    if len(images) == 0:
        raise DataError(f"{what} has no images; at least one is needed.")
    if len(images) != len(labels):
        raise DataError(
            f"{what} has {len(images)} images and {len(labels)} labels; there must be one label "
            "for each image: the files do not belong together."
        )
    wrong = np.flatnonzero((labels < least) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{what}: label out of range: image {wrong[0]} has label {labels[wrong[0]]}, and "
            f"{classes} classes have labels 0 to {classes - 1} ({len(wrong)} such labels)."
        )
