"""torch's global generators, seeded from a passed one.

Initialisers and dropout draw from torch's global generators and take no other. Inside `seeded`
those start from a number drawn from the passed generator; afterwards they are restored.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(rng: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Within it, torch's generators of the CPU and of `device` follow from `rng` alone.

    Args:
        rng: one draw is taken from it.
        device: where the network lives.
    """
    seed = int(rng.integers(2**63))
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
