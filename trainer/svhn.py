"""SVHN: from torchvision's layout, two .mat files in the data directory, to a data set.

Both files are compared with their published MD5 before they are read.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from trainer.dataset import Dataset, assemble
from trainer.files import check_files, data_directory, ensure
from trainer.torchvision_compat import torchvision

_SPLITS = ("train", "test")


def read_svhn(data_dir: Path | None, *, download: bool) -> Dataset:
    """SVHN (Netzer et al. 2011): 73,257 train and 26,032 test house digits of 32 x 32, RGB."""
    published = torchvision.datasets.SVHN
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
    train, test = (_arrays(published(directory, split=split)) for split in _SPLITS)
    return assemble("svhn", train, test, tuple(map(str, range(10))), flip=False)


def _arrays(
    split: torchvision.datasets.SVHN,
) -> tuple[UInt8[np.ndarray, "examples 3 32 32"], Int64[np.ndarray, " examples"]]:
    # The digit 0 has label 10 in the files; torchvision has made it 0.
    return np.ascontiguousarray(split.data), np.asarray(split.labels, np.int64)
