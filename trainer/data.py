"""The data-set table: from a name and a data directory to uint8 images, labels and class names.

Files are read where they lie, in torchvision's own layout; what torchvision can download is
downloaded if it is absent. A new data set is one function and one row here.

A reader is imported when it is asked for: torchvision and scikit-learn, which most of them need,
take seconds, and a command that only prints its help or a refusal should not.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from trainer.dataset import Dataset, moments
from trainer.errors import DataError
from trainer.images import read_images
from trainer.pixels import resize
from trainer.tables import lookup

__all__ = ["DATASETS", "Dataset", "load"]

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
    from trainer.digits import read_digits

    del folder, download  # they come with scikit-learn
    return _resized(read_digits(), size)


def _mnist(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.mnist import read_mnist

    return _resized(read_mnist(folder, download=download), size)


def _fashion_mnist(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.mnist import read_fashion_mnist

    return _resized(read_fashion_mnist(folder, download=download), size)


def _svhn(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.svhn import read_svhn

    return _resized(read_svhn(folder, download=download), size)


def _cifar10(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.cifar import read_cifar10

    return _resized(read_cifar10(folder, download=download), size)


def _cifar100(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.cifar import read_cifar100

    return _resized(read_cifar100(folder, download=download), size)


def _caltech101(folder: Path | None, size: int | None, download: bool) -> Dataset:
    from trainer.caltech import read_caltech101

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
