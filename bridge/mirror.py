"""The JAX twin of a PyTorch network: one pure function and its arrays, without torch.

Trainable parameters by torch's own names; buffers, which are not parameters and are never
differentiated, and frozen parameters apart; and the sites at which parameters enter.

What is asked of a PyTorch module before it is mirrored, whatever the route.

From a module and example images to copies on the CPU and to the module's arrays by name, or to a
refusal of what does not map a batch of images to logits, or does not do it the same way twice.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jax.typing import DTypeLike
from torch import nn

from bridge.errors import BridgeError
from bridge.program import Program, Site
from bridge.weights import Weights, to_numpy
from kernel.model import Function, Model


class Held(NamedTuple):
    """The arrays of a module; none shares memory with it.

    Attributes:
        params: trainable parameters by canonical name: a tied one has the first of its names.
        frozen: buffers and parameters without gradient.
        constants: names in `frozen` that are in no state dict.
    """

    params: dict[str, Array]
    frozen: dict[str, Array]
    constants: frozenset[str]


def held_arrays(module: nn.Module) -> Held:
    """Copies of a module's parameters and buffers, as a mirror keeps them."""
    params, frozen = {}, {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        array = jnp.array(to_numpy(tensor), copy=True)
        (params if tensor.requires_grad else frozen)[name] = array
    return Held(params, frozen, frozenset(frozen).difference(module.state_dict()))


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer to the first name of the same tensor."""
    names: dict[int, str] = {}
    every = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: names.setdefault(id(tensor), name) for name, tensor in every}


def check_eval(module: nn.Module) -> None:
    """Refuse a module of which any part is in train mode."""
    if module.training:
        raise BridgeError("the network is in train mode; call .eval() before mirroring it")
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise BridgeError(
            f"these layers are in train mode: {', '.join(training)}; call .eval() on the network "
            "before mirroring it"
        )


def on_cpu(module: nn.Module, example: np.ndarray | torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """A copy of the module, and the images in its dtype, both on the CPU."""
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


def check_output(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits (batch, classes) of the images.

    Raises:
        BridgeError: the network cannot be run, or what it returns is something else.
    """
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
    return logits


def check_memory(module: nn.Module, example: np.ndarray | torch.Tensor) -> None:
    """Refuse a network that answers otherwise when it has seen other images before.

    Two copies are given the same images, one of them after others: a counter and a cache both
    show. Ask after randomness and batch statistics, which have messages of their own.

    Raises:
        BridgeError: the logits of the two differ by more than rounding.
    """
    fresh, images = on_cpu(module, example)
    used, _ = on_cpu(module, example)
    check_output(used, images)
    values = torch.cos(torch.arange(images.numel(), dtype=torch.float64))
    others = values.reshape(images.shape).to(images.dtype)
    first, second = check_output(fresh, others).double(), check_output(used, others).double()
    # Logits that are not finite are for the certificate to refuse.
    scale = float(first.nan_to_num(0, 0, 0).abs().max().clamp(min=torch.finfo(images.dtype).tiny))
    allowed = scale * torch.finfo(images.dtype).eps ** 0.5
    if torch.allclose(first, second, rtol=0, atol=allowed, equal_nan=True):
        return
    difference = float((first - second).abs().max())
    raise BridgeError(
        f"the network gives other logits for the same images once it has seen different ones (by "
        f"{difference:.3g}, among values up to {scale:.3g}): they depend on something that forward "
        "keeps in Python, such as a counter or a cache, or on random numbers; make forward a "
        "function of its images and parameters alone"
    )


@dataclass(frozen=True, eq=False)
class Mirror:
    """A network as a function of its parameters.

    Attributes:
        function: `function(params, frozen, x)` → logits (batch, classes); pure, and the same
            object after `with_weights` and `astype`, so that what JAX compiled for it is kept.
        params: trainable parameters by the names of torch's state dict, tied ones once.
        frozen: buffers, parameters without gradient and constants; never differentiated.
        constants: names in `frozen` that are in no state dict, so that no weight file has them.
        route: how the function came about: `torch.export`, `torch2jax` or `twin`. Only the first
            is a `Program`, whose layers can be observed and tapped.
    """

    function: Function
    params: dict[str, Array]
    frozen: dict[str, Array]
    constants: frozenset[str] = frozenset()
    route: str = "torch.export"

    @property
    def program(self) -> Program | None:
        """The function as a list of operators, if it is one."""
        return self.function if isinstance(self.function, Program) else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The nodes that directly consume a trainable parameter, in order; none without taps."""
        return tuple(s for s in self.program.sites if s.parameters) if self.program else ()

    def apply(self, params: dict[str, Array], x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        return self.function(params, self.frozen, x)

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
