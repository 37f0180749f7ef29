"""Data sets by name, read from a data directory into uint8 images, labels and class names.

Files are read in place in torchvision's layout; MD5s are compared with the published ones before a
file is parsed; an absent set that torchvision can download is downloaded. Digits and Caltech-101
have no published split: a fifth of each class, drawn with a fixed seed, is the test set.
torchvision and scikit-learn take seconds to import and are imported by the readers that need them.
A new data set is one function and one row.
"""

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from trainer.dataset import Dataset, assemble, moments, stratified_split
from trainer.errors import DataError, lookup
from trainer.image_files import (
    check_files,
    check_md5,
    data_directory,
    ensure,
    list_entries,
    read_bytes,
    read_pixels,
    resize,
)
from trainer.images import DEFAULT_SIZE, read_images

_FOLDER = "101_ObjectCategories"
_BACKGROUND = "BACKGROUND_Google"
_TEST_SHARE = 0.2
_CALTECH_SPLIT_SEED = 101


def _published(name: str) -> Any:
    """A data set of torchvision, which takes seconds to import: only when it is read."""
    from trainer.torchvision_compat import torchvision

    return getattr(torchvision.datasets, name)


def read_caltech101(data_dir: Path | None, image_size: int | None, *, download: bool) -> Dataset:
    """Caltech-101 (Fei-Fei et al. 2004): 8,677 images of 101 objects, RGB, without the background.

    From `caltech101/101_ObjectCategories`, or a tar that holds 101_ObjectCategories:
    `caltech101*.tar*` in the data directory or in its folder caltech101. The shorter side is scaled
    to image_size (64) and the image cropped to a square around its centre; grayscale images become
    RGB.
    """
    directory = data_directory("caltech101", data_dir)
    source = _find(directory)
    if source is None:
        ensure(
            "caltech101",
            directory,
            [f"caltech101/{_FOLDER}"],
            lambda staging: _published("Caltech101")(staging, download=True),
            download=download,
        )
        source = directory / "caltech101"
    images = [
        entry.parts
        for entry in list_entries(source)
        if not entry.folder and _FOLDER in entry.parts[:-2] and _BACKGROUND not in entry.parts
    ]
    if not images:
        raise DataError(
            f"{source} holds no {_FOLDER}/<category>/image_NNNN.jpg. Replace it by the published "
            "Caltech-101."
        )
    class_names = sorted({parts[-2] for parts in images})
    index = {name: label for label, name in enumerate(class_names)}
    labels = np.array([index[parts[-2]] for parts in images], np.int64)
    size = DEFAULT_SIZE if image_size is None else image_size
    pixels = read_pixels(source, images, size, size, 3)
    train, test = stratified_split(labels, _TEST_SHARE, np.random.default_rng(_CALTECH_SPLIT_SEED))
    splits = [(pixels[rows], labels[rows]) for rows in (train, test)]
    return assemble("caltech101", splits[0], splits[1], class_names, flip=True)


def _find(directory: Path) -> Path | None:
    folder = directory / "caltech101"
    if (folder / _FOLDER).is_dir():
        return folder
    archives = [*directory.glob("caltech101*.tar*"), *folder.glob("caltech101*.tar*")]
    return min(archives, default=None)


_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes.

    Args:
        path: the file; a name that ends in `.gz` is decompressed in memory.
        dimensions: how many the array must have: 3 for images, 1 for labels.
        md5: checksum of the file as it lies on the disk, if it is to be checked.

    Raises:
        DataError: the file is unreadable, cut short, of another kind or has another checksum.
    """
    stored = read_bytes(path)
    content = _decompressed(path, stored) if path.suffix == ".gz" else stored
    if md5 is not None:
        check_md5(path, stored, md5)
    magic = _UNSIGNED_BYTE * 256 + dimensions
    header = 4 + 4 * dimensions
    found = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else None
    if found != magic:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimension(s): it "
            f"begins with the number {found}, {magic} was needed. Replace it by the published file."
        )
    if len(content) < header:
        raise DataError(f"{path} is cut short inside its header. Replace it by the published file.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = math.prod(shape)
    if len(content) - header != size:
        fault = "is cut short" if len(content) - header < size else "is too long"
        raise DataError(
            f"{path} {fault}: its header promises {' x '.join(map(str, shape))} = {size} bytes and "
            f"{len(content) - header} follow. Replace it by the published file."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _decompressed(path: Path, stored: bytes) -> bytes:
    try:
        return gzip.decompress(stored)
    except EOFError as error:
        raise DataError(
            f"{path} is cut short: the gzip stream does not end within its {len(stored)} bytes. "
            "Delete it and download it again."
        ) from error
    except (OSError, zlib.error) as error:
        raise DataError(
            f"{path} is not a sound gzip file ({error}). Delete it and download it again."
        ) from error


def read_cifar10(data_dir: Path | None, *, download: bool) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32 x 32, RGB.

    From `cifar-10-batches-py`.
    """
    directory = data_directory("cifar10", data_dir)
    return _read_cifar("cifar10", _published("CIFAR10"), directory, download=download)


def read_cifar100(data_dir: Path | None, *, download: bool) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, 100 fine classes, from `cifar-100-python`."""
    directory = data_directory("cifar100", data_dir)
    return _read_cifar("cifar100", _published("CIFAR100"), directory, download=download)


def _read_cifar(
    name: str,
    published: Any,
    directory: Path,
    *,
    download: bool,
) -> Dataset:
    listed = [*published.train_list, *published.test_list]
    listed.append([published.meta["filename"], published.meta["md5"]])
    files = [(f"{published.base_folder}/{file}", md5) for file, md5 in listed]
    ensure(
        name,
        directory,
        [file for file, _ in files],
        lambda staging: published(staging, download=True),
        download=download,
    )
    check_files(directory, files)
    with warnings.catch_warnings():
        # The pickles are of 2009; numpy 2.4 remarks on how they spell a dtype.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        train, test = (published(directory, train=train) for train in (True, False))
    return assemble(name, _cifar_arrays(train), _cifar_arrays(test), train.classes, flip=True)


def _cifar_arrays(
    split: Any,
) -> tuple[UInt8[np.ndarray, "examples 3 32 32"], Int64[np.ndarray, " examples"]]:
    images = np.ascontiguousarray(np.asarray(split.data).transpose(0, 3, 1, 2))
    return images, np.asarray(split.targets, np.int64)


_DIGITS_SPLIT_SEED = 8
_SIDE = 8
_LARGEST_VALUE = 16  # scikit-learn gives 0 to 16


def read_digits() -> Dataset:
    """Digits (Alpaydin & Kaynak 1998): 1,438 train and 359 test images of 8 x 8, grayscale."""
    from sklearn import datasets  # takes seconds, which no other data set and no refusal needs

    values, target = datasets.load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values) * (255 / _LARGEST_VALUE)).astype(np.uint8)
    images = pixels.reshape(-1, 1, _SIDE, _SIDE)
    labels = np.asarray(target, np.int64)
    train, test = stratified_split(labels, _TEST_SHARE, np.random.default_rng(_DIGITS_SPLIT_SEED))
    splits = [(images[rows], labels[rows]) for rows in (train, test)]
    return assemble("digits", splits[0], splits[1], tuple(map(str, range(10))), flip=False)


def read_mnist(data_dir: Path | None, *, download: bool) -> Dataset:
    """MNIST (LeCun et al. 1998): 60,000 train and 10,000 test digits of 28 x 28, `MNIST/raw`."""
    published = _published("MNIST")
    digits = tuple(map(str, range(10)))
    return _read_mnist("mnist", published, digits, data_dir, flip=False, download=download)


def read_fashion_mnist(data_dir: Path | None, *, download: bool) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017): as MNIST, of clothes, `FashionMNIST/raw`."""
    published = _published("FashionMNIST")
    classes = tuple(published.classes)
    return _read_mnist("fashion_mnist", published, classes, data_dir, flip=True, download=download)


def _read_mnist(
    name: str,
    published: Any,
    class_names: tuple[str, ...],
    data_dir: Path | None,
    *,
    flip: bool,
    download: bool,
) -> Dataset:
    directory = data_directory(name, data_dir)
    raw = Path(published.__name__, "raw")
    checksums = dict(published.resources)
    ensure(
        name,
        directory,
        [str(raw / file) for file in checksums],
        lambda staging: published(staging, download=True),
        download=download,
        exists=lambda file: file.exists() or file.with_suffix("").exists(),
    )

    def array(kind: str, dimensions: int) -> np.ndarray:
        file = f"{kind}-idx{dimensions}-ubyte.gz"
        gzipped = directory / raw / file
        if gzipped.exists():
            return read_idx(gzipped, dimensions, checksums[file])
        return read_idx(gzipped.with_suffix(""), dimensions)

    splits = [
        (array(f"{kind}-images", 3)[:, None], array(f"{kind}-labels", 1).astype(np.int64))
        for kind in ("train", "t10k")
    ]
    return assemble(name, splits[0], splits[1], class_names, flip=flip)


_SPLITS = ("train", "test")


def read_svhn(data_dir: Path | None, *, download: bool) -> Dataset:
    """SVHN (Netzer et al. 2011): 73,257 train and 26,032 test house digits of 32 x 32, RGB."""
    published = _published("SVHN")
    directory = data_directory("svhn", data_dir)
    files = [(published.split_list[s][1], published.split_list[s][2]) for s in _SPLITS]
    ensure(
        "svhn",
        directory,
        [file for file, _ in files],
        lambda staging: [published(staging, split=split, download=True) for split in _SPLITS],
        download=download,
    )
    check_files(directory, files)
    train, test = (_svhn_arrays(published(directory, split=split)) for split in _SPLITS)
    return assemble("svhn", train, test, tuple(map(str, range(10))), flip=False)


def _svhn_arrays(
    split: Any,
) -> tuple[UInt8[np.ndarray, "examples 3 32 32"], Int64[np.ndarray, " examples"]]:
    # The digit 0 has label 10 in the files; torchvision has made it 0.
    return np.ascontiguousarray(split.data), np.asarray(split.labels, np.int64)


# (data directory, image size, whether to download) → data set
Reader = Callable[[Path | None, int | None, bool], Dataset]


def load(
    name: str,
    data_dir: Path | str | None,
    *,
    image_size: int | None = None,
    download: bool = True,
) -> Dataset:
    """A data set by its name.

    Args:
        name: a row of DATASETS.
        data_dir: the folder that holds torchvision's layouts; for `images` the folder or archive
            itself; not used by `digits`.
        image_size: side of the square that every image is scaled and cropped to. Without it images
            keep their size; Caltech-101 gets 64, and `images` what `read_images` says.
        download: whether what is absent may be downloaded into data_dir.

    Raises:
        UnknownNameError: no such data set.
        DataError: the files are absent, unreadable or not what they should be.
    """
    read = lookup(DATASETS, name, "data set")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}; a side of at least 1 pixel is needed.")
    return read(None if data_dir is None else Path(data_dir).expanduser(), image_size, download)


def _resized(dataset: Dataset, image_size: int | None) -> Dataset:
    if image_size is None:
        return dataset
    train, test = (resize(part, image_size) for part in (dataset.train_images, dataset.test_images))
    mean, std = moments(train)
    return replace(dataset, train_images=train, test_images=test, mean=mean, std=std)


def _own_images(path: Path | None, image_size: int | None, download: bool) -> Dataset:
    del download  # nobody publishes them
    if path is None or not path.exists():
        got = "none was given" if path is None else f"{path} does not exist"
        raise DataError(
            f"`images` reads a folder, zip or tar of your own, and {got}. Pass data_dir "
            "(--data-dir PATH on the command line), holding train/<class>/… and test/<class>/…."
        )
    return read_images(path, image_size)


def _digits(folder: Path | None, size: int | None, download: bool) -> Dataset:
    del folder, download  # they come with scikit-learn
    return _resized(read_digits(), size)


def _mnist(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return _resized(read_mnist(folder, download=download), size)


def _fashion_mnist(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return _resized(read_fashion_mnist(folder, download=download), size)


def _svhn(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return _resized(read_svhn(folder, download=download), size)


def _cifar10(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return _resized(read_cifar10(folder, download=download), size)


def _cifar100(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return _resized(read_cifar100(folder, download=download), size)


def _caltech101(folder: Path | None, size: int | None, download: bool) -> Dataset:
    return read_caltech101(folder, size, download=download)


DATASETS: Mapping[str, Reader] = MappingProxyType(
    {
        "digits": _digits,
        "mnist": _mnist,
        "fashion_mnist": _fashion_mnist,
        "svhn": _svhn,
        "cifar10": _cifar10,
        "cifar100": _cifar100,
        "caltech101": _caltech101,
        "images": _own_images,
    }
)
