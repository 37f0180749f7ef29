"""What a case of the operator table is: a torch function, and the values that it is tried on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGE = (2, 4, 7, 6)
# Values on both sides of every kink, and on the kinks themselves.
KINKS = [-6.0, -3.0, -2.0, -1.0, -0.5, -0.3, 0.0, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 25.0]


class Case(NamedTuple):
    """A torch function of an array and of parameters of the given shapes."""

    function: Callable[..., Tensor]
    shape: Sequence[int] = IMAGE
    parameters: Sequence[Sequence[int]] = ()
    positive: bool = False


def at_kinks(function: Callable[..., Tensor]) -> Case:
    return Case(function, (2, len(KINKS)))


def values_of(case: Case, dtype: torch.dtype) -> Tensor:
    if list(case.shape) == [2, len(KINKS)]:
        return torch.tensor([KINKS, KINKS[::-1]], dtype=dtype)
    x = torch.tensor(np.random.default_rng(1).normal(size=tuple(case.shape)), dtype=dtype)
    return x.abs() + 0.2 if case.positive else x
