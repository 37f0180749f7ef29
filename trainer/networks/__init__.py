"""Networks by name, image shape and number of classes.

The networks of both papers with stems for small images (docs/mathematics.md, 5); `timm:NAME` and
`torchvision:NAME` are those libraries', `module:factory` is a user's own. Every network is probed
before it is handed out.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from trainer.config import RANDOM, Argument, is_pretrained, source_of
from trainer.errors import NetworkError, lookup
from trainer.networks.cnn import cnn
from trainer.networks.resnet import resnet18
from trainer.networks.sources import factory_of
from trainer.networks.vgg import vgg11_bn
from trainer.networks.weights import load_state, read_state
from trainer.networks.wide_resnet import wide_resnet
from trainer.predict import forward, placement
from trainer.randomness import seeded
from trainer.trainable import head_parameters


def load(name: str, what: str = "network") -> Callable[..., object]:
    """Import the function that `module:function` names.

    Args:
        name: the module, a colon, the function.
        what: what the function makes, for the messages.

    Raises:
        NetworkError: it cannot be imported, is not there, or cannot be called.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise NetworkError(f"{what} {name!r} is not of the form module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise NetworkError(
            f"{what} {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); "
            "start in the folder that holds it, or put that folder on PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        raise NetworkError(f"{what} {name!r}: {module_name} has no attribute {attribute!r}")
    if isinstance(function, nn.Module):
        raise NetworkError(
            f"{what} {name!r} is a network already; give a function that makes one, so that every "
            "seed has initial weights of its own"
        )
    if not callable(function):
        raise NetworkError(
            f"{what} {name!r} is a {type(function).__name__}, which cannot be called; it must be a "
            f"function that makes the {what}"
        )
    return function


def keywords_for(
    name: str,
    factory: Callable[..., object],
    input_shape: tuple[int, ...],
    classes: int,
    arguments: Mapping[str, Argument],
) -> dict[str, object]:
    """Keyword arguments of a factory: `input_shape` and `classes` if it takes them, and the rest.

    Raises:
        NetworkError: an argument is unknown to it, or one that it needs is not given.
    """
    offered: dict[str, object] = {"input_shape": input_shape, "classes": classes}
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # written in C, without a signature: the call itself will tell
        return {**offered, **arguments}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {**offered, **arguments}
    known = [p.name for p in parameters if p.name not in offered]
    for argument in arguments:
        if argument not in known:
            raise NetworkError(
                f"network {name!r} has no argument {argument!r}. "
                + (f"Known: {', '.join(known)}." if known else "It takes none.")
            )
    for p in parameters:
        needed = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if needed and p.name not in offered and p.name not in arguments:
            raise NetworkError(
                f"network {name!r} needs the argument {p.name!r}: give it as "
                f"--network-args {p.name}=VALUE, or give it a default value"
            )
    taken = {p.name for p in parameters}
    return {**{key: value for key, value in offered.items() if key in taken}, **arguments}


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"wide_resnet": wide_resnet, "resnet18": resnet18, "vgg11_bn": vgg11_bn, "cnn": cnn}
)


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    rng: np.random.Generator,
    arguments: Mapping[str, Argument] = MappingProxyType({}),
    *,
    pretrained: bool = False,
) -> nn.Module:
    """A freshly initialised network, in eval mode, on the CPU.

    Args:
        name: a row of NETWORKS, `timm:NAME` or `torchvision:NAME`, or `module:factory`, which is
            imported and called as `factory(input_shape=…, classes=…, **arguments)`, without those
            of the first two that it does not take.
        input_shape: (channels, height, width) of one image.
        classes: how many logits.
        rng: where the initial weights come from; torch's global seed is left as it was.
        arguments: of the network, such as `{"stages": 1, "widen": 4}`.
        pretrained: of timm's and torchvision's networks: with the weights that they download.

    Raises:
        UnknownNameError: the name is in no row.
        NetworkError: an argument is unknown, missing or out of range, the factory cannot be
            loaded, or what it returns does not map two blank images to (2, classes) finite
            logits.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise NetworkError(
            f"input_shape is {tuple(input_shape)}; it must be (channels, height, width), each ≥ 1"
        )
    if classes < 2:
        raise NetworkError(f"classes is {classes}; a classifier needs at least 2")
    if source_of(name) is not None:
        factory = factory_of(name, pretrained=pretrained)
    else:
        factory = load(name) if ":" in name else lookup(NETWORKS, name, "network")
    keywords = keywords_for(name, factory, tuple(input_shape), classes, arguments)
    with seeded(rng, torch.device("cpu")):
        try:
            network = factory(**keywords)
        except TypeError as error:
            raise NetworkError(
                f"network {name!r} could not be called with {', '.join(keywords) or 'nothing'}: "
                f"{error}"
            ) from error
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"{name} returned a {type(network).__name__}; it must return a torch.nn.Module"
        )
    network.eval()
    _probe(name, network, input_shape, classes)
    return network


def build_from(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    rng: np.random.Generator,
    arguments: Mapping[str, Argument] = MappingProxyType({}),
    weights: str | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network as `build` makes it, with pretrained weights, and notes on them.

    Args:
        name: as of `build`.
        input_shape: likewise.
        classes: likewise.
        rng: likewise.
        arguments: likewise.
        weights: a file (`trainer.networks.weights`); `none` for random ones; None for those that
            timm and torchvision download, and random ones of other networks.

    Raises:
        UnknownNameError, NetworkError: as `build`; weights that cannot be had or do not fit.
    """
    download = weights is None and is_pretrained(name, weights)
    network = build(name, input_shape, classes, rng, arguments, pretrained=download)
    if weights is None or weights == RANDOM:
        return network, ()
    path = Path(weights).expanduser()
    images = np.random.default_rng(0).normal(size=(2, *input_shape)).astype(np.float32)
    head = head_parameters(network, images)
    notes = load_state(network, read_state(path), path.name, head)
    _probe(name, network, input_shape, classes)
    return network, notes


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _probe(name: str, network: nn.Module, input_shape: tuple[int, int, int], classes: int) -> None:
    device, dtype = placement(network)
    try:
        with torch.no_grad():
            output = forward(network, torch.zeros((2, *input_shape), device=device, dtype=dtype))
    except NetworkError as error:
        raise NetworkError(f"network {name!r}, tried on two blank images: {error}") from error
    if output.shape[1] != classes:
        raise NetworkError(
            f"network {name!r} returns {output.shape[1]} logits an image; the data have "
            f"{classes} classes"
        )
    if not bool(torch.isfinite(output).all()):
        raise NetworkError(f"network {name!r} returns logits for a blank image that are not finite")
