"""The first training of a run, done once for all runs that begin with the same one.

Runs of one seed that differ only in their strategy train the same network on the same labels first.
From a folder that such runs share to the trained weights and what the record says of them.
"""

import functools
import hashlib
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trainer
from bridge import weights
from bridge.errors import BridgeError
from bridge.weights import read
from pipelines import json_io
from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from pipelines.record import only_writer
from trainer.predict import placement

_NOTES, _WEIGHTS = "training", "weights.safetensors"
_KEY = 16  # hexadecimal digits


class FirstTrainings:
    """A folder of trainings, each in a folder named by everything that it follows from."""

    def __init__(self, folder: Path):
        """Of a folder that is made when there is something to keep in it."""
        self._folder = folder

    def once(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: RunConfig,
        train: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """The network as its first training leaves it, by that training or from the folder.

        Of several processes one trains and the others wait for it. The weights are the same bits
        as those of a training of one's own: whatever they follow from is in the name of the folder,
        the versions of torch and of this package's `trainer`, the number of threads and the kind
        of processor among it.

        Args:
            network: with its initial weights; is trained in place, or given the weights.
            images: labelled, as the network takes them.
            labels: the class of each.
            config: of the run.
            train: trains the network in place; returns what the record says of it.

        Returns:
            What `train` returned, here or elsewhere, and `shared`, the name of the folder.
        """
        of = _origin(network, images, labels, config)
        name = _digest(repr(sorted(of.items())).encode())[:_KEY]
        folder = self._folder / name
        with only_writer(folder, wait=True):
            notes = self._taken(folder, of, network)
            if notes is None:
                notes = train()
                weights.save_module(network, folder / _WEIGHTS, {"stage": "first training"})
                json_io.put(folder, _NOTES, {"of": of, "notes": notes})  # last: it ends a training
        return notes | {"shared": name}

    def _taken(self, folder: Path, of: dict[str, Any], network: nn.Module) -> dict[str, Any] | None:
        """The weights put into the network; None if they are not there whole."""
        try:
            found = json_io.get(folder, _NOTES)
            if found is None or found["of"] != of:
                return None
            weights.restore(network, read(folder / _WEIGHTS))
        except (PipelineError, BridgeError):  # changed by someone: to train gives the same weights
            return None
        network.eval()
        return found["notes"]


def _origin(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, config: RunConfig
) -> dict[str, Any]:
    """Everything that the weights after the first training follow from, bit by bit, JSON-able."""
    values = weights.weights_of(network)
    start = hashlib.sha256()
    for name, array in sorted({**values.params, **values.buffers}.items()):
        start.update(name.encode() + array.tobytes())
    device = placement(network)[0]
    on_gpu = device.type == "cuda"
    return {
        "dataset": config.dataset,
        "images": _digest(np.ascontiguousarray(images).tobytes()),
        "labels": _digest(np.ascontiguousarray(labels).tobytes()),
        "network": config.network,
        "arguments": config.network_arguments,
        "modules": _digest(str(network).encode()),
        "source": _source_of(network),
        "start": start.hexdigest(),
        "seed": config.seed,
        "train": config.record()["train"],
        "trainer": _trainer(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__),
        },
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def _source_of(network: nn.Module) -> str:
    """Of the modules of a network, where they are a user's own."""
    names = {type(part).__module__ for part in network.modules()}
    digest = hashlib.sha256()
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.partition(".")[0] not in ("torch", "trainer"):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


@functools.cache
def _trainer() -> str:
    """Of the source that trains."""
    digest = hashlib.sha256()
    for file in sorted(Path(trainer.__path__[0]).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
