"""From a PyTorch module to a `Program`, by way of `torch.export`.

The module is copied, exported with a free batch dimension and made functional; only operators
that have no row of ours are decomposed. What cannot become a pure function of one image is
refused here, with the reason and the line it comes from.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from bridge.errors import BatchSizeError, BridgeError, ExportError
from bridge.folding import fold
from bridge.intake import canonical_names
from bridge.nodes import CONSTANT, IMAGES, DType, Node, Ref, Site, Weight, references
from bridge.ops import OPERATORS
from bridge.program import Program
from bridge.refusal import check, explain, is_random, module_path, operator_name, user_line

# Arguments that say where memory lies, which means nothing in JAX.
_LAYOUT = (torch.device, torch.layout, torch.memory_format)


class Lifted(NamedTuple):
    """A program and the tensors that its weights stand for.

    Attributes:
        program: the pure function.
        tensors: every parameter and buffer of the module and every constant of its graph, by
            canonical name: a tied one has the first of its names.
        trainable: names of the parameters that have a gradient.
        constants: names of what is not in the module's state dict.
    """

    program: Program
    tensors: dict[str, torch.Tensor]
    trainable: frozenset[str]
    constants: frozenset[str]


def lift(module: nn.Module, images: torch.Tensor) -> Lifted:
    """The program of a module on the CPU, in eval mode, that the caller does not need again.

    Raises:
        BridgeError: the module cannot be exported, uses an operator without a row, depends on
            randomness or batch statistics, changes a buffer, or has parameters it never uses.
    """
    exported, one_by_one = _exported(module, images)
    graph, signature = exported.graph, exported.graph_signature
    for output in signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            raise BridgeError(
                f"the network's forward changes {output.target!r}, so that its logits depend on "
                "what it saw before; in eval mode it must leave its buffers alone"
            )

    canonical = canonical_names(module)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    persistent = module.state_dict().keys()
    constants = {name for name in tensors if name not in persistent}
    weights: dict[fx.Node, Any] = {}
    held: dict[fx.Node, torch.Tensor] = {}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    images_name = ""
    for spec in signature.input_specs:
        node = placeholders[getattr(spec.arg, "name", "")]
        if spec.kind is InputKind.USER_INPUT:
            images_name = node.name
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[node] = Weight(canonical[str(spec.target)])
        else:
            constant = exported.constants[str(spec.target)]
            if not isinstance(constant, torch.Tensor):
                raise BridgeError(
                    f"the network holds {spec.target!r}, a {type(constant).__name__}, and uses it "
                    "in forward; only tensors can be mirrored"
                )
            held[node] = constant

    _whole_batch_norm(graph)
    folded = fold(graph, held, is_random)
    live = _live(graph, folded)
    check(live)
    for node in [source for user in live for source in user.all_input_nodes if source in folded]:
        weights[node] = folded[node]
        if isinstance(folded[node], torch.Tensor):
            weights[node] = Weight(f"{CONSTANT}{node.name}")
            tensors[weights[node].name] = folded[node]
            constants.add(weights[node].name)
    exact = images.dtype is torch.float64
    nodes = tuple(_node(node, weights, exact) for node in live)
    (output,) = graph.output_node().all_input_nodes
    trainable = frozenset(n for n, p in module.named_parameters() if p.requires_grad)
    sites = _sites(nodes, trainable)
    unused = trainable - {name for site in sites for name in site.parameters}
    if unused:
        raise BridgeError(
            f"the logits do not depend on {len(unused)} trainable parameter(s): "
            f"{', '.join(sorted(unused))}; remove them, or freeze them with requires_grad_(False)"
        )
    return Lifted(
        Program(images_name, nodes, Ref(output.name), sites, one_by_one),
        tensors,
        trainable,
        frozenset(constants),
    )


def _exported(module: nn.Module, images: torch.Tensor) -> tuple[ExportedProgram, bool]:
    """The graph for any batch, or else for a batch of one image, and which of the two."""
    try:
        return _export(module, images, {0: torch.export.Dim.DYNAMIC}), False
    except BatchSizeError as refusal:
        try:
            alone = _export(module, images[:1], {})
        except ExportError:  # what is wrong for one image is wrong for the batch size
            raise refusal from None
        (output,) = alone.graph.output_node().all_input_nodes
        if output.meta["val"].ndim != 2 or output.meta["val"].shape[0] != 1:
            raise refusal from None
        return alone, True


def _export(module: nn.Module, images: torch.Tensor, free: dict[int, Any]) -> ExportedProgram:
    with warnings.catch_warnings():
        # torch 2.13 warns of its own use of LeafSpec when it makes a graph functional.
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
        # Recurrent layers hold their parameters in a list as well, and refresh it.
        warnings.filterwarnings("ignore", r"The tensor attributes? .*\._flat_weights", UserWarning)
        try:
            exported = torch.export.export(module, (images,), dynamic_shapes=(free,))
            table = torch.export.default_decompositions()
            rows = {op: table[op] for op in list(table) if str(op) not in OPERATORS}
            return exported.run_decompositions(rows)
        except Exception as error:
            raise explain(error) from error


def _whole_batch_norm(graph: fx.Graph) -> None:
    """Put eval-mode BatchNorm, which loses its name when made functional, back as one output."""
    for node in list(graph.nodes):
        if node.target != torch.ops.aten._native_batch_norm_legit_no_training.default:
            continue
        *tensors, momentum, eps = node.args
        with graph.inserting_before(node):
            whole = graph.call_function(
                torch.ops.aten.batch_norm.default, (*tensors, False, momentum, eps, False)
            )
        whole.meta = {**node.meta, "val": node.meta["val"][0]}
        for output in list(node.users):
            output.replace_all_uses_with(whole)
            graph.erase_node(output)
        graph.erase_node(node)


def _live(graph: fx.Graph, folded: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The calls that the logits depend on, but for those that are folded, in order."""
    needed: set[fx.Node] = set()
    stack = [graph.output_node()]
    while stack:
        node = stack.pop()
        if node not in needed and node not in folded:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return [
        node for node in graph.nodes if node in needed and node.op not in ("placeholder", "output")
    ]


def _node(node: fx.Node, weights: Mapping[fx.Node, Any], exact: bool) -> Node:
    def convert(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return weights.get(value, Ref(value.name))
        if isinstance(value, torch.dtype):
            follows = exact and value is torch.float64
            return DType(IMAGES if follows else str(value).removeprefix("torch."))
        if isinstance(value, (list, tuple)):
            return tuple(convert(part) for part in value)
        return None if isinstance(value, _LAYOUT) else value

    op, args = operator_name(node), node.args
    if op.startswith("aten.squeeze."):  # which axes go is known now, and is never the batch
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
    """Axes of size 1, among those that are named; the batch has a symbol for a size."""
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
