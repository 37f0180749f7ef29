"""From a PyTorch module in eval mode and two example images to its `Mirror` in JAX.

By way of `torch.export`; of `torch2jax` where torch.export refuses the module as such. What no
route may take is refused here, with the reason.
"""

import copy
import inspect
import warnings

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from bridge import second_route
from bridge.errors import BatchSizeError, BridgeError, ExportError
from bridge.export import to_numpy
from bridge.graph import Lifted, lift
from bridge.intake import check_eval, check_memory, check_output, on_cpu
from bridge.mirror import Mirror

ROUTES = ("auto", "torch.export", "torch2jax")


def mirror(module: nn.Module, example: np.ndarray | torch.Tensor, route: str = "auto") -> Mirror:
    """The JAX twin of a network in eval mode.

    The module is copied to the CPU first and is left as it was; the mirror shares no memory
    with it. Certify a mirror (`bridge.parity`) before it is used.

    Args:
        module: maps images (batch, channels, height, width) to logits (batch, classes).
        example: at least two images, normalised as for training; their values do not matter.
        route: one of `ROUTES`; `auto` is torch.export, and torch2jax, with a warning, only for a
            module that torch.export refuses as such.

    Raises:
        BridgeError: the module is in train mode, does not return logits, or cannot be expressed
            as a pure function of one image; the message says where and what to do.
    """
    if route not in ROUTES:
        raise BridgeError(f"unknown route {route!r}; known: {', '.join(ROUTES)}")
    check_eval(module)
    _check_python(module)
    network, images = on_cpu(module, example)
    check_output(network, images)
    if route == "torch2jax":
        twin = second_route.convert(module, images)
    else:
        try:
            twin = _exported(network, images)
        except (ExportError, BatchSizeError) as refusal:
            check_memory(module, example)  # which would be the reason of it
            if route == "torch.export" or isinstance(refusal, BatchSizeError):
                raise
            return _converted(module, images, refusal)
    check_memory(module, example)
    return twin


def _check_python(module: nn.Module) -> None:
    scripted = [name for name, p in module.named_modules() if isinstance(p, torch.jit.ScriptModule)]
    if scripted:
        place = f"layer {scripted[0]!r}" if scripted[0] else "the network"
        raise BridgeError(
            f"{place} is compiled by TorchScript, which keeps its operators to itself; mirror the "
            "nn.Module that it was made from"
        )


def _exported(network: nn.Module, images: torch.Tensor) -> Mirror:
    _name_the_images(network)
    native = {n: t.dtype for n, t in [*network.named_parameters(), *network.named_buffers()]}
    program, tensors, trainable, constants = _lifted(network, images)
    tensors = {name: tensor.to(native.get(name, tensor.dtype)) for name, tensor in tensors.items()}
    arrays = {name: jnp.array(to_numpy(tensor), copy=True) for name, tensor in tensors.items()}
    return Mirror(
        function=program,
        params={name: array for name, array in arrays.items() if name in trainable},
        frozen={name: array for name, array in arrays.items() if name not in trainable},
        constants=constants,
    )


def _lifted(network: nn.Module, images: torch.Tensor) -> Lifted:
    """The program as float64 images see it: every other float dtype in it is the user's own word.

    Traced in float32, `dtype=x.dtype` and `torch.float32` could not be told apart, and constants
    would be rounded. A network that is tied to its dtype is traced in that.
    """
    try:
        return lift(copy.deepcopy(network).double(), images.double())
    except ExportError:
        return lift(network, images)


def _name_the_images(network: nn.Module) -> None:
    """Give a forward of `*args`, as wrappers have it, one argument: torch.export asks its name."""
    forward = network.forward

    def named(images: torch.Tensor) -> torch.Tensor:
        return forward(images)

    first = next(iter(inspect.signature(forward).parameters.values()), None)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        network.forward = named


def _converted(module: nn.Module, images: torch.Tensor, refusal: ExportError) -> Mirror:
    try:
        twin = second_route.convert(module, images)
    except BridgeError as error:
        raise BridgeError(
            f"{refusal}; and the second route does not take it either: {error}"
        ) from error
    warnings.warn(
        f"{refusal}. It is mirrored by torch2jax instead, without taps: its layers are not "
        "compared one by one, it cannot be saved as a portable file, and its kernels go through "
        "vmap(grad), which is slower and takes more memory",
        stacklevel=3,
    )
    return twin
