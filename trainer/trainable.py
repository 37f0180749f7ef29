"""Trainable part of a network: its head, its last blocks, or parameters by name.

Whatever is frozen stays in eval mode while the rest is trained: its BatchNorm keeps the running
statistics and its dropout drops nothing, so that it is the same function in every round.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from trainer.config import last_blocks
from trainer.errors import NetworkError, some
from trainer.predict import find_head, forward, hooks, submodule, to_tensor

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A part of a network that is trained or frozen as a whole.

    Attributes:
        modules: names of its modules, the one that is called first in front.
        parameters: names of their parameters.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def set_trainable(network: nn.Module, text: str, images: np.ndarray) -> None:
    """Let those parameters be trained that the text says, and freeze all others.

    Args:
        network: in eval mode; `requires_grad` of its parameters is set.
        text: `head`, the layer that makes the logits, or the last block where none is found;
            `all`; `last:N`, the last N of `blocks`; or a regular expression that is searched for
            in parameters' names.
        images: a few, as the network takes them.

    Raises:
        NetworkError: there are fewer blocks, nothing has such a name, or it is no regular
            expression.
    """
    chosen = _chosen(network, text, images)
    for name, parameter in network.named_parameters():
        # of integers and the like there is no gradient
        parameter.requires_grad_(name in chosen and parameter.is_floating_point())


def _chosen(network: nn.Module, text: str, images: np.ndarray) -> set[str]:
    names = [name for name, _ in network.named_parameters()]
    if text == "all":
        return set(names)
    if text == "head":
        own = head_parameters(network, images)
        return set(own or blocks(network, images)[-1].parameters)
    count = last_blocks(text)
    if count is not None:
        listed = blocks(network, images)
        if count > len(listed):
            raise NetworkError(
                f"trainable is {text} and the network has {len(listed)} block(s): "
                f"{some(block.modules[0] for block in listed)}; lower the number, or say all"
            )
        return {name for block in listed[-count:] for name in block.parameters}
    chosen = {name for name in names if re.search(text, name)}
    if not chosen:
        raise NetworkError(
            f"trainable is {text!r}, which no parameter's name contains; there are {some(names)}"
        )
    return chosen


def head_parameters(network: nn.Module, images: np.ndarray) -> tuple[str, ...]:
    """Names of the parameters of the layer that makes the logits; none where there is none."""
    try:
        head = find_head(network, images)
    except NetworkError:
        return ()
    if head.output:
        return ()
    own = {id(p) for p in submodule(network, head.name, "the head").parameters()}
    return tuple(name for name, p in network.named_parameters() if id(p) in own)


def blocks(network: nn.Module, images: np.ndarray) -> list[Block]:
    """The blocks of a network in the order in which a forward pass enters them.

    Children of an nn.Sequential, ModuleList or ModuleDict are blocks, unless they are such
    containers themselves. The network itself is opened, and so is a module that holds a container
    somewhere; any other is a block. One whose parameters have fewer than two dimensions, such as a
    norm, belongs to the block before it, and so do parameters that an opened module holds itself
    to the first block in it. What has no parameters, or is not called, is in no block.

    Args:
        network: in eval mode; its state is left as it was.
        images: a few, as the network takes them.
    """
    called: dict[int, int] = {}

    def note(part: nn.Module, _: object) -> None:
        called.setdefault(id(part), len(called))

    registered = (part.register_forward_pre_hook(note) for part in network.modules())
    with torch.no_grad(), hooks(network, registered):
        forward(network, to_tensor(images, network))
    parts = []
    for name, part in _parts(network, ""):
        order = [called[id(inner)] for inner in part.modules() if id(inner) in called]
        if order and any(True for _ in part.parameters()):
            parts.append((min(order), name, part))
    own = {id(p): name for name, p in reversed([*network.named_parameters()])}
    seen: set[int] = set()
    listed: list[tuple[list[str], list[str]]] = []
    norms: tuple[list[str], list[str]] = ([], [])  # before any block
    for _, name, part in sorted(parts, key=lambda one: one[0]):
        named = [own[id(p)] for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in part.parameters()}
        alone = all(p.ndim < 2 for p in part.parameters())
        if not alone:
            listed.append(([*norms[0], name], [*norms[1], *named]))
            norms = ([], [])
        else:
            modules, parameters = listed[-1] if listed else norms
            modules.append(name)
            parameters.extend(named)
    if norms[0]:  # nothing but norms
        listed.append(norms)
    if listed:
        loose = [own[id(p)] for p in _loose(network) if id(p) not in seen]
        listed[0][1].extend(loose)
    if not listed:
        raise NetworkError("the network has no parameters, so there is nothing to train")
    return [Block(tuple(modules), tuple(parameters)) for modules, parameters in listed]


def _is_opened(module: nn.Module, root: bool) -> bool:
    holds_container = any(type(part) in _CONTAINERS for part in module.modules())
    return holds_container or (root and any(True for _ in module.children()))


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are blocks, or norms beside them, in the order of definition."""
    if not _is_opened(module, root=not name):
        yield name, module
        return
    of_container = type(module) in _CONTAINERS
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if of_container and type(child) not in _CONTAINERS:
            yield path, child
        else:
            yield from _parts(child, path)


def _loose(module: nn.Module, root: bool = True) -> Iterator[nn.Parameter]:
    """Parameters that opened modules hold themselves, such as a position's embedding."""
    if not _is_opened(module, root):
        return
    yield from module.parameters(recurse=False)
    for child in module.children():
        if type(module) not in _CONTAINERS or type(child) in _CONTAINERS:
            yield from _loose(child, root=False)


def is_frozen(module: nn.Module) -> bool:
    """True for a module that has parameters, none of which is trained."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)


def train_mode(network: nn.Module) -> None:
    """Put a network in train mode, but for modules all of whose parameters are frozen."""
    network.train()
    for part in network.modules():
        if is_frozen(part):
            part.eval()
