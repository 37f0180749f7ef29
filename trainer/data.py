"""Data sets by name, read from a data directory into uint8 images, labels and class names.

Files are read in place in torchvision's layout, after their MD5s are compared with the published
ones. An absent set that torchvision can download is downloaded into a staging folder and moved into
place when complete. Digits and Caltech-101 have no published split: a fifth of each class, drawn
with a fixed seed, is the test set. torchvision and scikit-learn take seconds to import and are
imported by the readers that need them. A new data set is one function and one row.
"""

import gzip
import hashlib
import http.client
import math
import os
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from trainer.containers import SPLITS, FileTree, reading
from trainer.dataset import Dataset, Pixels, Split, assemble, moments, stratified_split
from trainer.disk_images import DiskImages, images_of, list_items
from trainer.errors import DataError, lookup
from trainer.image_files import resize
from trainer.images import DEFAULT_SIZE, read_images

_DOWNLOAD_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def _published(name: str) -> Any:
    """A data set of torchvision, by its name here."""
    from trainer.torchvision_compat import torchvision

    classes = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "caltech101": "Caltech101"}
    return getattr(torchvision.datasets, classes.get(name, name.upper()))


def _directory(name: str, data_dir: Path | None) -> Path:
    """The data directory, checked.

    Raises:
        DataError: there is none, it is not a directory or it cannot be read.
    """
    if data_dir is None:
        raise DataError(
            f"{name} is read from a data directory and none was given: pass data_dir "
            "(--data-dir DIR on the command line). The data set `digits` needs none."
        )
    if not os.path.lexists(data_dir):
        raise DataError(
            f"the data directory {data_dir} does not exist. Correct its name, or create it "
            f"(mkdir -p {data_dir}) and {name} is downloaded into it."
        )
    if not data_dir.is_dir():
        raise DataError(
            f"the data directory {data_dir} is not a directory. Give the folder that holds {name}."
        )
    if not os.access(data_dir, os.R_OK | os.X_OK):
        raise DataError(
            f"the data directory {data_dir} cannot be read: you have no permission. Change its "
            f"permissions (chmod u+rx {data_dir}) or give another folder."
        )
    return data_dir


def _ensure(
    name: str,
    data_dir: Path,
    files: Sequence[str],
    fetch: Callable[[Path], object],
    *,
    download: bool,
) -> None:
    """Download a data set unless its files are in the data directory, gzipped or not.

    Args:
        name: the data set.
        data_dir: an existing directory.
        files: paths within it.
        fetch: downloads the data set into the empty folder that it is given, in the same layout.
        download: whether that is allowed.

    Raises:
        DataError: files are absent and may not or cannot be downloaded.
    """
    absent = _absent(data_dir, files)
    if not absent:
        return
    lacking = f"{name} is not complete in {data_dir}: no {', '.join(absent)}"
    if not download:
        raise DataError(
            f"{lacking}. Put the published files there, or allow downloading (download=True)."
        )
    try:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as staging:
            fetch(Path(staging))
            for path in sorted(Path(staging).rglob("*")):
                destination = data_dir / path.relative_to(staging)
                if path.is_dir():
                    destination.mkdir(exist_ok=True)
                elif not destination.exists():
                    os.replace(path, destination)
    except _DOWNLOAD_FAILURES as error:
        raise DataError(
            f"{lacking}, and it could not be downloaded ({error}). Put the published files there "
            "yourself, or give a data directory that has them, or one that you may write to on a "
            "machine with a network."
        ) from error
    absent = _absent(data_dir, files)
    if absent:
        raise DataError(
            f"{name} was downloaded into {data_dir} and {', '.join(absent)} did not come with it. "
            "Put the published files there yourself."
        )


def _absent(data_dir: Path, files: Sequence[str]) -> list[str]:
    with reading(data_dir):
        return [
            file
            for file in files
            if not (data_dir / file).exists() and not (data_dir / file.removesuffix(".gz")).exists()
        ]


def _read_bytes(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def check_md5(path: Path, content: bytes, expected: str) -> None:
    """Compare the MD5 of a file's content with the published one.

    Raises:
        DataError: they differ.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} has the wrong checksum: found MD5 {found}, expected {expected} "
            f"({len(content)} bytes). The file was altered or its download was broken off: delete "
            "it and run again to download it, or put the published file in its place."
        )


_TEST_SHARE = 0.2
_DIGITS = tuple(map(str, range(10)))


def _split(images: Pixels, labels: np.ndarray, seed: int) -> tuple[Split, Split]:
    train, test = stratified_split(labels, _TEST_SHARE, np.random.default_rng(seed))
    taken = images.take if isinstance(images, DiskImages) else images.__getitem__
    return (taken(train), labels[train]), (taken(test), labels[test])


def read_digits(data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """Digits (Alpaydin & Kaynak 1998): 1,438 train and 359 test images of 8 x 8, grayscale."""
    from sklearn import datasets

    values, target = datasets.load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8)  # 0 to 16 there
    train, test = _split(pixels.reshape(-1, 1, 8, 8), np.asarray(target, np.int64), seed=8)
    return assemble("digits", train, test, _DIGITS, flip=False)


def read_mnist(name: str, data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """`mnist` (LeCun et al. 1998) or `fashion_mnist` (Xiao et al. 2017), in IDX files.

    60,000 train and 10,000 test images of 28 x 28, grayscale, in `MNIST/raw` or `FashionMNIST/raw`.
    """
    published, directory = _published(name), _directory(name, data_dir)
    checksums = dict(published.resources)
    raw = directory / published.__name__ / "raw"
    files = [str(Path(published.__name__, "raw", file)) for file in checksums]
    fetch = lambda staging: published(staging, download=True)
    _ensure(name, directory, files, fetch, download=download)

    def array(kind: str, dimensions: int) -> np.ndarray:
        file = f"{kind}-idx{dimensions}-ubyte"
        if (raw / f"{file}.gz").exists():
            return read_idx(raw / f"{file}.gz", dimensions, checksums[f"{file}.gz"])
        return read_idx(raw / file, dimensions)

    train, test = (
        (array(f"{kind}-images", 3)[:, None], array(f"{kind}-labels", 1).astype(np.int64))
        for kind in ("train", "t10k")
    )
    fashion = name == "fashion_mnist"
    names = published.classes if fashion else _DIGITS
    return assemble(name, train, test, names, flip=fashion)


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes.

    Args:
        path: the file; a name that ends in `.gz` is decompressed in memory.
        dimensions: how many the array must have: 3 for images, 1 for labels.
        md5: checksum of the file as it lies on the disk, if it is to be checked.

    Raises:
        DataError: the file is unreadable, cut short, of another kind or has another checksum.
    """
    stored = _read_bytes(path)
    content = _decompressed(path, stored) if path.suffix == ".gz" else stored
    if md5 is not None:
        check_md5(path, stored, md5)
    magic = 8 * 256 + dimensions  # type 8: unsigned bytes
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


def read_cifar(name: str, data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """`cifar10` or `cifar100`, its 100 fine classes (Krizhevsky 2009), in Python's pickles.

    50,000 train and 10,000 test images of 32 x 32, RGB, in `cifar-10-batches-py` or
    `cifar-100-python`.
    """
    published, directory = _published(name), _directory(name, data_dir)
    listed = [*published.train_list, *published.test_list]
    listed.append([published.meta["filename"], published.meta["md5"]])
    files = {f"{published.base_folder}/{file}": md5 for file, md5 in listed}
    fetch = lambda staging: published(staging, download=True)
    _ensure(name, directory, [*files], fetch, download=download)
    for file, md5 in files.items():
        check_md5(directory / file, _read_bytes(directory / file), md5)
    with warnings.catch_warnings():
        # The pickles are of 2009; numpy 2.4 remarks on how they spell a dtype.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        splits = [published(directory, train=train) for train in (True, False)]
    train, test = (
        (
            np.ascontiguousarray(np.asarray(split.data).transpose(0, 3, 1, 2)),
            np.asarray(split.targets, np.int64),
        )
        for split in splits
    )
    return assemble(name, train, test, splits[0].classes, flip=True)


def read_svhn(data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """SVHN (Netzer et al. 2011): 73,257 train and 26,032 test house digits of 32 x 32, RGB."""
    published, directory = _published("svhn"), _directory("svhn", data_dir)
    files = {file: md5 for _, file, md5 in map(published.split_list.get, SPLITS)}
    fetch = lambda staging: [published(staging, split=split, download=True) for split in SPLITS]
    _ensure("svhn", directory, [*files], fetch, download=download)
    for file, md5 in files.items():
        check_md5(directory / file, _read_bytes(directory / file), md5)
    splits = (published(directory, split=split) for split in SPLITS)
    # the digit 0 has label 10 in the files; torchvision has made it 0
    train, test = ((np.ascontiguousarray(s.data), np.asarray(s.labels, np.int64)) for s in splits)
    return assemble("svhn", train, test, _DIGITS, flip=False)


_CALTECH = "101_ObjectCategories"


def read_caltech101(data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """Caltech-101 (Fei-Fei et al. 2004): 8,677 images of 101 objects, RGB, without the background.

    In `caltech101/101_ObjectCategories`, or a tar that holds 101_ObjectCategories:
    `caltech101*.tar*` in the data directory or in its folder caltech101. The shorter side is scaled
    to image_size (64) and the image cropped to a square around its centre; grayscale images become
    RGB.
    """
    directory = _directory("caltech101", data_dir)
    folder = directory / "caltech101"
    archives = [*directory.glob("caltech101*.tar*"), *folder.glob("caltech101*.tar*")]
    source = folder if (folder / _CALTECH).is_dir() else min(archives, default=folder)
    if source == folder:
        fetch = lambda staging: _published("caltech101")(staging, download=True)
        _ensure("caltech101", directory, [f"caltech101/{_CALTECH}"], fetch, download=download)
    tree = FileTree(source)
    images = [
        entry.parts
        for entry in tree.entries
        if not entry.folder
        and _CALTECH in entry.parts[:-2]
        and "BACKGROUND_Google" not in entry.parts
    ]
    if not images:
        raise DataError(
            f"{source} holds no {_CALTECH}/<category>/image_NNNN.jpg. Replace it by the published "
            "Caltech-101."
        )
    class_names, labels = np.unique([parts[-2] for parts in images], return_inverse=True)
    size = DEFAULT_SIZE if image_size is None else image_size
    _, table = list_items(tree, images)
    train, test = _split(images_of(tree, images, table, (3, size, size)), labels, seed=101)
    return assemble("caltech101", train, test, class_names.tolist(), flip=True)


def read_own_images(data_dir: Path | None, image_size: int | None, download: bool) -> Dataset:
    """A user's own folder or archive; see `trainer.images.read_images`."""
    if data_dir is None or not data_dir.exists():
        got = "none was given" if data_dir is None else f"{data_dir} does not exist"
        raise DataError(
            f"`images` reads a folder, zip or tar of your own, and {got}. Pass data_dir "
            "(--data-dir PATH on the command line), holding train/<class>/… and test/<class>/…."
        )
    return read_images(data_dir, image_size)


# (data directory, image size, whether to download) → data set
Reader = Callable[[Path | None, int | None, bool], Dataset]

DATASETS: Mapping[str, Reader] = MappingProxyType(
    {
        "digits": read_digits,
        "mnist": partial(read_mnist, "mnist"),
        "fashion_mnist": partial(read_mnist, "fashion_mnist"),
        "svhn": read_svhn,
        "cifar10": partial(read_cifar, "cifar10"),
        "cifar100": partial(read_cifar, "cifar100"),
        "caltech101": read_caltech101,
        "images": read_own_images,
    }
)


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
    dataset = read(None if data_dir is None else Path(data_dir).expanduser(), image_size, download)
    if image_size is None or dataset.image_shape[1:] == (image_size, image_size):
        return dataset
    train, test = (
        resize(part[:], image_size) for part in (dataset.train_images, dataset.test_images)
    )
    mean, std = moments(train)
    return replace(dataset, train_images=train, test_images=test, mean=mean, std=std)
