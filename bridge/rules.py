"""Which layers are products, in words that the kernels understand.

From a node of a program to the rule of `kernel.layers.rules` that its gradients follow: dense
layers, convolutions and embeddings whose trainable arrays are their own arguments and nothing else.
Every other node has no rule, and its gradients are the vjp of its operator.
"""

from collections.abc import Mapping
from typing import Any

from bridge.nodes import Node, Ref, Weight
from bridge.ops.layers import edges_of
from bridge.ops.pooling import per_axis
from kernel.layers.rules import Lookup, Product, Rule, Window

_PRODUCTS = frozenset(
    {"aten.linear.default"}
    | {f"aten.conv{n}d.{form}" for n in (1, 2, 3) for form in ("default", "padding")}
)
_NAMES = ("x", "weight", "bias", "stride", "padding", "dilation", "groups")


def rule(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Rule | None:
    """The rule of a node, if it has one.

    Args:
        node: of a program.
        shapes: of the trainable arrays of the network, by name.
    """
    if node.op == "aten.embedding.default":
        return _lookup(node, shapes)
    if node.op not in _PRODUCTS:
        return None
    given = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = given["weight"], given.get("bias")
    if not isinstance(weight, Weight) or weight.name not in shapes or weight == bias:
        return None
    if not isinstance(given["x"], Ref) or not (bias is None or isinstance(bias, Weight)):
        return None
    shape = shapes[weight.name]
    window = None if node.op == "aten.linear.default" else _window(given, shape)
    return Product(
        weight=weight.name,
        bias=bias.name if bias is not None and bias.name in shapes else None,
        inputs=shape[1] * (window.groups if window else 1),
        outputs=shape[0],
        window=window,
    )


def _window(given: dict[str, Any], shape: tuple[int, ...]) -> Window:
    kernel, rank = shape[2:], len(shape) - 2
    dilation = per_axis(given.get("dilation", 1), rank)
    return Window(
        kernel=kernel,
        stride=per_axis(given.get("stride", 1), rank),
        edges=tuple(edges_of(given.get("padding", 0), kernel, dilation)),
        dilation=dilation,
        groups=given.get("groups", 1),
    )


def _lookup(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Lookup | None:
    table, places, *more = node.args
    if not isinstance(table, Weight) or not isinstance(places, Ref):
        return None
    padding = more[0] if more else node.kwargs.get("padding_idx", -1)
    return Lookup(table=table.name, entries=shapes[table.name][0], padding=padding)
