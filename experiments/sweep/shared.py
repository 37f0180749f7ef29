"""Work shared between trials: first trainings cached on disk, data sets kept in memory.

Runs of one seed that differ only in their strategy begin by training the same network on the same
labels. `FirstTrainings` does so once, and names each training by all that its weights depend on.
"""

import functools
import hashlib
import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge import module
from bridge.errors import BridgeError
from bridge.weights import read
from pipelines.config import RunConfig, identity
from pipelines.core import json_io
from pipelines.core.errors import PipelineError
from pipelines.core.record import only_writer
from pipelines.run import image_size_of
from trainer import data
from trainer.data import Dataset
from trainer.predict import placement

_NOTES, _WEIGHTS = "training", "weights.safetensors"
_KEY = 16  # hexadecimal digits


def read_dataset(config: RunConfig) -> Dataset:
    """The data set of a run; the last two read by this process stay in memory.

    Raises:
        DataError: it cannot be had.
    """
    folder = config.data_folder.absolute()
    return load_dataset(config.dataset, folder, image_size_of(config), config.download)


@functools.lru_cache(maxsize=2)
def load_dataset(name: str, folder: Path, image_size: int | None, download: bool) -> Dataset:
    """Cached `trainer.data.load`."""
    return data.load(name, folder, image_size=image_size, download=download)


@functools.cache
def source_digest(*packages: str) -> str:
    """Hexadecimal digits that change with any file of the packages' source, wherever they lie."""
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:_KEY]


class FirstTrainings:
    """First trainings in a folder, each in a subfolder named by a digest of all its inputs.

    The weights have the same bits as those of a training of one's own: the versions of Python,
    NumPy and torch, the source of `trainer` and of the network, the number of threads and the kind
    of processor are part of the digest.
    """

    def __init__(self, folder: Path):
        """Use a folder, made when there is something to keep in it."""
        self._folder = folder

    def get_or_train(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: RunConfig,
        train: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """See `pipelines.run.FirstTrainingCache`; of several processes one trains."""
        inputs = _inputs(network, images, labels, config)
        name = _digest(repr(sorted(inputs.items())).encode())[:_KEY]
        folder = self._folder / name
        with only_writer(folder, wait=True):
            notes = _restore(folder, inputs, network)
            if notes is None:
                notes = train()
                module.save_module(network, folder / _WEIGHTS, {"stage": "first training"})
                weights = _digest((folder / _WEIGHTS).read_bytes())
                # last: it is complete
                json_io.put(folder, _NOTES, {"of": inputs, "notes": notes, "weights": weights})
        return notes | {"shared": name}


def _restore(folder: Path, inputs: dict[str, Any], network: nn.Module) -> dict[str, Any] | None:
    """Load the weights of an entry into the network; None if it is missing or was changed."""
    try:
        found = json_io.get(folder, _NOTES)
        if found is None or found["of"] != inputs:
            return None
        if found["weights"] != _digest((folder / _WEIGHTS).read_bytes()):
            return None
        module.restore(network, read(folder / _WEIGHTS))
    except (PipelineError, BridgeError, OSError):  # changed: training anew gives the same
        return None
    network.eval()
    return found["notes"]


def _inputs(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, config: RunConfig
) -> dict[str, Any]:
    """Everything that the bits of the weights depend on, JSON-able."""
    values = module.weights_of(network)
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
        "trainable": _digest(str([p.requires_grad for p in network.parameters()]).encode()),
        "seed": config.seed,
        "train": identity(config)["train"],
        "trainer": source_digest("trainer"),
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
    """Digest of the files that define the network's modules, torch and `trainer` aside."""
    digest = hashlib.sha256()
    for name in sorted({type(part).__module__ for part in network.modules()}):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and name.partition(".")[0] not in ("torch", "trainer"):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
