"""The JAX twin of a PyTorch network: one pure function and its arrays.

From a module in eval mode and two example images to a `Mirror`: trainable parameters by torch's
own names, buffers and frozen parameters apart, and the sites at which parameters enter (buffers are
not parameters and are never differentiated).
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jax.typing import DTypeLike
from torch import nn

from bridge.errors import BridgeError
from bridge.export import Weights, to_numpy
from bridge.graph import lift
from bridge.program import Program, Site
from kernel.model import Model


@dataclass(frozen=True, eq=False)
class Mirror:
    """A network as a function of its parameters.

    Attributes:
        function: `function(params, frozen, x)` → logits (batch, classes); pure, and the same
            object after `with_weights` and `astype`, so that what JAX compiled for it is kept.
        params: trainable parameters by the names of torch's state dict, tied ones once.
        frozen: buffers, parameters without gradient and constants; never differentiated.
        constants: names in `frozen` that are in no state dict, so that no weight file has them.
    """

    function: Program
    params: dict[str, Array]
    frozen: dict[str, Array]
    constants: frozenset[str]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The nodes that directly consume a trainable parameter, in order."""
        return tuple(site for site in self.function.sites if site.parameters)

    def apply(self, params: dict[str, Array], x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        return self.function(params, self.frozen, x)

    def activations(self, params: dict[str, Array], x: Array) -> dict[str, Any]:
        """The output of every node that directly consumes a parameter or buffer, by site name."""
        return self.function.activations(params, self.frozen, x)[1]

    def zeros(self, x: Array) -> dict[str, Any]:
        """Perturbations of zero for `function.tapped`, shaped as the sites' outputs for x."""
        _, outputs = jax.eval_shape(self.function.activations, self.params, self.frozen, x)
        return {
            site.name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), outputs[site.name])
            for site in self.sites
        }

    def astype(self, dtype: DTypeLike) -> "Mirror":
        """The same mirror with every floating array in another dtype."""

        def cast(array: Array) -> Array:
            return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

        return replace(
            self,
            params={name: cast(array) for name, array in self.params.items()},
            frozen={name: cast(array) for name, array in self.frozen.items()},
        )

    def with_weights(self, weights: Weights) -> "Mirror":
        """The same function with the arrays of another round.

        Raises:
            BridgeError: a name is missing or unknown, or a shape differs; all are listed.
        """
        given = {**weights.params, **weights.buffers}
        held = {**self.params, **{k: v for k, v in self.frozen.items() if k not in self.constants}}
        faults = [f"{name} is missing" for name in held if name not in given]
        faults += [f"{name} is not in the mirror" for name in given if name not in held]
        faults += [
            f"{name} has shape {given[name].shape}, the mirror's has {held[name].shape}"
            for name in held
            if name in given and given[name].shape != held[name].shape
        ]
        if faults:
            raise BridgeError(
                "these weights are not of the mirrored network: "
                + "; ".join(faults)
                + ". Mirror the network that they were saved from."
            )
        new = {name: jnp.array(given[name], copy=True) for name in held}
        return replace(
            self,
            params={name: new[name] for name in self.params},
            frozen={name: new.get(name, array) for name, array in self.frozen.items()},
        )

    def model(self) -> Model:
        """What the kernels take."""
        return Model(self.function, self.params, self.frozen)


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
