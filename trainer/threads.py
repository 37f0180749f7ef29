"""Threads of torch by the work of a step: a small step gets one, whatever else the machine does.

OpenMP's threads meet several times a layer. Where other work takes one of the cores, all wait for
the thread that is on it: steps of a small network then take longer with two threads than with one
(`benchmarks/contention.py`). The rule depends on the work and on the cores that torch may use,
never on the clock, so that a busy machine computes what an idle one does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

GRAIN = 2.5e8
"""Floating-point operations of a step that are worth a thread."""


@contextmanager
def limited(work: Callable[[], float]) -> Iterator[None]:
    """Within it, torch uses work / GRAIN threads: at least one, at most `torch.get_num_threads()`.

    OMP_NUM_THREADS overrides it: then torch's own number stays.

    Args:
        work: floating-point operations of a step; called where there is a choice.
    """
    available = torch.get_num_threads()
    if available == 1 or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch.set_num_threads(max(1, int(min(available, work() / GRAIN))))
    try:
        yield
    finally:
        torch.set_num_threads(available)
