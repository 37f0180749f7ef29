"""CIFAR-10 and CIFAR-100: from torchvision's layout, or from JPEG archives, to a data set.

Every file is compared with its published MD5 before it is unpickled. JPEG is lossy: what is read
from `cifar10-jpeg` is named so, and figures on it do not compare with those on CIFAR-10.
"""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from trainer.dataset import Dataset, assemble
from trainer.errors import DataError
from trainer.files import check_files, data_directory, ensure
from trainer.gallery import list_entries, read_pixels
from trainer.idx import read_idx
from trainer.torchvision_compat import torchvision

_JPEG = "cifar10-jpeg"
_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CLASSES: list[str] = list(_NAMES.split())
_SIZE = 32


def read_cifar10(data_dir: Path | None, *, download: bool) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32 x 32, RGB.

    From `cifar-10-batches-py`; where that is absent, from `cifar10-jpeg/train.zip` and `test.zip`
    (lossy; the data set is then named `cifar10-jpeg`); where both are, it is downloaded.
    """
    published = torchvision.datasets.CIFAR10
    directory = data_directory("cifar10", data_dir)
    archives = [directory / _JPEG / f"{split}.zip" for split in ("train", "test")]
    exact = (directory / published.base_folder).exists()
    if not exact and all(archive.exists() for archive in archives):
        splits = [_read_jpeg(archive) for archive in archives]
        return assemble(_JPEG, splits[0], splits[1], _CLASSES, flip=True)
    return _read("cifar10", published, directory, download=download)


def read_cifar100(data_dir: Path | None, *, download: bool) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, 100 fine classes, from `cifar-100-python`."""
    directory = data_directory("cifar100", data_dir)
    return _read("cifar100", torchvision.datasets.CIFAR100, directory, download=download)


def _read(
    name: str,
    published: type[torchvision.datasets.CIFAR10],
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
    return assemble(name, _arrays(train), _arrays(test), train.classes, flip=True)


def _arrays(
    split: torchvision.datasets.CIFAR10,
) -> tuple[UInt8[np.ndarray, "examples 3 32 32"], Int64[np.ndarray, " examples"]]:
    images = np.ascontiguousarray(np.asarray(split.data).transpose(0, 3, 1, 2))
    return images, np.asarray(split.targets, np.int64)


def _read_jpeg(
    archive: Path,
) -> tuple[UInt8[np.ndarray, "examples 3 32 32"], Int64[np.ndarray, " examples"]]:
    """One split from <split>/<class>/NNNN.jpg.

    With `<split>-labels-idx1-ubyte.gz` beside the archive the images get the order of the original
    distribution: number NNNN of a class is the NNNN-th of that class there. Without it they are in
    the order of their classes.
    """
    files = [entry.parts for entry in list_entries(archive) if not entry.folder]
    strange = next((parts for parts in files if len(parts) != 3 or parts[1] not in _CLASSES), None)
    if strange is not None:
        raise DataError(
            f"{Path(archive, *strange)} is not <split>/<class>/<number>.jpg with a class of "
            f"CIFAR-10 ({', '.join(_CLASSES)}). Replace the archive."
        )
    files.sort(key=lambda parts: (_CLASSES.index(parts[1]), parts))
    labels = np.array([_CLASSES.index(parts[1]) for parts in files], np.int64)
    order_file = archive.with_name(f"{archive.stem}-labels-idx1-ubyte.gz")
    if order_file.exists():
        original = read_idx(order_file, 1).astype(np.int64)
        if not np.array_equal(np.sort(original), labels):
            raise DataError(
                f"{order_file} and {archive} do not belong together: they have {len(original)} and "
                f"{len(labels)} images, or other numbers of some class. Replace both."
            )
        # The k-th image in class order stands where the k-th label in stable class order stood.
        place = np.argsort(np.argsort(original, kind="stable"))
        files, labels = [files[index] for index in place], original
    return read_pixels(archive, files, _SIZE, _SIZE, 3), labels
