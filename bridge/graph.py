"""Trace of a PyTorch module as a `Program`, by `torch.export`.

The module is copied, exported in float64 with a free batch dimension and functionalised; only
operators without a row of ours are decomposed. Calls that depend on neither images nor weights
(position ids, masks, tables of sines) are folded by torch and enter the mirror as constants. A call
that makes the logits no pure function of one image is refused, with its layer, the line of the
user's code and the way out; what matters is whether images reach its operands and whether its
result reaches the logits.
"""

import inspect
import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import map_arg

from bridge.errors import BatchSizeError, BridgeError, ExportError
from bridge.module import canonical_names, copy_module, one_dtype
from bridge.ops import OPERATORS
from bridge.program import CONSTANT, IMAGES, DType, Node, Program, Ref, Site, Weight, references


def fold(
    graph: fx.Graph,
    constants: Mapping[fx.Node, torch.Tensor],
    is_random: Callable[[fx.Node], bool],
) -> dict[fx.Node, Any]:
    """Values of the constants and of the calls that depend on constants alone.

    Args:
        graph: functional: no call writes into its arguments.
        constants: values of placeholders.
        is_random: true of a call that draws random numbers, which is not folded.
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


# Frames of a traceback that are not the user's.
_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(__file__))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')


def operator_name(node: fx.Node) -> str:
    """Name of a call as the operator table has it, such as `aten.relu.default`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}".lstrip("_")


def refuse_unsupported(nodes: list[fx.Node], on_images: Collection[fx.Node]) -> None:
    """Refuse calls that are random, couple the batch, have no fixed size or no row, all at once.

    Args:
        nodes: that the logits depend on.
        on_images: nodes that depend on the images.

    Raises:
        BridgeError: a call draws random numbers, uses batch statistics or selects by a mask, or
            has no row.
    """
    missing, impure = [], []
    for node in nodes:
        op, where = operator_name(node), _where(node)
        reason = _impurity(node, op, on_images)
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
    """First lines of a new row for a call, with the signature of the ATen schema."""
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
    signature, keywords = [], False
    for argument in arguments:
        if argument.kwarg_only and not keywords:
            keywords = True
            signature.append("*")
        default = f"={argument.default_value!r}" if argument.has_default_value() else ""
        signature.append(("x" if argument.name == "self" else argument.name) + default)
    return ", ".join(signature)


# Arguments of operators that draw random numbers only if these are true or positive.
_DRAWS_IF = frozenset({"p", "dropout", "dropout_p", "train", "training"})


def is_random(node: fx.Node) -> bool:
    """True for calls that draw random numbers."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    conditions = _DRAWS_IF.intersection(argument.name for argument in target._schema.arguments)
    return all(bool(_argument(node, name)) for name in conditions)


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a call, or its default."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    position = [argument.name for argument in arguments].index(name)
    if name in node.kwargs:
        return node.kwargs[name]
    if position < len(node.args):
        return node.args[position]
    return arguments[position].default_value


def _impurity(node: fx.Node, op: str, on_images: Collection[fx.Node]) -> str:
    """Reason why a call makes the logits no function of one image, or nothing."""
    normalises_batch = "batch_norm" in op and op != "aten.batch_norm.default"
    if normalises_batch and node.args[0] in on_images:
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
            "the number of values that a mask selects depends on what it holds; keep the shape, "
            "with torch.where(mask, x, 0), or select by integer indices"
        )
    return ""


def _selects_by_mask(node: fx.Node, op: str) -> bool:
    """True where a mask decides the shape of the values gathered or scattered."""
    if op not in ("aten.index.Tensor", "aten.index_put.default"):
        return False
    x, indices, *values = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(indices, (list, tuple))
    tensors = [index for index in indices if isinstance(index, fx.Node)]
    masks = [index for index in tensors if index.meta["val"].dtype == torch.bool]
    if not masks or op == "aten.index.Tensor":
        return bool(masks)
    assert isinstance(values[0], fx.Node)
    behind = x.meta["val"].ndim - (len(indices) - 1) - masks[0].meta["val"].ndim
    return len(tensors) > 1 or values[0].meta["val"].ndim > behind


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
    """Translate an error of `torch.export` for the author of the network.

    An `ExportError` only where another route may still take the network.
    """
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    where = user_line(text)
    kind = type(error).__name__
    refusal: type[BridgeError] = BridgeError
    if "DataDependent" in kind or "data-dependent" in text:
        reason = (
            "a Python branch, loop or .item() depends on the values of the images or of an array; "
            "write it with torch.where, or take the branch outside forward"
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
    """The user's last line in a traceback, as ` (file:line: code)`, or nothing."""
    frames = [frame for frame in _FRAME.findall(text) if not frame[0].startswith(_LIBRARIES)]
    if not frames:
        return ""
    path, line, code = frames[-1]
    return f" ({os.path.basename(path)}:{line}: {code.strip()})"


# Devices and memory layouts, which are no arguments in JAX.
_LAYOUT = (torch.device, torch.layout, torch.memory_format)


class Lifted(NamedTuple):
    """A program and the tensors that its weights stand for.

    Attributes:
        program: the pure function.
        tensors: every parameter and buffer of the module and every constant of its graph, by
            canonical name: a tied one has the first of its names.
        trainable: names of the parameters that have a gradient.
        constants: names of the tensors that are not in the module's state dict.
    """

    program: Program
    tensors: dict[str, torch.Tensor]
    trainable: frozenset[str]
    constants: frozenset[str]


def lift(module: nn.Module, images: torch.Tensor) -> Lifted:
    """The program of a module in eval mode, traced from a copy in float64.

    Raises:
        BridgeError: the module cannot be exported, uses an operator without a row, depends on
            randomness, batch statistics or a buffer that it changes, or has parameters that it
            never uses.
    """
    native = {n: t.dtype for n, t in [*module.named_parameters(), *module.named_buffers()]}
    module = copy_module(module).double()
    exported, one_by_one = _exported(module, images.double())
    graph, signature = exported.graph, exported.graph_signature
    canonical = canonical_names(module)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    persistent = module.state_dict().keys()
    constants = {name for name in tensors if name not in persistent}
    weights: dict[fx.Node, Any] = {}
    graph_constants: dict[fx.Node, torch.Tensor] = {}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    images_node = graph.output_node()
    for spec in signature.input_specs:
        node = placeholders[getattr(spec.arg, "name", "")]
        if spec.kind is InputKind.USER_INPUT:
            images_node = node
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[node] = Weight(canonical[str(spec.target)])
        else:
            constant = exported.constants[str(spec.target)]
            if not isinstance(constant, torch.Tensor):
                raise BridgeError(
                    f"the network holds {spec.target!r}, a {type(constant).__name__}, and uses it "
                    "in forward; only tensors can be mirrored"
                )
            graph_constants[node] = constant

    _restore_batch_norm(graph)
    folded = fold(graph, graph_constants, is_random)
    logits, needed = _logits(exported, folded)
    live = [n for n in graph.nodes if n in needed and n.op == "call_function"]
    refuse_unsupported(live, _dependent(graph, images_node))
    for node in [source for user in live for source in user.all_input_nodes if source in folded]:
        weights[node] = folded[node]
        if isinstance(folded[node], torch.Tensor):
            weights[node] = Weight(f"{CONSTANT}{node.name}")
            tensors[weights[node].name] = folded[node]
            constants.add(weights[node].name)
    nodes = tuple(_node(node, weights) for node in live)
    trainable = frozenset(n for n, p in module.named_parameters() if p.requires_grad)
    sites = _sites(nodes, trainable)
    unused = trainable - {name for site in sites for name in site.parameters}
    if unused:
        raise BridgeError(
            f"the logits do not depend on {len(unused)} trainable parameter(s): "
            f"{', '.join(sorted(unused))}; remove them, or freeze them with requires_grad_(False)"
        )
    return Lifted(
        Program(images_node.name, nodes, Ref(logits.name), sites, one_by_one),
        {name: tensor.to(native.get(name, tensor.dtype)) for name, tensor in tensors.items()},
        trainable,
        frozenset(constants),
    )


def _exported(module: nn.Module, images: torch.Tensor) -> tuple[ExportedProgram, bool]:
    """The graph for any batch size, or else for one image; and whether it is the second."""
    try:
        return _export(module, images, {0: torch.export.Dim.DYNAMIC}), False
    except BatchSizeError as refusal:
        try:
            alone = _export(module, images[:1], {})
        except ExportError:  # the batch size is not the only fault
            raise refusal from None
        (output,) = alone.graph.output_node().all_input_nodes
        if output.meta["val"].ndim != 2 or output.meta["val"].shape[0] != 1:
            raise refusal from None
        return alone, True


def _export(module: nn.Module, images: torch.Tensor, free: dict[int, Any]) -> ExportedProgram:
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        # torch.export needs a name for the images, which a wrapper's *args do not give.
        forward = module.forward

        def named(images: torch.Tensor) -> torch.Tensor:
            return forward(images)

        module.forward = named
    with warnings.catch_warnings():
        # torch 2.13 warns of its own use of LeafSpec when it makes a graph functional.
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # Recurrent layers refresh a list of their parameters, hooks set the weights they compute.
        warnings.filterwarnings("ignore", r"The tensor attributes? .* assigned dur", UserWarning)
        try:
            with one_dtype(images.dtype):
                exported = torch.export.export(module, (images,), dynamic_shapes=(free,))
            for part in exported.graph_module.modules():
                if isinstance(part, fx.GraphModule):
                    _state_gradients(part)
            table = torch.export.default_decompositions()
            rows = {op: table[op] for op in list(table) if str(op) not in OPERATORS}
            return exported.run_decompositions(rows)
        except Exception as error:
            raise explain(error) from error


def _state_gradients(module: fx.GraphModule) -> None:
    """Put `aten.detach` where `torch.no_grad` ends, which the decomposition would leave out.

    Assertions of dtypes go: torch writes those of tensors that `one_dtype` has cast.
    """
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target is torch.ops.higher_order.wrap_with_set_grad_enabled and not node.args[0]:
            for output in list(node.users):
                with module.graph.inserting_after(output):
                    detached = module.graph.call_function(torch.ops.aten.detach.default, (output,))
                detached.meta = dict(output.meta)
                output.replace_all_uses_with(detached, lambda user, own=detached: user is not own)
    module.recompile()


def _restore_batch_norm(graph: fx.Graph) -> None:
    """Put `aten.batch_norm` in place of the functional form of BatchNorm in eval mode.

    In train mode, put the form that reads no running statistics for all but the new ones.
    """
    for node in list(graph.nodes):
        if node.target == torch.ops.aten._native_batch_norm_legit_functional.default:
            x, weight, bias, *_, training, momentum, eps = node.args
            if training:
                with graph.inserting_before(node):
                    own = graph.call_function(
                        torch.ops.aten._native_batch_norm_legit.no_stats,
                        (x, weight, bias, True, momentum, eps),
                    )
                own.meta = {**node.meta, "val": node.meta["val"][:3]}
                for output in list(node.users):
                    if output.args[1] < 3:
                        output.replace_input_with(node, own)
        if node.target != torch.ops.aten._native_batch_norm_legit_no_training.default:
            continue
        *tensors, momentum, eps = node.args
        with graph.inserting_before(node):
            restored = graph.call_function(
                torch.ops.aten.batch_norm.default, (*tensors, False, momentum, eps, False)
            )
        restored.meta = {**node.meta, "val": node.meta["val"][0]}
        for output in list(node.users):
            output.replace_all_uses_with(restored)
            graph.erase_node(output)
        graph.erase_node(node)


def _logits(
    exported: ExportedProgram, folded: Mapping[fx.Node, Any]
) -> tuple[fx.Node, set[fx.Node]]:
    """The node of the logits, and all that it depends on, up to folded ones.

    Raises:
        BridgeError: the logits depend on the earlier value of a buffer that forward changes.
    """
    signature = exported.graph_signature
    returned = exported.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    outputs = list(zip(signature.output_specs, returned, strict=True))
    (logits,) = [node for spec, node in outputs if spec.kind is OutputKind.USER_OUTPUT]
    assert isinstance(logits, fx.Node)
    needed: set[fx.Node] = set()
    stack = [logits]
    while stack:
        node = stack.pop()
        if node not in needed and node not in folded:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    read = {node.name for node in needed}
    inputs = {s.target for s in signature.input_specs if getattr(s.arg, "name", "") in read}
    for spec, _ in outputs:
        if spec.kind is not OutputKind.USER_OUTPUT and spec.target in inputs:
            raise BridgeError(
                f"the network's forward changes {spec.target!r} and reads it, so that its logits "
                "depend on what it saw before; in eval mode it must leave its buffers alone"
            )
    return logits, needed


def _dependent(graph: fx.Graph, images: fx.Node) -> set[fx.Node]:
    """The nodes whose values depend on those of the images; sizes do not."""
    found = {images}
    for node in graph.nodes:
        sizes = operator_name(node) == "aten.sym_size.int" if node.op == "call_function" else False
        if not sizes and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _node(node: fx.Node, weights: Mapping[fx.Node, Any]) -> Node:
    def convert(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return weights.get(value, Ref(value.name))
        if isinstance(value, torch.dtype):
            follows = value is torch.float64
            return DType(IMAGES if follows else str(value).removeprefix("torch."))
        if isinstance(value, (list, tuple)):
            return tuple(convert(part) for part in value)
        return None if isinstance(value, _LAYOUT) else value

    op, args = operator_name(node), node.args
    if op.startswith("aten.squeeze."):  # the axes are known here, and never the batch's
        op, args = "aten.squeeze.dims", (args[0], _unit_axes(*args))
    return Node(
        name=node.name,
        op=op,
        args=tuple(convert(argument) for argument in args),
        kwargs={key: convert(value) for key, value in node.kwargs.items()},
        module=module_path(node),
        source=user_line(node.meta.get("stack_trace") or "")[2:-1],
    )


def _unit_axes(node: Any, dims: Any = None) -> tuple[int, ...]:
    """Axes of size 1 among `dims`; the size of the batch is a symbol."""
    shape = node.meta["val"].shape
    named = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = sorted({axis % len(shape) for axis in named})
    return tuple(axis for axis in axes if isinstance(shape[axis], int) and shape[axis] == 1)


def _sites(nodes: tuple[Node, ...], trainable: frozenset[str]) -> tuple[Site, ...]:
    sites, seen = [], dict[str, int]()
    for node in nodes:
        names = tuple(weight.name for weight in references(node, Weight))
        if not names:
            continue
        label = node.module or node.op.split(".")[1]
        seen[label] = seen.get(label, 0) + 1
        sites.append(
            Site(
                name=label if seen[label] == 1 else f"{label}#{seen[label]}",
                op=node.op,
                parameters=tuple(n for n in names if n in trainable),
                buffers=tuple(n for n in names if n not in trainable),
                node=node.name,
                source=node.source,
            )
        )
    return tuple(sites)
