"""What a program is made of: operator calls, what they refer to, and where weights enter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

IMAGES = "images"
# How the names of arrays begin that are in no state dict but in the graph.
CONSTANT = "constant:"


class Ref(NamedTuple):
    """The output of an earlier node, or the images."""

    node: str


class Weight(NamedTuple):
    """A parameter, a buffer or a constant tensor, by name."""

    name: str


class DType(NamedTuple):
    """A dtype, by its NumPy name, or IMAGES for that of the images."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operator call.

    `args` and `kwargs` are those of the ATen schema: numbers, strings, None, tuples of these,
    and Ref, Weight and DType in place of what is only known when the program runs.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str
    source: str


@dataclass(frozen=True)
class Site:
    """A node that directly consumes a weight.

    Attributes:
        name: path of the module that the node belongs to, with `#2`, `#3`, … from its second
            site on; the operator's name in place of a path where the call is in no submodule.
        op: ATen name of the operator.
        parameters: trainable parameters consumed, by their canonical names.
        buffers: other arrays consumed: buffers, parameters without gradient, constants.
        node: name of the node.
        source: line of the user's code.
    """

    name: str
    op: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    node: str
    source: str


def references(node: Node, kind: type) -> Iterator[Any]:
    """What a node refers to, of one kind (Ref or Weight), each once, in order of appearance."""
    seen = set()
    leaves = jax.tree.leaves(
        (node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, (Ref, Weight, DType))
    )
    for leaf in leaves:
        if isinstance(leaf, kind) and leaf not in seen:
            seen.add(leaf)
            yield leaf
