"""Weights out of a PyTorch module and back into it.

From a module to `bridge.weights.Weights` by the names of torch's state dict (tied ones once), or to
the file that holds them, and from these into a module of the same shapes.
"""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torch import nn

from bridge.errors import BridgeError
from bridge.weights import Weights
from bridge.weights import save as save_weights


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A C-contiguous copy that shares no memory with the tensor; bfloat16 stays bfloat16."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return np.array(tensor.numpy(), order="C", copy=True)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The opposite of `to_numpy`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def weights_of(module: nn.Module, provenance: Mapping[str, str] | None = None) -> Weights:
    """A copy of what a module's state dict holds, tied tensors once."""
    kept = module.state_dict().keys()
    return Weights(
        params={name: to_numpy(p) for name, p in module.named_parameters()},
        buffers={name: to_numpy(b) for name, b in module.named_buffers() if name in kept},
        provenance=dict(provenance or {}),
    )


def save(module: nn.Module, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write a module's weights to one safetensors file, which `bridge.weights.read` reads.

    Args:
        module: what to save.
        path: where; a file that is there is replaced at once, or stays.
        provenance: strings that say where the weights come from.

    Raises:
        BridgeError: the file cannot be written (a full disk, a folder that is not there).
    """
    save_weights(weights_of(module, provenance), path)


def restore(module: nn.Module, weights: Weights) -> None:
    """Write weights into a torch module, on its own device.

    Raises:
        BridgeError: a name is missing or unknown, or a shape or dtype differs; all are listed,
            and the module is left as it was.
    """
    kept = module.state_dict().keys()
    targets: dict[str, torch.Tensor] = dict(module.named_parameters())
    targets |= {name: b for name, b in module.named_buffers() if name in kept}
    given = {name: to_torch(array) for name, array in {**weights.params, **weights.buffers}.items()}
    faults = [f"{name} is missing" for name in targets if name not in given]
    faults += [f"{name} is not in the network" for name in given if name not in targets]
    for name in targets.keys() & given.keys():
        old, new = targets[name], given[name]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            faults.append(
                f"{name} is {new.dtype} {tuple(new.shape)}, the network's is "
                f"{old.dtype} {tuple(old.shape)}"
            )
    if faults:
        raise BridgeError("these weights do not fit the network: " + "; ".join(sorted(faults)))
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(given[name])
