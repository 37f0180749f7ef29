"""What PyTorch itself computes, layer by layer: the other side of the parity certificate.

From a module and a few images to its logits, the output of every call that directly consumes a
parameter or buffer, and per-example gradients. Calls are observed on the module as it runs, not on
its exported graph, so that a fault of the export shows.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bridge.errors import BridgeError
from bridge.export import to_numpy


class Call(NamedTuple):
    """One call that consumed weights.

    Attributes:
        weights: canonical names of the parameters and buffers among its arguments.
        output: what it returned.
    """

    weights: tuple[str, ...]
    output: np.ndarray


class Evidence(NamedTuple):
    """What the module computed for n images, in float64.

    Attributes:
        logits: (n, classes).
        calls: in the order in which the module made them.
        gradients: for each trainable parameter (m, *shape), the gradients of `logits @ direction`.
    """

    logits: np.ndarray
    calls: tuple[Call, ...]
    gradients: dict[str, np.ndarray]


def on_cpu(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the module on the CPU, every floating parameter and buffer in one dtype."""
    return copy.deepcopy(module).cpu().to(dtype)


def logits(module: nn.Module, images: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Logits (n, classes) of a copy of the module in a dtype."""
    with torch.no_grad():
        return to_numpy(_run(on_cpu(module, dtype), torch.tensor(images, dtype=dtype)))


def evidence(
    module: nn.Module,
    images: np.ndarray,
    direction: np.ndarray,
    examples: int,
    one_by_one: bool = False,
) -> Evidence:
    """Run a float64 copy of the module and watch it.

    Args:
        module: in eval mode.
        images: (n, channels, height, width).
        direction: (classes,); per-example gradients are those of `logits @ direction`.
        examples: how many images, m, to form gradients for.
        one_by_one: run each image by itself for the calls, and stack what they return.

    Raises:
        BridgeError: the module cannot be run in float64.
    """
    network = on_cpu(module, torch.float64)
    x = torch.tensor(images, dtype=torch.float64)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    names = {id(tensor): name for name, tensor in tensors}
    outputs, calls = _watched(network, x, names)
    if one_by_one:
        alone = [_watched(network, image[None], names)[1] for image in x]
        calls = [
            Call(together[0].weights, np.stack([call.output for call in together]))
            for together in zip(*alone, strict=True)
        ]
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    project = torch.tensor(direction, dtype=torch.float64)
    count = min(examples, len(x)) if trainable else 0
    rows = {name: np.empty((count, *p.shape)) for name, p in trainable.items()}
    for i in range(count):
        value = _run(network, x[i : i + 1]).reshape(-1) @ project
        gradients = torch.autograd.grad(value, list(trainable.values()), materialize_grads=True)
        for name, gradient in zip(trainable, gradients, strict=True):
            rows[name][i] = gradient.numpy()
    return Evidence(logits=to_numpy(outputs), calls=tuple(calls), gradients=rows)


def _watched(
    network: nn.Module, x: torch.Tensor, names: Mapping[int, str]
) -> tuple[torch.Tensor, list[Call]]:
    watch = _Watch(names)
    with watch, torch.no_grad():
        logits = _run(network, x)
    return logits, watch.calls


def _run(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        return network(x)
    except RuntimeError as error:
        raise BridgeError(
            f"the network cannot be run in {x.dtype}, which its certificate needs: {error}; keep "
            "tensors that forward uses as buffers, and let dtypes follow the images"
        ) from error


class _Watch(TorchFunctionMode):
    """Notes every torch call that is given a watched tensor and returns a new one."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        used = tuple(self.names[id(leaf)] for leaf in leaves if id(leaf) in self.names)
        if used and isinstance(output, torch.Tensor) and id(output) not in self.names:
            # A copy: a later call may write into the output in place.
            self.calls.append(Call(used, to_numpy(output)))
        return output
