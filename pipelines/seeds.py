"""One seed, many independent streams of random numbers, each derived by name and round."""

from zlib import crc32

import numpy as np


def generator(seed: int, name: str, round_number: int = 0) -> np.random.Generator:
    """The stream of one use of randomness in one round of one run.

    The same three arguments give the same numbers, whatever was drawn elsewhere before; that is
    what lets a resumed run go on exactly where it was.
    """
    return np.random.default_rng([seed, crc32(name.encode()), round_number])
