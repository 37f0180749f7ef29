"""Networks by name: from a name, an image shape and a number of classes to a torch module.

The table holds the networks of both papers with stems for small images (docs/mathematics.md, 5);
`module:factory` is a network of one's own. Every one is probed before it is handed out.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from trainer.errors import NetworkError
from trainer.networks.cnn import cnn
from trainer.networks.factory import Argument, keywords_for, load, parse_arguments
from trainer.networks.resnet import resnet18
from trainer.networks.vgg import vgg11_bn
from trainer.networks.wide_resnet import wide_resnet
from trainer.predict import forward, placement
from trainer.randomness import seeded
from trainer.tables import lookup

__all__ = ["NETWORKS", "build", "parameter_count", "parse_arguments"]
NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"wide_resnet": wide_resnet, "resnet18": resnet18, "vgg11_bn": vgg11_bn, "cnn": cnn}
)


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    rng: np.random.Generator,
    arguments: Mapping[str, Argument] = MappingProxyType({}),
) -> nn.Module:
    """A freshly initialised network, in eval mode, on the CPU.

    Args:
        name: a row of NETWORKS, or `module:factory`, which is imported and called as
            `factory(input_shape=…, classes=…, **arguments)`, without those of the first two that
            it does not take.
        input_shape: (channels, height, width) of one image.
        classes: how many logits.
        rng: where the initial weights come from; torch's global seed is left as it was.
        arguments: of the network, such as `{"stages": 1, "widen": 4}`.

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


def parameter_count(network: nn.Module) -> int:
    """How many numbers training changes."""
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
