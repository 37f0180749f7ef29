"""What in an exported graph has no place in a pure function of one image, and why.

From nodes of `torch.export`'s graph, or the error it raised instead of one, to a `BridgeError`
whose message names the layer, the line of the user's code and the way out.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from bridge.errors import BatchSizeError, BridgeError, ExportError
from bridge.ops import OPERATORS

_TORCH = os.path.dirname(torch.__file__)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


def operator_name(node: fx.Node) -> str:
    """Name of a call as the operator table has it, such as `aten.relu.default`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}".lstrip("_")


def check(nodes: list[fx.Node]) -> None:
    """Refuse everything that is random, coupled, without a fixed size or unknown, all at once.

    Raises:
        BridgeError: a call draws random numbers, uses batch statistics or selects by a mask, or
            has no row.
    """
    missing, impure = [], []
    for node in nodes:
        op, where = operator_name(node), _where(node)
        reason = _impurity(node, op)
        if reason:
            impure.append(f"{where}: {reason}")
        elif op not in OPERATORS:
            missing.append((node, f"{op} in {where}"))
    if impure:
        raise BridgeError("the network is not a function of one image:\n  " + "\n  ".join(impure))
    if missing:
        raise BridgeError(
            f"{len(missing)} operator call(s) have no row in bridge.ops:\n  "
            + "\n  ".join(line for _, line in missing)
            + "\nadd each as a JAX function decorated with bridge.ops.register, before the network "
            "is mirrored; the first of them:\n\n" + _example(missing[0][0])
        )


def _example(node: fx.Node) -> str:
    """How a row for a call begins, with the signature that ATen gives the operator."""
    op = operator_name(node)
    lines = ["import jax.numpy as jnp", "from bridge.ops import register", ""]
    parameters = "*args, **kwargs"
    if isinstance(node.target, torch._ops.OpOverload):
        lines += [f"# {node.target._schema}"]
        parameters = _parameters(node.target._schema.arguments)
    name = op.split(".")[1].strip("_")
    lines += [f'@register("{op}")', f"def {name}({parameters}):", "    return jnp. ..."]
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _parameters(arguments: Any) -> str:
    """The parameters of an ATen schema in Python's notation; `self` is called x."""
    words, keywords = [], False
    for argument in arguments:
        if argument.kwarg_only and not keywords:
            keywords = True
            words.append("*")
        default = f"={argument.default_value!r}" if argument.has_default_value() else ""
        words.append(("x" if argument.name == "self" else argument.name) + default)
    return ", ".join(words)


# The argument of an operator without which it draws nothing.
_DRAWS_IF = {
    "aten.rrelu.default": "training",
    "aten.scaled_dot_product_attention.default": "dropout_p",
}


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    condition = _DRAWS_IF.get(operator_name(node))
    return condition is None or bool(_argument(node, condition))


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a call, or its default."""
    assert isinstance(node.target, torch._ops.OpOverload)
    places = {argument.name: i for i, argument in enumerate(node.target._schema.arguments)}
    if name in node.kwargs:
        return node.kwargs[name]
    if places[name] < len(node.args):
        return node.args[places[name]]
    return node.target._schema.arguments[places[name]].default_value


def _impurity(node: fx.Node, op: str) -> str:
    if "batch_norm" in op and op != "aten.batch_norm.default":
        return (
            "BatchNorm without running statistics makes an image's logits depend on its batch; "
            "build it with track_running_stats=True and train it, or use GroupNorm"
        )
    if is_random(node):
        return (
            f"{op} draws random numbers in eval mode; if it is dropout, call F.dropout with "
            "training=self.training"
        )
    if _selects_by_mask(node, op):
        return (
            "a mask selects as many values as it happens to hold; keep the shape, with "
            "torch.where(mask, x, 0), or select by whole numbers"
        )
    return ""


def _selects_by_mask(node: fx.Node, op: str) -> bool:
    """Whether the shape of what is looked up, or put, depends on the values of a mask."""
    if op not in ("aten.index.Tensor", "aten.index_put.default"):
        return False
    x, indices, *values = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, (list, tuple))
    given = [index for index in indices if isinstance(index, fx.Node)]
    masks = [index for index in given if index.meta["val"].dtype == torch.bool]
    if not masks or op == "aten.index.Tensor":
        return bool(masks)
    assert isinstance(values[0], fx.Node)
    behind = x.meta["val"].ndim - (len(indices) - 1) - masks[0].meta["val"].ndim
    return len(given) > 1 or values[0].meta["val"].ndim > behind


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that a call belongs to; empty for the network itself."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [re.sub(r"@\d+$", "", path) for key, (path, _) in stack.items() if "empty" not in key]
    return paths[-1] if paths else ""


def _where(node: fx.Node) -> str:
    module = module_path(node)
    label = f"layer {module!r}" if module else "the network's own forward"
    return label + user_line(node.meta.get("stack_trace") or "")


def explain(error: Exception) -> BridgeError:
    """What an error of `torch.export` means for the person who wrote the network.

    An `ExportError` only where another route may still take the network.
    """
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    where = user_line(text)
    kind = type(error).__name__
    refusal: type[BridgeError] = BridgeError
    if "DataDependent" in kind or "data-dependent" in text:
        reason = (
            "a Python branch, loop or .item() depends on the values of the images; write it with "
            "torch.where, or take the branch outside forward"
        )
    elif "Constraint" in kind or "specializ" in text or "Dim.DYNAMIC" in text:
        reason = (
            "forward works for one batch size only; use x.shape[0] or -1 in place of a number, "
            "and do not turn the batch size into an int"
        )
        refusal = BatchSizeError
    else:
        reason = f"{kind}: {first}"
        refusal = ExportError
    return refusal(f"torch.export cannot turn the network into a graph{where}: {reason}")


def user_line(text: str) -> str:
    """The last line in a traceback that is not torch's own, as ` (file:line: code)`, or nothing."""
    frames = [frame for frame in _FRAME.findall(text) if not frame[0].startswith(_TORCH)]
    if not frames:
        return ""
    path, line, code = frames[-1]
    return f" ({os.path.basename(path)}:{line}: {code.strip()})"
