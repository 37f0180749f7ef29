"""Which modules of a network give its intermediate feature maps: names of submodules.

From a network and a few images to the modules whose outputs a loss prediction module reads, as the
person named them, as the papers' networks have them, or as the sizes of the outputs suggest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Num
from torch import nn

from trainer.errors import NetworkError
from trainer.networks.architecture import depths_of
from trainer.networks.vgg import VGG
from trainer.networks.wide_resnet import WideResNet
from trainer.predict import forward, to_tensor

_MOST = 4  # taps that are chosen where nobody names them; as many as Yoo & Kweon have
_POOLED = 1e-5


class Tap(NamedTuple):
    """One of the modules whose outputs are read.

    Attributes:
        name: of the submodule.
        width: channels of its output, averaged over positions.
    """

    name: str
    width: int


class _Output(NamedTuple):
    name: str
    value: torch.Tensor
    learned: bool  # parameters of the network have entered it


def pooled(name: str, output: object) -> torch.Tensor:
    """Features averaged over positions, (batch, width).

    Args:
        name: of the module, for the message.
        output: (batch, channels, height, width) and more positions after the channels, or (batch,
            tokens, channels), or (batch, channels).

    Raises:
        NetworkError: it is none of these.
    """
    if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim >= 2:
        if output.ndim == 3:
            return output.mean(dim=1)
        return output.flatten(2).mean(dim=2) if output.ndim > 3 else output
    shape = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else ""
    raise NetworkError(
        f"the tap {name!r} gives a {type(output).__name__} {shape or 'that is no tensor'}; it "
        "must give (batch, channels, height, width), (batch, tokens, channels) or (batch, "
        "channels): name modules that do"
    )


def find_taps(
    network: nn.Module,
    images: Num[np.ndarray, "examples channels height width"],
    names: Sequence[str] = (),
) -> tuple[Tap, ...]:
    """The modules whose outputs are read.

    Without names: of the papers' networks those after each residual stage (`wide_resnet`,
    `resnet18`), pooling (`vgg11_bn`) or convolution and ReLU (`cnn`). Of another network, of the
    modules that are called once and in which parameters have a part, the last one at each
    resolution (for outputs without positions: of each width) before the logits, at most four, the
    last ones; a mere average of the one before it is left out.

    Args:
        network: in eval mode; its state is left as it was.
        images: a few, as the network takes them.
        names: of submodules.

    Raises:
        NetworkError: no such submodule, one that is not called once or gives no features, or none
            is found.
    """
    outputs, answers = _outputs(network, images)
    if names:
        if len(set(names)) < len(names):
            raise NetworkError(f"the taps {', '.join(names)} name a module twice; name each once")
        return tuple(_named(network, name, outputs) for name in names)
    found = list(_known(network)) or list(_guessed(outputs, answers))
    if not found:
        some = [output.name for output in outputs][:10]
        raise NetworkError(
            f"no intermediate feature map was found in this {type(network).__name__}: give the "
            "taps by name (--ll4al.taps NAME …), modules that are called once and come before the "
            f"logits; of those called there are {', '.join(some) or 'none'}"
        )
    return tuple(_named(network, name, outputs) for name in found)


def _named(network: nn.Module, name: str, outputs: Sequence[_Output]) -> Tap:
    parts = dict(network.named_modules())
    if name not in parts or not name:
        near = ", ".join([part for part in parts if part][:10])
        raise NetworkError(f"the network has no part {name!r} to tap; its parts are {near}")
    values = [output.value for output in outputs if output.name == name]
    if len(values) != 1:
        raise NetworkError(
            f"the tap {name!r} is called {len(values)} times for a batch and must be called once: "
            "name another module"
        )
    return Tap(name, pooled(name, values[0]).shape[1])


def _known(network: nn.Module) -> Iterator[str]:
    """Of the papers' networks."""
    depths = depths_of(network)
    kind = None if depths is None else depths.name
    if kind == "resnet18":
        yield from (f"layer{stage}" for stage in (1, 2, 3, 4))
    elif kind == "cnn":
        yield from ("features.1", "features.3", "features.5")
    elif isinstance(network, VGG):
        last = len(network.features) - 1  # a ReLU, where the fifth halving is left out
        for place, layer in enumerate(network.features):
            if isinstance(layer, nn.MaxPool2d) or place == last:
                yield f"features.{place}"
    elif isinstance(network, WideResNet):
        count = len(network.blocks)
        for place in range(count):  # a stage ends where the next begins
            if place + 1 == count or network.blocks[place + 1].shortcut is not None:
                yield f"blocks.{place}"


def _guessed(outputs: Sequence[_Output], answers: torch.Tensor) -> list[str]:
    """Of a person's own network: the last output at each resolution."""
    calls = [output.name for output in outputs]
    chosen: list[_Output] = []
    for output in outputs:
        value = output.value
        usable = value.is_floating_point() and value.ndim >= 2 and len(value) == len(answers)
        final = value.shape == answers.shape and torch.allclose(value, answers)
        if not usable or final or not output.learned or calls.count(output.name) > 1:
            continue
        if chosen and _adds_nothing(output, chosen[-1]):
            continue
        if chosen and _resolution(value) == _resolution(chosen[-1].value):
            chosen.pop()
        chosen.append(output)
    return [output.name for output in chosen[-_MOST:]]


def _resolution(value: torch.Tensor) -> tuple[int, ...]:
    """Of what has positions their sizes, of other outputs the width."""
    positions = {2: value.shape[1:], 3: value.shape[1:2]}.get(value.ndim, value.shape[2:])
    return (value.ndim, *positions)


def _adds_nothing(output: _Output, before: _Output) -> bool:
    """Whether it holds the same numbers in another shape (or dropped out), or their averages."""
    one, other = output.value, before.value
    if one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten()):
        return True
    one, other = pooled(output.name, one), pooled(before.name, other)
    scale = float(one.abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_POOLED * scale)


def _outputs(network: nn.Module, images: np.ndarray) -> tuple[list[_Output], torch.Tensor]:
    """What every submodule gives for a few images, in the order in which they end."""
    outputs: list[_Output] = []
    learned = False

    def hook(name: str, module: nn.Module):
        def note(_: nn.Module, __: object, value: object) -> None:
            nonlocal learned
            learned = learned or any(True for _ in module.parameters())
            if isinstance(value, torch.Tensor):
                # a copy: what is done to it in place afterwards is not what the module gave
                outputs.append(_Output(name, value.detach().clone(), learned))

        return note

    handles = [
        module.register_forward_hook(hook(name, module))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            answers = forward(network, to_tensor(images, network))
    finally:
        for handle in handles:
            handle.remove()
    return outputs, answers
