"""A user's own images as a data set: train/CLASS/…, test/CLASS/…, unlabelled/….

In a folder, zip or tar, or a folder with archives in place of these (train.zip, test.zip); in any
format that Pillow reads and in any size. Partly labelled sets may have `unlabelled/` at any depth,
or be nothing but images.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.containers import SPLITS, UNLABELLED_FOLDERS, FileTree, Parts, composed
from trainer.dataset import UNLABELLED, Dataset, assemble
from trainer.disk_images import images_of, list_items
from trainer.errors import DataError, some
from trainer.image_files import Header

DEFAULT_SIZE = 64
LARGEST_KEPT = 256
_WANTED = "Arrange the images as train/<class>/… and test/<class>/…"
_SHORTEST = 3  # letters of a name in which a typo is looked for


class _Image(NamedTuple):
    """A file, whether it is for training, and the name of its class; None where it has none."""

    parts: Parts
    train: bool
    name: str | None


def read_images(path: Path, image_size: int | None = None) -> Dataset:
    """The data set in a user's own folder, zip or tar of train/<class>/… and test/<class>/….

    Class order is that of the sorted folder names, image order that of the sorted paths. Images are
    grayscale if all are stored so, else RGB. A horizontal flip is not taken to keep the label,
    because nothing is known about the images.

    Args:
        path: the folder or archive; a single folder around train and test is passed through.
        image_size: every image is scaled so that its shorter side has this many pixels, and cropped
            to a square around its centre. Without it, images that all have one size of at most
            256 x 256 keep it (also where it is not square); others get 64.

    Raises:
        DataError: train or test is absent, a class is empty or has no train images, an image lies
            in no class folder, two classes look alike, or a file is corrupt; the message names it.
    """
    return _read_labelled(FileTree(path), image_size)


def _read_labelled(tree: FileTree, image_size: int | None) -> Dataset:
    depth = _depth_of_splits(tree)
    inside = [
        entry
        for entry in tree.entries
        if len(entry.parts) > depth + 1 and entry.parts[depth].lower() in SPLITS
    ]
    files = [entry.parts for entry in inside if not entry.folder]
    stray = next((parts for parts in files if len(parts) == depth + 2), None)
    if stray is not None:
        raise DataError(f"{tree.name(stray)} lies in no class folder. {_WANTED}.")
    filled = {parts[: depth + 2] for parts in files}
    empty = sorted({entry.parts[: depth + 2] for entry in inside} - filled)
    if empty:
        raise DataError(
            f"the class folder {tree.name(empty[0])} holds no images ({len(empty)} such). Put "
            "images into it or delete it."
        )
    images = [
        _Image(parts, parts[depth].lower() == "train", composed(parts[depth + 1]))
        for parts in files
    ]
    names = sorted({str(image.name) for image in images if image.train})
    unknown = sorted({str(image.name) for image in images} - set(names))
    if unknown:
        near = next(
            (f" ({a!r} resembles {b!r})" for a in unknown for b in names if _resembles(a, b)), ""
        )
        raise DataError(
            f"{tree.path}: class(es) {', '.join(unknown)} have test images and no train "
            f"images{near}. Put some into train, or rename or delete the folder(s) in test."
        )
    read = {entry.parts[: depth + 1] for entry in inside}
    above = {entry.parts[: depth + 1] for entry in tree.entries if not entry.folder}
    unread = ["/".join(parts) for parts in sorted(above - read)]
    inner = sorted({"/".join(parts[: depth + 3]) for parts in files if len(parts) > depth + 3})
    remarks = []
    if unread:
        remarks.append(f"not read, for only train and test are: {some(unread)}.")
    if inner:
        remarks.append(f"folders in a class's folder are of that class: {some(inner)}.")
    return _assembled(tree, images, names, image_size, remarks)


def _assembled(
    tree: FileTree,
    images: Sequence[_Image],
    class_names: Sequence[str],
    image_size: int | None,
    remarks: Iterable[str] = (),
) -> Dataset:
    """The data set of these images; not complete if one has no class."""
    files = [image.parts for image in images]
    headers, table = list_items(tree, files)
    height, width = _choose_size(headers, image_size)
    channels = 1 if all(header.grayscale for header in headers) else 3
    pixels = images_of(tree, files, table, (channels, height, width))
    index = {name: label for label, name in enumerate(class_names)} | {None: UNLABELLED}
    labels = np.array([index[image.name] for image in images], np.int64)
    if not table.random:
        remarks = [*remarks, "a compressed tar cannot be read at random: its images are in memory."]
    train = np.array([image.train for image in images], bool)
    return assemble(
        "images",
        (pixels.take(np.flatnonzero(train)), labels[train]),
        (pixels.take(np.flatnonzero(~train)), labels[~train]),
        class_names,
        flip=False,
        complete=UNLABELLED not in labels,
        remarks=(*remarks, *_check_alike(tree.path, images, class_names)),
    )


def _choose_size(headers: Sequence[Header], image_size: int | None) -> tuple[int, int]:
    """Height and width that all images get; `read_images` says which."""
    if image_size is not None:
        return image_size, image_size
    sizes = {(header.height, header.width) for header in headers}
    common = next(iter(sizes)) if len(sizes) == 1 else None
    if common is not None and max(common) <= LARGEST_KEPT:
        return common
    return DEFAULT_SIZE, DEFAULT_SIZE


def _depth_of_splits(tree: FileTree) -> int:
    """Depth of the folders around train and test."""
    depth = 0
    while True:
        folders = {
            entry.parts[depth]
            for entry in tree.entries
            if len(entry.parts) > depth + 1 or (entry.folder and len(entry.parts) == depth + 1)
        }
        found = {folder.lower() for folder in folders}.intersection(SPLITS)
        if len(found) == len(SPLITS):
            return depth
        if found or len(folders) != 1:
            lacking = " or ".join(split for split in SPLITS if split not in found)
            seen = ", ".join(sorted(folders)) or "no folders"
            raise DataError(
                f"{tree.path} has no folder {lacking}: found {seen}. {_WANTED} "
                "(about a fifth of each class in test)."
            )
        depth += 1


def read_partly_labelled(
    path: Path, image_size: int | None = None, class_names: Sequence[str] = ()
) -> Dataset:
    """The data set in a user's own folder, zip or tar, whatever of it is labelled.

    Where everything is (train/<class>/… and test/<class>/… and nothing else), as `read_images`.
    Else train images are those of train, then those without a label, each sorted by path.

    Args:
        path: the folder or archive; a single folder around all others is passed through.
        image_size: as of `read_images`.
        class_names: names of the classes, in this order; those of class folders that are not
            among them follow, sorted. Needed as far as there are no class folders.

    Raises:
        DataError: no images to label, fewer than two classes, names that look alike, an image in
            train or test that lies in no class folder, or a corrupt file; the message names it.
    """
    tree = FileTree(path)
    files = [entry.parts for entry in tree.entries if not entry.folder]
    depth = 0  # of the folders around the first one with a telling name
    while files and all(len(parts) > depth + 1 for parts in files):
        tops = {parts[depth].lower() for parts in files}
        if len(tops) > 1 or tops.intersection((*SPLITS, *UNLABELLED_FOLDERS)):
            break
        depth += 1
    tops = {parts[depth].lower() for parts in files if len(parts) > depth + 1}
    if not tops.intersection(UNLABELLED_FOLDERS) and tops.intersection(SPLITS) and not class_names:
        return _read_labelled(tree, image_size)
    images = [_partly_labelled(tree, parts, depth) for parts in files]
    images.sort(key=lambda image: (not image.train, image.name is None))
    folders = sorted({image.name for image in images if image.name is not None})
    given = [composed(name) for name in class_names]
    names = [*given, *(name for name in folders if name not in given)]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise DataError(
            f"{path}: the classes are {', '.join(names) or 'not known'}; name at least two, each "
            "once (--class-names cat dog), or give them folders, train/<class>/…."
        )
    if all(image.name is not None for image in images):
        raise DataError(
            f"{path} holds no image without a label; put those to be labelled into unlabelled/."
        )
    _check_given(path, given, folders)
    return _assembled(tree, images, names, image_size)


def _partly_labelled(tree: FileTree, parts: Parts, depth: int) -> _Image:
    top = parts[depth].lower()
    if top not in SPLITS or len(parts) == depth + 1:
        return _Image(parts, True, None)
    if len(parts) == depth + 2:
        raise DataError(
            f"{tree.name(parts)} lies in no class folder: move it to {top}/<class>/, or to "
            "unlabelled/."
        )
    return _Image(parts, top == "train", composed(parts[depth + 1]))


def _check_given(path: Path, given: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse a class named by the user that a folder's name resembles, unless both are named."""
    for name in given:
        for folder in folders:
            if folder not in given and _resembles(name, folder):
                raise DataError(
                    f"{path}: the class {name!r} (--class-names) resembles the folder {folder!r}, "
                    f"which is a class already. Did you mean {folder!r}? Write it so, or name both "
                    f"if they are two classes (--class-names {name!r} {folder!r} …)."
                )


def _check_alike(path: Path, images: Iterable[_Image], class_names: Sequence[str]) -> list[str]:
    """Remarks on classes whose names differ by upper case alone, which some systems merge.

    Raises:
        DataError: two names look the same, or upper case alone parts train from test.
    """
    trained = {image.name for image in images if image.train}
    tested = {image.name for image in images if not image.train}
    first: dict[str, str] = {}
    remarks = []
    for name in class_names:
        other = first.setdefault(_plain(name).casefold(), name)
        if other == name:
            continue
        apart = {name, other} <= trained | tested and not {name, other} <= trained
        if _plain(other) == _plain(name) or apart:
            raise DataError(
                f"{path}: the classes {other!r} and {name!r} ({ascii(other)}, {ascii(name)}) look "
                "alike and would be two. Give them one name, or names that differ."
            )
        remarks.append(
            f"the classes {other!r} and {name!r} differ by upper case alone and are two here; "
            "Windows and macOS make one folder of them."
        )
    return remarks


def _plain(name: str) -> str:
    """A name without what hardly shows: spaces at its ends, ligatures, full width (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


def _resembles(name: str, other: str) -> bool:
    """True for two names that are the same but for case, spaces, NFKC, or one typo in letters."""
    one, two = _plain(name).casefold(), _plain(other).casefold()
    if one == two or one.replace(" ", "") == two.replace(" ", ""):
        return True
    if min(len(one), len(two)) < _SHORTEST:
        return False
    while one and two and one[0] == two[0]:
        one, two = one[1:], two[1:]
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    swapped = len(one) == 2 and one == two[::-1]
    return (swapped or max(len(one), len(two)) == 1) and not (one + two).isdigit()
