"""MNIST and Fashion-MNIST: from the four IDX files of torchvision's layout to a data set.

The gzipped files are read as they are, their MD5 compared with the published ones; files that are
not gzipped have no published checksum and are checked by their headers alone.
"""

from pathlib import Path

import numpy as np

from trainer.dataset import Dataset, assemble
from trainer.files import data_directory, ensure
from trainer.idx import read_idx
from trainer.torchvision_compat import torchvision


def read_mnist(data_dir: Path | None, *, download: bool) -> Dataset:
    """MNIST (LeCun et al. 1998): 60,000 train and 10,000 test digits of 28 x 28, `MNIST/raw`."""
    published = torchvision.datasets.MNIST
    digits = tuple(map(str, range(10)))
    return _read("mnist", published, digits, data_dir, flip=False, download=download)


def read_fashion_mnist(data_dir: Path | None, *, download: bool) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017): as MNIST, of clothes, `FashionMNIST/raw`."""
    published = torchvision.datasets.FashionMNIST
    classes = tuple(published.classes)
    return _read("fashion_mnist", published, classes, data_dir, flip=True, download=download)


def _read(
    name: str,
    published: type[torchvision.datasets.MNIST],
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
