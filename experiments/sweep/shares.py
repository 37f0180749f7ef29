"""The cores and GPUs of this machine, divided among processes.

From a number of workers to the cores of each and the environment that it starts with.
"""

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple


class Share(NamedTuple):
    """What one worker has.

    Attributes:
        cores: numbers of its cores; none where a process cannot be bound to cores.
        environment: of its process.
    """

    cores: tuple[int, ...]
    environment: dict[str, str]


def cores_here() -> tuple[int, ...]:
    """The cores that this process may use; their numbers mean something on Linux only."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def default_workers(cores: int, gpus: int) -> int:
    """One for each GPU; without, one for two cores, and two where there are only two."""
    return gpus or max(min(cores, 2), cores // 2)


def shares(
    workers: int, cores: tuple[int, ...], gpus: tuple[str, ...], environment: Mapping[str, str]
) -> list[Share]:
    """What each worker has: cores next to each other, GPUs in turn.

    Args:
        workers: how many there are; with more of them than cores, some have the same one.
        cores: that are divided.
        gpus: that are divided, as CUDA_VISIBLE_DEVICES names them.
        environment: of this process; a number of threads in it stays as the user has set it.
    """
    found = []
    for number in range(workers):
        begin, end = (len(cores) * place // workers for place in (number, number + 1))
        own = cores[begin:end] or (cores[number % len(cores)],)
        # the modules that can be imported here can be there, a user's own too
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        its = {"OMP_NUM_THREADS": str(len(own)), **environment, "PYTHONPATH": path}
        if gpus:
            its["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            # memory is torch's too, and that of another worker where they are more than GPUs
            its.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        bound = hasattr(os, "sched_setaffinity")
        found.append(Share(own if bound else (), its))
    return found


def gpus_here(count: int, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that this process may use.

    Args:
        count: how many it sees.
        environment: of this process, which may name them.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(count)]
    return tuple(names[:count])
