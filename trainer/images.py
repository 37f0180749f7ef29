"""A user's own images as a data set: train/CLASS/…, test/CLASS/…, unlabelled/….

In a folder, zip or tar, or a folder with train.zip and test.zip; in any format that Pillow reads
and in any size. Nothing is unpacked to the disk. Partly labelled sets may have `unlabelled/` at
any depth, or be nothing but images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from trainer.dataset import UNLABELLED, Dataset, assemble
from trainer.errors import DataError
from trainer.image_files import (
    SPLITS,
    Entry,
    Header,
    Parts,
    list_entries,
    read_headers,
    read_pixels,
)

DEFAULT_SIZE = 64
LARGEST_KEPT = 256
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
        if len(entry.parts) > depth + 1 and entry.parts[depth].lower() in SPLITS
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
    """Depth of the folders around train and test."""
    depth = 0
    while True:
        folders = {
            entry.parts[depth]
            for entry in entries
            if len(entry.parts) > depth + 1 or (entry.folder and len(entry.parts) == depth + 1)
        }
        found = {folder.lower() for folder in folders}.intersection(SPLITS)
        if len(found) == len(SPLITS):
            return depth
        if found or len(folders) != 1:
            lacking = " or ".join(split for split in SPLITS if split not in found)
            seen = ", ".join(sorted(folders)) or "no folders"
            raise DataError(
                f"{path} has no folder {lacking}: found {seen}. {_WANTED} "
                "(about a fifth of each class in test)."
            )
        depth += 1


_UNLABELLED = ("unlabelled", "unlabeled")


def read_partly_labelled(
    path: Path, image_size: int | None = None, class_names: Sequence[str] = ()
) -> Dataset:
    """The data set in a person's own folder, zip or tar, whatever of it is labelled.

    Where everything is (train/<class>/… and test/<class>/… and nothing else), as `read_images`.
    Else train images are those of train, then those without a label, each sorted by path.

    Args:
        path: the folder or archive; a single folder around all others is passed through.
        image_size: as of `read_images`.
        class_names: names of the classes, in this order; those of class folders that are not
            among them follow, sorted. Needed as far as there are no class folders.

    Raises:
        DataError: no images to label, fewer than two classes, an image in train or test that lies
            in no class folder, or a corrupt file; the message names it.
    """
    files = [entry.parts for entry in list_entries(path) if not entry.folder]
    depth = _depth(files)
    tops = {parts[depth].lower() for parts in files if len(parts) > depth + 1}
    if not tops.intersection(_UNLABELLED) and tops.intersection(SPLITS) and not class_names:
        return read_images(path, image_size)
    split, names = _sorted_out(path, files, depth)
    names = [*class_names, *(name for name in names if name not in class_names)]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{path}: the classes are {', '.join(names) or 'not known'}; name at least two, each "
            "once (--class-names cat dog), or give them folders, train/<class>/…."
        )
    if UNLABELLED not in split["train"].values():
        raise DataError(
            f"{path} holds no image without a label; put those to be labelled into unlabelled/."
        )
    ordered: list[Parts] = [*split["train"], *split["test"]]
    headers = read_headers(path, ordered)
    height, width = choose_size(headers, image_size)
    channels = 1 if all(header.grayscale for header in headers) else 3
    pixels = read_pixels(path, ordered, height, width, channels)
    index = {name: label for label, name in enumerate(names)} | {UNLABELLED: UNLABELLED}
    train, test = (
        np.array([index[name] for name in split[part].values()], np.int64) for part in SPLITS
    )
    return assemble(
        "images",
        (pixels[: len(train)], train),
        (pixels[len(train) :], test),
        names,
        flip=False,
        complete=False,
    )


def _depth(files: Sequence[Parts]) -> int:
    """Depth of the folders around the first one with a telling name."""
    depth = 0
    while files and all(len(parts) > depth + 1 for parts in files):
        tops = {parts[depth].lower() for parts in files}
        if len(tops) > 1 or tops.intersection((*SPLITS, *_UNLABELLED)):
            break
        depth += 1
    return depth


def _sorted_out(
    path: Path, files: Sequence[Parts], depth: int
) -> tuple[dict[str, dict[Parts, str | int]], list[str]]:
    """Class name or UNLABELLED of each file of `train` and of `test`, and all class names."""
    split: dict[str, dict[Parts, str | int]] = {"train": {}, "test": {}}
    unlabelled: dict[Parts, str | int] = {}
    for parts in files:
        top = parts[depth].lower()
        if top not in SPLITS or len(parts) == depth + 1:
            unlabelled[parts] = UNLABELLED
        elif len(parts) == depth + 2:
            raise DataError(
                f"{Path(path, *parts)} lies in no class folder: move it to {top}/<class>/, or to "
                "unlabelled/."
            )
        else:
            split[top][parts] = parts[depth + 1]
    names = sorted({str(name) for part in split.values() for name in part.values()})
    split["train"] |= unlabelled
    return split, names
