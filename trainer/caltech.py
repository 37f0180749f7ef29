"""Caltech-101: from torchvision's folder, or a tar of it, to a data set of one image size.

There is no published split: a fifth of each class, drawn with a fixed seed, is the test set.
"""

from pathlib import Path

import numpy as np

from trainer.dataset import Dataset, assemble, stratified_split
from trainer.errors import DataError
from trainer.files import data_directory, ensure
from trainer.gallery import list_entries, read_pixels
from trainer.images import DEFAULT_SIZE
from trainer.torchvision_compat import torchvision

_FOLDER = "101_ObjectCategories"
_BACKGROUND = "BACKGROUND_Google"
_TEST_SHARE = 0.2
_SPLIT_SEED = 101


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
            lambda staging: torchvision.datasets.Caltech101(staging, download=True),
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
    train, test = stratified_split(labels, _TEST_SHARE, np.random.default_rng(_SPLIT_SEED))
    splits = [(pixels[rows], labels[rows]) for rows in (train, test)]
    return assemble("caltech101", splits[0], splits[1], class_names, flip=True)


def _find(directory: Path) -> Path | None:
    folder = directory / "caltech101"
    if (folder / _FOLDER).is_dir():
        return folder
    archives = [*directory.glob("caltech101*.tar*"), *folder.glob("caltech101*.tar*")]
    return min(archives, default=None)
