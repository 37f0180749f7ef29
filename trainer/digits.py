"""Digits: from the 8 x 8 handwritten digits inside scikit-learn to a data set; no download.

There is no published split: a fifth of each class, drawn with a fixed seed, is the test set.
"""

import numpy as np
import sklearn.datasets

from trainer.dataset import Dataset, assemble, stratified_split

_TEST_SHARE = 0.2
_SPLIT_SEED = 8
_SIDE = 8
_LARGEST_VALUE = 16  # scikit-learn gives 0 to 16


def read_digits() -> Dataset:
    """Digits (Alpaydin & Kaynak 1998): 1,438 train and 359 test images of 8 x 8, grayscale."""
    values, target = sklearn.datasets.load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values) * (255 / _LARGEST_VALUE)).astype(np.uint8)
    images = pixels.reshape(-1, 1, _SIDE, _SIDE)
    labels = np.asarray(target, np.int64)
    train, test = stratified_split(labels, _TEST_SHARE, np.random.default_rng(_SPLIT_SEED))
    splits = [(images[rows], labels[rows]) for rows in (train, test)]
    return assemble("digits", splits[0], splits[1], tuple(map(str, range(10))), flip=False)
