"""From a person's own images, in a folder, zip or tar, to a data set.

The images lie in train/<class>/… and test/<class>/…, in any format that Pillow reads and in any
size. Nothing is unpacked to the disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from trainer.dataset import Dataset, assemble
from trainer.errors import DataError
from trainer.gallery import Entry, Parts, list_entries, read_headers, read_pixels
from trainer.pixels import Header

DEFAULT_SIZE = 64
LARGEST_KEPT = 256
_SPLITS = ("train", "test")
_WANTED = "Arrange the images as train/<class>/… and test/<class>/…"


class Layout(NamedTuple):
    """Which files of a folder or archive are images, and of which class.

    Attributes:
        files: path inside of each image, sorted.
        is_train: whether it lies in train.
        labels: its class, an index into class_names.
        class_names: sorted.
    """

    files: tuple[Parts, ...]
    is_train: Bool[np.ndarray, " files"]
    labels: Int64[np.ndarray, " files"]
    class_names: tuple[str, ...]


def read_images(path: Path, image_size: int | None = None) -> Dataset:
    """The data set in a person's own folder, zip or tar of train/<class>/… and test/<class>/….

    Class order is that of the sorted folder names, image order that of the sorted paths. Images are
    grayscale if all are stored so, else RGB. A horizontal flip is not taken to keep the label,
    because nothing is known about the images.

    Args:
        path: the folder or archive; a single folder around train and test is passed through.
        image_size: every image is scaled so that its shorter side has this many pixels, and cropped
            to a square around its centre. Without it, images that all have one size of at most
            256 x 256 keep it (also where it is not square); others get 64.

    Raises:
        DataError: the layout is another one, or a file is corrupt; the message names it.
    """
    layout = find_layout(path, list_entries(path))
    headers = read_headers(path, layout.files)
    height, width = choose_size(headers, image_size)
    channels = 1 if all(header.grayscale for header in headers) else 3
    pixels = read_pixels(path, layout.files, height, width, channels)
    train, test = layout.is_train, ~layout.is_train
    return assemble(
        "images",
        (pixels[train], layout.labels[train]),
        (pixels[test], layout.labels[test]),
        layout.class_names,
        flip=False,
    )


def choose_size(headers: Sequence[Header], image_size: int | None) -> tuple[int, int]:
    """Height and width that all images get; `read_images` says which."""
    if image_size is not None:
        return image_size, image_size
    sizes = {(header.height, header.width) for header in headers}
    common = next(iter(sizes)) if len(sizes) == 1 else None
    if common is not None and max(common) <= LARGEST_KEPT:
        return common
    return DEFAULT_SIZE, DEFAULT_SIZE


def find_layout(path: Path, entries: Sequence[Entry]) -> Layout:
    """Splits and classes of the images in a folder or archive.

    Args:
        path: what an error calls it.
        entries: everything in it, sorted.

    Raises:
        DataError: train or test is absent, a class is empty or has no train images, or an image
            lies in no class folder.
    """
    depth = _depth_of_splits(path, entries)
    inside = [
        entry
        for entry in entries
        if len(entry.parts) > depth + 1 and entry.parts[depth].lower() in _SPLITS
    ]
    files = tuple(entry.parts for entry in inside if not entry.folder)
    stray = next((parts for parts in files if len(parts) == depth + 2), None)
    if stray is not None:
        raise DataError(f"{Path(path, *stray)} lies in no class folder. {_WANTED}.")
    filled = {parts[: depth + 2] for parts in files}
    empty = sorted({entry.parts[: depth + 2] for entry in inside} - filled)
    if empty:
        raise DataError(
            f"the class folder {Path(path, *empty[0])} holds no images ({len(empty)} such). Put "
            "images into it or delete it."
        )
    is_train = np.array([parts[depth].lower() == "train" for parts in files], bool)
    names = [parts[depth + 1] for parts in files]
    class_names = sorted({name for name, train in zip(names, is_train, strict=True) if train})
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise DataError(
            f"{path}: class(es) {', '.join(unknown)} have test images and no train images. Put "
            "some into train, or delete the folder(s) from test."
        )
    index = {name: label for label, name in enumerate(class_names)}
    labels = np.array([index[name] for name in names], np.int64)
    return Layout(files, is_train, labels, tuple(class_names))


def _depth_of_splits(path: Path, entries: Sequence[Entry]) -> int:
    """How many folders lie around train and test."""
    depth = 0
    while True:
        folders = {
            entry.parts[depth]
            for entry in entries
            if len(entry.parts) > depth + 1 or (entry.folder and len(entry.parts) == depth + 1)
        }
        found = {folder.lower() for folder in folders}.intersection(_SPLITS)
        if len(found) == len(_SPLITS):
            return depth
        if found or len(folders) != 1:
            lacking = " or ".join(split for split in _SPLITS if split not in found)
            seen = ", ".join(sorted(folders)) or "no folders"
            raise DataError(
                f"{path} has no folder {lacking}: found {seen}. {_WANTED} "
                "(about a fifth of each class in test)."
            )
        depth += 1
