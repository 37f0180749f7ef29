"""From a PyTorch module in eval mode and two example images to its `Mirror` in JAX.

What does not map a batch of images to logits is refused here, before it is exported.
"""

import copy

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from bridge.errors import BridgeError
from bridge.export import to_numpy
from bridge.graph import lift
from bridge.mirror import Mirror


def mirror(module: nn.Module, example: np.ndarray | torch.Tensor) -> Mirror:
    """The JAX twin of a network in eval mode.

    The module is copied to the CPU first and is left as it was; the mirror shares no memory
    with it. Certify a mirror (`bridge.parity`) before it is used.

    Args:
        module: maps images (batch, channels, height, width) to logits (batch, classes).
        example: at least two images, normalised as for training; their values do not matter.

    Raises:
        BridgeError: the module is in train mode, does not return logits, or cannot be expressed
            as a pure function of one image; the message says where and what to do.
    """
    _check_eval(module)
    network, images = _on_cpu(module, example)
    _check_output(network, images)
    program, tensors, trainable, constants = lift(network, images)
    arrays = {name: jnp.array(to_numpy(tensor), copy=True) for name, tensor in tensors.items()}
    return Mirror(
        function=program,
        params={name: array for name, array in arrays.items() if name in trainable},
        frozen={name: array for name, array in arrays.items() if name not in trainable},
        constants=constants,
    )


def _check_eval(module: nn.Module) -> None:
    if module.training:
        raise BridgeError("the network is in train mode; call .eval() before mirroring it")
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise BridgeError(
            f"these layers are in train mode: {', '.join(training)}; call .eval() on the network "
            "before mirroring it"
        )


def _on_cpu(
    module: nn.Module, example: np.ndarray | torch.Tensor
) -> tuple[nn.Module, torch.Tensor]:
    images = torch.tensor(example) if isinstance(example, np.ndarray) else example.detach().cpu()
    if images.ndim < 2 or images.shape[0] < 2:
        raise BridgeError(
            f"the example has shape {tuple(images.shape)}; it must be a batch of at least two "
            "images (batch, channels, height, width), or the batch size could not be left free"
        )
    try:
        network = copy.deepcopy(module).cpu()
    except (RuntimeError, TypeError) as error:
        raise BridgeError(
            f"the network cannot be copied ({error}); hold no tensors in it other than "
            "parameters and buffers"
        ) from error
    dtypes = [p.dtype for p in network.parameters() if p.is_floating_point()]
    return network, images.to(dtypes[0] if dtypes else torch.get_default_dtype())


def _check_output(network: nn.Module, images: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:
        raise BridgeError(
            f"the network cannot be run on images of shape {tuple(images.shape)}: {error}"
        ) from error
    if isinstance(logits, dict):
        keys = ", ".join(map(str, logits))
        raise BridgeError(
            f"the network returns a dict ({keys}); it must return the logits alone: wrap it in a "
            "module that picks one entry"
        )
    if isinstance(logits, (tuple, list)):
        raise BridgeError(
            f"the network returns a {type(logits).__name__} of {len(logits)}; it must return the "
            "logits alone: wrap it in a module that picks one entry"
        )
    if not isinstance(logits, torch.Tensor):
        raise BridgeError(
            f"the network returns a {type(logits).__name__}; it must return a tensor of logits"
        )
    if logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        raise BridgeError(
            f"the network returns shape {tuple(logits.shape)} for {images.shape[0]} images; it "
            f"must return ({images.shape[0]}, classes)"
        )
