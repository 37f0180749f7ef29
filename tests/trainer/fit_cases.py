"""Small networks and data for the tests of training and of its parts."""

import numpy as np
from sklearn.datasets import load_digits

from trainer.networks import build


def generator(seed=0):
    return np.random.default_rng(seed)


def network_of(name="wide_resnet", **arguments):
    if name == "wide_resnet":
        arguments = {"widen": 1, **arguments}
    return build(name, (1, 8, 8), 10, generator(), arguments)


def some_digits():
    """Forty digits, normalised, and their labels."""
    pixels, targets = load_digits(return_X_y=True)
    chosen = generator(3).permutation(len(targets))[:40]
    images = ((pixels[chosen] - 4.9) / 6.0).astype(np.float32).reshape(40, 1, 8, 8)
    return images, targets[chosen].astype(np.int64)
