"""From a PyTorch module to a mirror by way of `torch2jax`, which runs forward on JAX arrays.

For modules that `torch.export` refuses as such. The result has no taps and is proved by the
certificate alone: torch2jax has few functions, and some of those differ from torch's.
"""

import copy
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jax.extend.core import Var
from torch import nn

from bridge.errors import BridgeError
from bridge.export import to_numpy
from bridge.intake import canonical_names, held_arrays, on_cpu
from bridge.mirror import Mirror


@dataclass(frozen=True, eq=False)
class Converted:
    """A module's forward as a pure function; one object whatever the weights.

    Each trace runs a copy of the module, so that nothing that forward keeps reaches the next.

    Attributes:
        module: on the CPU; its own arrays are never used.
        names: every name of its parameters and buffers to the canonical one.
    """

    module: nn.Module
    names: Mapping[str, str]

    def __call__(self, params: Mapping[str, Array], frozen: Mapping[str, Array], x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        library = _library()
        arrays = {**frozen, **params}
        network = copy.deepcopy(self.module)
        held: dict[str, Any] = {}
        values: dict[str, Array] = {}
        for path, part in network.named_modules():
            for group in (part._parameters, part._buffers):
                for name in [name for name, tensor in group.items() if tensor is not None]:
                    full = f"{path}.{name}" if path else name
                    values[full] = jnp.asarray(arrays[self.names[full]])
                    group[name] = held[full] = library.Torchish(values[full])
        with _completed(library.Torchish):
            logits = library.t2j_function(network)(jnp.asarray(x))
        changed = [name for name in held if held[name].value is not values[name]]
        if changed:
            raise BridgeError(
                f"the network's forward changes {', '.join(changed)}, so that its logits depend on "
                "what it saw before; in eval mode it must leave its arrays alone"
            )
        return logits


def convert(module: nn.Module, example: np.ndarray | torch.Tensor) -> Mirror:
    """The mirror of a network in eval mode, by torch2jax.

    Args:
        module: maps images (batch, channels, height, width) to logits (batch, classes).
        example: at least two images.

    Raises:
        BridgeError: torch2jax is not installed or cannot run the network, or the network has
            trainable parameters that it never uses.
    """
    _library()
    network, images = on_cpu(module, example)
    held = held_arrays(network)
    function = Converted(network, canonical_names(network))
    dtype = to_numpy(images[:0]).dtype
    unused: set[str] = set()
    for count in (1, len(images)):
        x = jax.ShapeDtypeStruct((count, *images.shape[1:]), dtype)
        try:
            jaxpr = jax.make_jaxpr(function)(held.params, held.frozen, x)
        except BridgeError:
            raise
        except Exception as error:
            raise BridgeError(
                f"torch2jax cannot run the network{_user_line(error)}: {_reason(error)}"
            ) from error
        (logits,) = jaxpr.out_avals
        if len(logits.shape) != 2 or logits.shape[0] != count:
            raise BridgeError(
                f"torch2jax gives logits of shape {logits.shape} for {count} image(s), where it "
                f"must be ({count}, classes); write what flattens the images with x.shape[0]"
            )
        needed = _needed(jaxpr.jaxpr)
        invars = jaxpr.jaxpr.invars[: len(held.params)]  # a dict is flattened in sorted order
        unused = {n for n, v in zip(sorted(held.params), invars, strict=True) if v not in needed}
    if unused:
        raise BridgeError(
            f"the logits do not depend on {len(unused)} trainable parameter(s): "
            f"{', '.join(sorted(unused))}; remove them, or freeze them with requires_grad_(False)"
        )
    return Mirror(function, held.params, held.frozen, held.constants, route="torch2jax")


def _library() -> ModuleType:
    try:
        import torch2jax
    except ImportError as error:
        raise BridgeError(
            "torch2jax is not installed, and this route needs it: pip install "
            "'ntk-lookahead[torch2jax]' (its licence is GPL-3.0, or MIT in the cases that it "
            "names); or write the network in JAX and use bridge.twin"
        ) from error
    return torch2jax


@contextmanager
def _completed(torchish: type) -> Iterator[None]:
    """Give torch2jax's stand-in for a tensor what Python silently makes up for it.

    Without these every tensor is true, so that a branch on the data takes one side, and a loop
    over a tensor never ends, because JAX does not complain of an index past the end.
    """
    added = {
        "__bool__": lambda self: bool(self.value),
        "__len__": lambda self: len(self.value),
        "__iter__": lambda self: (torchish(row) for row in self.value),
    }
    missing = {name: method for name, method in added.items() if not hasattr(torchish, name)}
    for name, method in missing.items():
        setattr(torchish, name, method)
    try:
        yield
    finally:
        for name in missing:
            delattr(torchish, name)


def _needed(jaxpr: Any) -> set[Any]:
    """The variables of a jaxpr that its outputs depend on."""
    needed = {v for v in jaxpr.outvars if isinstance(v, Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {v for v in equation.invars if isinstance(v, Var)}
    return needed


def _reason(error: Exception) -> str:
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return (
            "a Python branch, loop or .item() depends on the values of the images; write it with "
            "torch.where, or take the branch outside forward"
        )
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if "mk_rng" in text:
        return "it draws random numbers in eval mode"
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}, without a word"


def _user_line(error: Exception) -> str:
    """The last line in the traceback that is the user's, as ` (file:line: code)`."""
    libraries = tuple(f"{Path(str(m.__file__)).parent}/" for m in (torch, jax, _library()))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(libraries) and frame.filename != __file__
    ]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})"
