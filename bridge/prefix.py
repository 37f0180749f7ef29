"""The frozen prefix of a network: what depends on the images and on no trainable parameter.

A traced network is split by data flow (docs/mathematics.md, 2). The prefix maps images to its
*frontier*, the values that the rest reads, one row an image; it is run by torch, and its rows are
the same in every round. The *tail* maps rows to logits: a module that shares the network's own
trainable parameters, and its mirror. A kernel, a prediction or a training that starts from rows
costs the tail alone.
"""

import hashlib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bridge.mirror import Mirror
from bridge.module import canonical_names, to_numpy
from bridge.program import CONSTANT, IMAGES, DType, Node, Program, Ref, Weight, references

ROWS = "frontier"
_LAYERS = (nn.Linear, nn.Conv2d)


def _operator(op: str) -> Callable[..., Any]:
    """The function of torch for a name as of `bridge.graph.operator_name`."""
    first, *rest = op.split(".")
    if len(rest) == 2:
        return getattr(getattr(getattr(torch.ops, first), rest[0]), rest[1])
    return getattr(importlib.import_module(first), rest[0])


class _Steps:
    """A program's nodes as calls of torch, each value kept no longer than it is read."""

    def __init__(self, nodes: Sequence[Node], kept: Iterable[str]):
        kept = set(kept)
        last = {ref.node: node.name for node in nodes for ref in references(node, Ref)}
        self._steps = []
        for node in nodes:
            read = {ref.node for ref in references(node, Ref)}
            done = [name for name in read if last[name] == node.name and name not in kept]
            self._steps.append((node, _operator(node.op), done))

    def run(
        self,
        values: dict[str, Any],
        arrays: Mapping[str, torch.Tensor],
        layers: Mapping[str, nn.Module],
        like: torch.Tensor,
    ) -> dict[str, Any]:
        """Run all nodes.

        Args:
            values: of the images or rows, by name; others are added, and dropped when done with.
            arrays: weights by name.
            layers: nodes that are a module's whole forward, which is called in their place.
            like: has dtype and device of the images.
        """
        largest = torch.finfo(like.dtype).max

        def resolve(value: Any) -> Any:
            if isinstance(value, Ref):
                return values[value.node]
            if isinstance(value, Weight):
                array = arrays[value.name]
                follows = value.name.startswith(CONSTANT) and array.is_floating_point()
                return array.to(like.dtype) if follows else array
            if isinstance(value, DType):
                return like.dtype if value.name == IMAGES else getattr(torch, value.name)
            if isinstance(value, tuple):
                return [resolve(part) for part in value]
            if isinstance(value, float) and math.isfinite(value):
                return min(max(value, -largest), largest)  # as in bridge.program
            return value

        for node, operator, done in self._steps:
            if node.name in layers:
                values[node.name] = layers[node.name](resolve(node.args[0]))
            else:
                named = {key: resolve(value) for key, value in node.kwargs.items()}
                if "device" in named:  # the trace names none
                    named["device"] = like.device
                values[node.name] = operator(*map(resolve, node.args), **named)
            for name in done:
                values.pop(name, None)
        return values


class Frontier(NamedTuple):
    """Values that the tail reads of the prefix, side by side in a row.

    Attributes:
        nodes: their names, in the order of the row.
        shapes: of each for one image, without the batch; with it where images are mapped one by
            one.
    """

    nodes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(math.prod(shape) for shape in self.shapes)


class Tail(nn.Module):
    """Rows of a frontier → logits, by the network's own parameters and layers.

    Parameters and buffers that the tail reads are the network's tensors, under their names there.
    nn.Linear and nn.Conv2d are called as modules, so that hooks see them. What is computed is
    the function that is mirrored whatever the mode: BatchNorm with running statistics, no dropout.
    """

    def __init__(self, program: Program, network: nn.Module, constants: Mapping[str, torch.Tensor]):
        """Share what the program reads of the network.

        Args:
            program: of the tail.
            network: that was split, in eval mode.
            constants: of the graph, by name; copied.
        """
        super().__init__()
        self.program = program
        read = {w.name: None for node in program.nodes for w in references(node, Weight)}
        self._layers = {
            node.name: node.module
            for node in program.nodes
            if _is_layer(node, network, canonical_names(network))
        }
        for path in dict.fromkeys(self._layers.values()):
            self._place(path, network.get_submodule(path))
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        persistent = network.state_dict().keys()
        held = dict(self.named_parameters()) | dict(self.named_buffers())
        for name in read:
            if name.startswith(CONSTANT):
                self.register_buffer(_constant(name), constants[name].clone(), persistent=False)
            elif name not in held:
                self._place(name, own[name], persistent=name in persistent)
        self._constants = {name: _constant(name) for name in read if name.startswith(CONSTANT)}
        self._steps = _Steps(program.nodes, [program.output.node])
        self.eval()

    def _place(self, path: str, value: nn.Module | torch.Tensor, persistent: bool = True) -> None:
        """Put a module, parameter or buffer under its path, in empty modules made on the way."""
        *folders, leaf = path.split(".")
        owner: nn.Module = self
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        if isinstance(value, nn.Module):
            owner.add_module(leaf, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value, persistent)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of rows (batch, width)."""
        if self.program.one_by_one:
            return torch.cat([self._run(row[None]) for row in rows])
        return self._run(rows)

    def _run(self, rows: torch.Tensor) -> torch.Tensor:
        arrays = dict(self.named_parameters()) | dict(self.named_buffers())
        arrays |= {name: self.get_buffer(own) for name, own in self._constants.items()}
        layers = {node: self.get_submodule(path) for node, path in self._layers.items()}
        values = self._steps.run({self.program.images: rows}, arrays, layers, rows)
        return values[self.program.output.node]


def _constant(name: str) -> str:
    return name.replace(":", "_").replace(".", "_")


def _is_layer(node: Node, network: nn.Module, canonical: Mapping[str, str]) -> bool:
    """Whether a node is all that a linear layer or convolution computes, with its own weights."""
    if not node.module or not isinstance(node.args[0] if node.args else None, Ref):
        return False
    layer = network.get_submodule(node.module)
    names = {canonical[f"{node.module}.{name}"] for name, _ in layer.named_parameters()}
    own = all(name.startswith(f"{node.module}.") for name in names)
    same = names == {weight.name for weight in references(node, Weight)}
    plain = type(layer) in _LAYERS and layer.__dict__.get("forward") is None
    return plain and own and same and getattr(layer, "padding_mode", "zeros") == "zeros"


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """A network split at its frontier.

    Attributes:
        program: images → frontier; its output is not read.
        frontier: what the tail reads.
        tail: rows → logits, with the network's own parameters.
        mirror: of the tail, with the weights of when it was split.
        arrays: that the rows depend on, by name: the network's own tensors, and constants.
    """

    program: Program
    frontier: Frontier
    tail: Tail
    mirror: Mirror
    arrays: Mapping[str, torch.Tensor]

    @cached_property
    def _steps(self) -> _Steps:
        return _Steps(self.program.nodes, self.frontier.nodes)

    def is_of(self, network: nn.Module) -> bool:
        """Whether a network still holds the tensors that were split, trainable ones the same."""
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        held = {**self.arrays, **dict(self.tail.named_parameters())}
        trainable = {name for name, p in network.named_parameters() if p.requires_grad}
        return trainable == self.mirror.params.keys() and all(
            own.get(name) is tensor for name, tensor in held.items() if ":" not in name
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Changes whenever an array that rows depend on is written to."""
        return tuple(array._version for array in self.arrays.values())

    def digest(self) -> str:
        """SHA-256 of all that the rows of an image depend on, but for the image."""
        text = (self.program.images, self.program.nodes, self.program.one_by_one, self.frontier)
        digest = hashlib.sha256(repr(text).encode())
        for name, array in self.arrays.items():
            own = to_numpy(array)
            digest.update(f"{name}{own.shape}{own.dtype}".encode())
            digest.update(own.tobytes())
        return digest.hexdigest()

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """The frontier (batch, width) of images, in their dtype and on their device, by torch.

        Floating arrays of the prefix are taken in that dtype, so that float64 images give exact
        rows.
        """
        arrays = {
            name: a.detach().to(images.device, images.dtype if a.is_floating_point() else a.dtype)
            for name, a in self.arrays.items()
        }
        with torch.no_grad():
            if self.program.one_by_one:
                return torch.cat([self._rows(image[None], arrays) for image in images])
            return self._rows(images, arrays)

    def _rows(self, images: torch.Tensor, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = self._steps.run({self.program.images: images}, arrays, {}, images)
        return torch.cat([values[n].reshape(len(images), -1) for n in self.frontier.nodes], 1)


def split(network: nn.Module, mirror: Mirror, images: torch.Tensor) -> FrozenPrefix | None:
    """Split a network at the frontier of its frozen prefix.

    Args:
        network: in eval mode.
        mirror: of it, traced with its present weights.
        images: two or more, as the network takes them.

    Returns:
        None where nothing would be saved or the frontier is not to be had: no frozen parameter is
        used before the first trainable one, or the mirror has no program.
    """
    program = mirror.program
    if program is None or not mirror.params:
        return None
    constants = {
        name: torch.tensor(np.asarray(array), device=images.device)
        for name, array in mirror.frozen.items()
        if name.startswith(CONSTANT)
    }
    arrays = {**dict(network.named_parameters()), **dict(network.named_buffers()), **constants}
    frozen_parameters = {n for n, p in network.named_parameters() if not p.requires_grad}
    moved: set[str] = set()  # computed in the tail although they could be in the prefix
    while True:
        frozen = _frozen(program, set(mirror.params), moved)
        inside = [node for node in program.nodes if node.name in frozen]
        used = {w.name for node in inside for w in references(node, Weight)}
        if not used & frozen_parameters:
            return None
        outside = [node for node in program.nodes if node.name not in frozen]
        read = dict.fromkeys(ref.node for node in outside for ref in references(node, Ref))
        names = [name for name in read if name in frozen]
        found = _values(program, inside, names, arrays, images)
        refused = {name for name in names if found[name] is None}
        if program.images in refused:
            return None
        if not refused:
            break
        moved |= refused
    sizes = [name for name in names if found[name] == ()]
    kept = [name for name in names if name not in sizes]
    shapes = {name: shape for name, shape in found.items() if shape is not None}
    frontier = Frontier(tuple(kept), tuple(shapes[name] for name in kept))
    needed = _ancestors(inside, kept)
    before = replace(program, nodes=tuple(n for n in inside if n.name in needed), sites=())
    after = _tail_program(program, outside, frontier, sizes)
    read_after = {w.name for node in after.nodes for w in references(node, Weight)}
    tail_mirror = replace(
        mirror,
        function=after,
        frozen={name: array for name, array in mirror.frozen.items() if name in read_after},
        constants=mirror.constants & read_after,
    )
    read_before = {w.name for node in before.nodes for w in references(node, Weight)}
    own = {name: arrays[name] for name in sorted(read_before)}
    return FrozenPrefix(before, frontier, Tail(after, network, constants), tail_mirror, own)


def _frozen(program: Program, trainable: set[str], moved: set[str]) -> set[str]:
    """Names of the nodes that depend on no trainable parameter, and of the images."""
    frozen = {program.images}
    for node in program.nodes:
        weights = {weight.name for weight in references(node, Weight)}
        before = {ref.node for ref in references(node, Ref)}
        if node.name not in moved and not weights & trainable and before <= frozen:
            frozen.add(node.name)
    return frozen


def _values(
    program: Program,
    nodes: Sequence[Node],
    names: Sequence[str],
    arrays: Mapping[str, torch.Tensor],
    images: torch.Tensor,
) -> dict[str, tuple[int, ...] | None]:
    """Shapes for one image of some values of the prefix.

    () stands for the size of the batch; None for what has no row an image: its first axis is not
    the batch, or it holds no floating-point numbers.
    """
    steps, found = _Steps(nodes, names), {}
    counts = (1,) if program.one_by_one else (2, 3)
    seen = []
    for count in counts:
        some = images[torch.arange(count) % len(images)]
        with torch.no_grad():
            seen.append(steps.run({program.images: some}, arrays, {}, some))
    for name in names:
        values = [each[name] for each in seen]
        found[name] = None
        if all(isinstance(value, torch.Tensor) for value in values):
            floating = all(value.is_floating_point() for value in values)
            if program.one_by_one:
                found[name] = tuple(values[0].shape) if floating else None
            else:
                rest = {tuple(value.shape[1:]) for value in values}
                batch = [value.shape[:1] for value in values] == [(count,) for count in counts]
                found[name] = rest.pop() if floating and batch and len(rest) == 1 else None
                if found[name] == ():  # a number an image
                    found[name] = None
        elif values == list(counts):
            found[name] = ()
    return found


def _ancestors(nodes: Sequence[Node], names: Iterable[str]) -> set[str]:
    """Names of the nodes that some of them depend on, and their own."""
    needed = set(names)
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(ref.node for ref in references(node, Ref))
    return needed


def _tail_program(
    program: Program, nodes: Sequence[Node], frontier: Frontier, sizes: Sequence[str]
) -> Program:
    """The nodes of the tail on rows, after those that take a row apart."""
    taken = {node.name for node in program.nodes} | {program.images}
    rows = next(name for name in (ROWS, f"{ROWS}_rows", f"{ROWS}_of_rows") if name not in taken)
    single = len(frontier.nodes) == 1
    flat = single and len(frontier.shapes[0]) == 1 and not program.one_by_one
    renamed = {frontier.nodes[0]: rows} if flat else {}
    first = [_node(name, "aten.sym_size.int", (Ref(rows), 0)) for name in sizes]
    start = 0
    for name, shape in zip(frontier.nodes, frontier.shapes, strict=True):
        stop = start + math.prod(shape)
        part = rows
        if not single:
            part = f"{name}_row"
            first.append(_node(part, "aten.slice.Tensor", (Ref(rows), 1, start, stop)))
        if not flat:
            whole = shape if program.one_by_one else (-1, *shape)
            first.append(_node(name, "aten.view.default", (Ref(part), whole)))
        start = stop

    def rename(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(renamed.get(value.node, value.node))
        if type(value) is tuple:
            return tuple(rename(part) for part in value)
        return value

    own = tuple(
        replace(
            node,
            args=rename(node.args),
            kwargs={key: rename(value) for key, value in node.kwargs.items()},
        )
        for node in nodes
    )
    names = {node.name for node in own}
    return replace(
        program,
        images=rows,
        nodes=(*first, *own),
        output=rename(program.output),
        sites=tuple(site for site in program.sites if site.node in names),
    )


def _node(name: str, op: str, args: tuple[Any, ...]) -> Node:
    return Node(name, op, args, {}, "", "")
