"""Mirror of a PyTorch module in eval mode, by `torch.export`, else by `torch2jax`.

The second route is for modules that torch.export refuses as such. It has no taps and few operators,
some of which differ from torch's: its mirrors need the certificate.
"""

import traceback
import warnings
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

from bridge.errors import BatchSizeError, BridgeError, ExportError
from bridge.graph import lift
from bridge.mirror import Mirror
from bridge.module import (
    canonical_names,
    check_eval,
    check_stateless,
    copy_module,
    copy_to_cpu,
    module_arrays,
    returning_logits,
    to_numpy,
)


@dataclass(frozen=True, eq=False)
class Converted:
    """A module's forward as a pure function; one object whatever the weights.

    Each trace runs a copy of the module, so that no state of one forward reaches the next.

    Attributes:
        module: on the CPU; its own arrays are never used.
        names: for each name of its parameters and buffers, the canonical one.
    """

    module: nn.Module
    names: Mapping[str, str]

    def __call__(self, params: Mapping[str, Array], frozen: Mapping[str, Array], x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        library = _library()
        arrays = {**frozen, **params}
        network = copy_module(self.module)
        wrapped: dict[str, Any] = {}
        values: dict[str, Array] = {}
        for path, part in network.named_modules():
            for group in (part._parameters, part._buffers):
                for name in [name for name, tensor in group.items() if tensor is not None]:
                    full = f"{path}.{name}" if path else name
                    values[full] = jnp.asarray(arrays[self.names[full]])
                    group[name] = wrapped[full] = library.Torchish(values[full])
        with _with_bool_len_iter(library.Torchish):
            logits = library.t2j_function(network)(jnp.asarray(x))
        changed = [name for name in wrapped if wrapped[name].value is not values[name]]
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
    network, images = copy_to_cpu(module, example)
    arrays = module_arrays(network)
    function = Converted(network, canonical_names(network))
    dtype = to_numpy(images[:0]).dtype
    unused: set[str] = set()
    for count in (1, len(images)):
        x = jax.ShapeDtypeStruct((count, *images.shape[1:]), dtype)
        try:
            jaxpr = jax.make_jaxpr(function)(arrays.params, arrays.frozen, x)
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
        invars = jaxpr.jaxpr.invars[: len(arrays.params)]  # a dict is flattened in sorted order
        unused = {n for n, v in zip(sorted(arrays.params), invars, strict=True) if v not in needed}
    if unused:
        raise BridgeError(
            f"the logits do not depend on {len(unused)} trainable parameter(s): "
            f"{', '.join(sorted(unused))}; remove them, or freeze them with requires_grad_(False)"
        )
    return Mirror(function, arrays.params, arrays.frozen, arrays.constants, route="torch2jax")


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
def _with_bool_len_iter(torchish: type) -> Iterator[None]:
    """Give torch2jax's stand-in for a tensor the methods that Python has defaults for.

    By default every object is true, so that a branch on the data would take one side, and a loop
    over a tensor would never end, because JAX clamps an index past the end.
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
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__}, with no message"


def _user_line(error: Exception) -> str:
    """The user's last line in the traceback, as ` (file:line: code)`."""
    libraries = tuple(f"{Path(str(m.__file__)).parent}/" for m in (torch, jax, _library()))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(libraries) and frame.filename != __file__
    ]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})"


ROUTES = ("auto", "torch.export", "torch2jax")


def mirror(module: nn.Module, example: np.ndarray | torch.Tensor, route: str = "auto") -> Mirror:
    """Mirror a network in eval mode.

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
    network, images = copy_to_cpu(module, example)
    network = returning_logits(network, images)
    if route == "torch2jax":
        made = convert(module, images)
    else:
        try:
            made = _exported(network, images)
        except (ExportError, BatchSizeError) as refusal:
            check_stateless(module, example)  # the likelier reason, if it is one
            if route == "torch.export" or isinstance(refusal, BatchSizeError):
                raise
            return _converted(module, images, refusal)
    check_stateless(module, example)
    return made


def _check_python(module: nn.Module) -> None:
    scripted = [name for name, p in module.named_modules() if isinstance(p, torch.jit.ScriptModule)]
    if scripted:
        part = f"layer {scripted[0]!r}" if scripted[0] else "the network"
        raise BridgeError(
            f"{part} is compiled by TorchScript, which keeps its operators to itself; mirror the "
            "nn.Module that it was made from"
        )


def _exported(network: nn.Module, images: torch.Tensor) -> Mirror:
    program, tensors, trainable, constants = lift(network, images)
    arrays = {name: jnp.array(to_numpy(tensor), copy=True) for name, tensor in tensors.items()}
    return Mirror(
        function=program,
        params={name: array for name, array in arrays.items() if name in trainable},
        frozen={name: array for name, array in arrays.items() if name not in trainable},
        constants=constants,
    )


def _converted(module: nn.Module, images: torch.Tensor, refusal: ExportError) -> Mirror:
    try:
        made = convert(module, images)
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
    return made
