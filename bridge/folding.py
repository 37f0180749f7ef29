"""What no image and no weight decides, computed once by torch when a network is mirrored.

From a graph and its constant tensors to the values of every call that depends on nothing else:
position ids, masks, tables of sines. They enter the mirror as constants, so that they are torch's
own values to the last bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg


def fold(
    graph: fx.Graph,
    constants: Mapping[fx.Node, torch.Tensor],
    is_random: Callable[[fx.Node], bool],
) -> dict[fx.Node, Any]:
    """The value of each call that depends on constants alone, and the constants' own.

    Args:
        graph: functional: no call writes into its arguments.
        constants: placeholders and what they stand for.
        is_random: whether a call draws random numbers; such calls are left for the refusal.
    """
    values: dict[fx.Node, Any] = dict(constants)
    with torch.no_grad():
        for node in graph.nodes:
            if node.op != "call_function" or is_random(node):
                continue
            if all(argument in values for argument in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values
