"""The devices that a kernel is computed on, of this process or of several.

From a number of devices to a mesh, from host arrays to arrays spread over it, and back. For several
hosts every process calls `jax.distributed.initialize(coordinator, processes, process)` before
anything else of JAX, then the same functions with the same images, weights and seeds; each gets the
whole result.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernel.errors import KernelError

AXIS = "examples"


def mesh(devices: int | None = None) -> Mesh:
    """The first devices of all processes in one row, over which images are spread.

    Args:
        devices: how many; all if None.

    Raises:
        KernelError: fewer than one, more than there are, or none of some process.
    """
    there = jax.devices()
    count = len(there) if devices is None else devices
    if not 1 <= count <= len(there):
        raise KernelError(
            f"{count} devices were asked for and {len(there)} exist ({jax.default_backend()}): "
            f"give a number from 1 to {len(there)}, or none for all."
        )
    chosen = there[:count]
    check_processes([device.process_index for device in chosen], jax.process_count())
    return Mesh(np.array(chosen), (AXIS,))


def check_processes(owners: Sequence[int], processes: int) -> None:
    """Refuse devices of which a process has none: it could neither compute nor see the result.

    Raises:
        KernelError: there is such a process.
    """
    idle = sorted(set(range(processes)) - set(owners))
    if idle:
        raise KernelError(
            f"{len(owners)} devices were asked for, and the processes {idle} of {processes} have "
            "none of them: give none for the devices of all processes, or start fewer processes."
        )


def mesh_unless_host(devices: int | None = None) -> Mesh | None:
    """The mesh, or None for one CPU, for which NumPy's products are the faster ones.

    Raises:
        KernelError: more devices than there are.
    """
    found = mesh(devices)
    return None if found.size == 1 and jax.default_backend() == "cpu" else found


def together() -> bool:
    """Whether images are differentiated together: a processor's cache holds one at a time."""
    return jax.default_backend() != "cpu"


def spread(array: np.ndarray, over: Mesh) -> jax.Array:
    """An array in equal slices of axis 0, one a device; every process gives the whole."""
    return _placed(array, NamedSharding(over, PartitionSpec(AXIS)))


def everywhere(tree: Any, over: Mesh) -> Any:
    """Arrays that every device has whole."""
    sharding = NamedSharding(over, PartitionSpec())
    return jax.tree.map(lambda leaf: _placed(np.asarray(leaf), sharding), tree)


def collected(array: jax.Array) -> np.ndarray:
    """A spread array on this host, those slices too that other processes have."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _placed(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])
