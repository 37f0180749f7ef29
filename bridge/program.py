"""A network as a list of operator calls, run by JAX without torch.

A node that directly consumes a weight is a *site*: its output is compared by the certificate and
perturbed by a tap (docs/mathematics.md, 2). Dense layers, convolutions and embeddings whose
trainable arrays are their own arguments carry a rule of `kernel.taps`; the gradient of any other
site is the vjp of its operator.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bridge.ops import OPERATORS
from bridge.ops.layers import edges_of
from bridge.ops.pooling import per_axis
from kernel.taps import AffineRule, LinearHead, Window

IMAGES = "images"
SITE = "site"
# Prefix of the names of the graph's own constants, which are in no state dict.
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
    and Ref, Weight and DType for what is only known when the program runs.
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
        name: path of the node's module, with `#2`, `#3`, … from its second site on; the operator's
            name where the call is in no submodule.
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
    """References of one kind (Ref or Weight) in a node, each once, in order of appearance."""
    seen = set()
    leaves = jax.tree.leaves(
        (node.args, dict(node.kwargs)), is_leaf=lambda leaf: isinstance(leaf, (Ref, Weight, DType))
    )
    for leaf in leaves:
        if isinstance(leaf, kind) and leaf not in seen:
            seen.add(leaf)
            yield leaf


_PRODUCTS = frozenset(
    {"aten.linear.default"}
    | {f"aten.conv{n}d.{form}" for n in (1, 2, 3) for form in ("default", "padding")}
)
_NAMES = ("x", "weight", "bias", "stride", "padding", "dilation", "groups")


def rule(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> AffineRule | None:
    """The rule of `kernel.taps` for a node, if it has one.

    Args:
        node: of a program.
        shapes: of the trainable arrays of the network, by name.
    """
    if node.op not in _PRODUCTS:
        return None
    arguments = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = arguments["weight"], arguments.get("bias")
    if not isinstance(weight, Weight) or weight.name not in shapes or weight == bias:
        return None
    if not isinstance(arguments["x"], Ref) or not (bias is None or isinstance(bias, Weight)):
        return None
    shape = shapes[weight.name]
    window = None if node.op == "aten.linear.default" else _window(arguments, shape)
    return AffineRule(
        weight=weight.name,
        bias=bias.name if bias is not None and bias.name in shapes else None,
        inputs=shape[1] * (window.groups if window else 1),
        outputs=shape[0],
        window=window,
    )


def _window(arguments: dict[str, Any], shape: tuple[int, ...]) -> Window:
    kernel, rank = shape[2:], len(shape) - 2
    dilation = per_axis(arguments.get("dilation", 1), rank)
    return Window(
        kernel=kernel,
        stride=per_axis(arguments.get("stride", 1), rank),
        edges=tuple(edges_of(arguments.get("padding", 0), kernel, dilation)),
        dilation=dilation,
        groups=arguments.get("groups", 1),
    )


Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Program:
    """A pure function of (params, frozen, images) that holds no arrays itself.

    Hashed by identity: JAX's compilation caches live as long as the object, whatever weights it
    is called with.

    Attributes:
        images: name under which nodes refer to the images.
        nodes: in the order in which they run.
        output: the node that is returned.
        sites: every node that directly consumes a weight, in order.
        one_by_one: the nodes are those of a batch of one image, because forward takes the size of
            its batch as a plain number; a batch is mapped over, image by image.
    """

    images: str
    nodes: tuple[Node, ...]
    output: Ref
    sites: tuple[Site, ...]
    one_by_one: bool = False

    def __deepcopy__(self, _: dict[int, Any]) -> "Program":
        """Itself: it never changes, and JAX knows it by its identity."""
        return self

    def __call__(self, params: Arrays, frozen: Arrays, x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""

        def logits(batch: Array) -> Array:
            return self._run(params, frozen, batch, lambda _node, _inputs, output: output)

        if self.one_by_one:
            return jax.vmap(lambda image: logits(image[None])[0])(x)
        return logits(x)

    def activations(self, params: Arrays, frozen: Arrays, x: Array) -> tuple[Array, dict[str, Any]]:
        """Logits, and the output of each site by its name."""
        if not self.one_by_one:
            return self._observed(params, frozen, x)
        logits, outputs = jax.vmap(lambda image: self._observed(params, frozen, image[None]))(x)
        return logits[:, 0], outputs

    def perturbations(self, params: Arrays, frozen: Arrays, x: Array) -> dict[str, list[Array]]:
        """Zeros for `tapped`: one array for each output of each site with a trainable parameter.

        Outputs of integers, such as the positions of a maximum, are left out.
        """
        _, outputs = jax.eval_shape(self._observed, params, frozen, x)
        return {
            site.name: [
                jnp.zeros(leaf.shape, leaf.dtype)
                for leaf in jax.tree.leaves(outputs[site.name])
                if jnp.issubdtype(leaf.dtype, jnp.inexact)
            ]
            for site in self.sites
            if site.parameters
        }

    def tapped(
        self, params: Arrays, frozen: Arrays, perturbations: Mapping[str, list[Array]], x: Array
    ) -> tuple[Array, dict[str, tuple[Any, ...]]]:
        """Logits with a perturbation added to sites' outputs, and the inputs of those sites.

        The gradient with respect to a perturbation of zeros is the cotangent δ of the site's
        output; `pull` makes of it the gradient with respect to the site's parameters. Map a tapped
        function of *one* example: axis 0 of a site need not be the batch.

        Args:
            params: trainable parameters by name.
            frozen: every other array by name.
            perturbations: as from the method of that name, for the sites to tap.
            x: images, (batch, channels, height, width).
        """
        names = {site.node: site.name for site in self.sites if site.name in perturbations}
        taps = {}

        def observe(node: Node, inputs: tuple[Any, ...], output: Any) -> Any:
            if node.name not in names:
                return output
            taps[names[node.name]] = inputs
            added = iter(perturbations[names[node.name]])
            return jax.tree.map(
                lambda leaf: leaf + next(added) if _differentiable(leaf) else leaf, output
            )

        return self._run(params, frozen, x, observe), taps

    def pull(
        self,
        site: str,
        params: Arrays,
        frozen: Arrays,
        inputs: tuple[Any, ...],
        cotangents: list[Array],
    ) -> dict[str, Array]:
        """Gradients of one site's trainable parameters: the vjp of its operator alone.

        The gradient of a parameter that enters at several sites is the sum over them.

        Args:
            site: its name.
            params: trainable parameters by name.
            frozen: every other array by name.
            inputs: of the site, as from `tapped`.
            cotangents: of the site's outputs, one for each of its perturbations.
        """
        (chosen,) = [s for s in self.sites if s.name == site]
        (node,) = [n for n in self.nodes if n.name == chosen.node]
        values = {ref.node: value for ref, value in zip(references(node, Ref), inputs, strict=True)}

        dtype = params[chosen.parameters[0]].dtype  # that of the images

        def outputs(own: Arrays) -> list[Array]:
            output = _call(node, {**params, **own}, frozen, values, dtype)
            return [leaf for leaf in jax.tree.leaves(output) if _differentiable(leaf)]

        _, vjp = jax.vjp(outputs, {name: params[name] for name in chosen.parameters})
        return vjp(cotangents)[0]

    def single(self, site: str) -> tuple["Program", dict[str, str]]:
        """A program of a site alone, named `SITE`, and what it calls the site's arrays.

        It is the same object for every site of any program that calls an operator in the same way,
        so that JAX compiles their gradients once for each shape.
        """
        (chosen,) = [s for s in self.sites if s.name == site]
        (node,) = [n for n in self.nodes if n.name == chosen.node]
        names = {}
        weights = [weight.name for weight in references(node, Weight)]
        for name in dict.fromkeys((*weights, *chosen.parameters)):
            names[name] = f"{CONSTANT if name.startswith(CONSTANT) else ''}{len(names)}"
        refs = {ref.node: f"input {k}" for k, ref in enumerate(references(node, Ref))}

        def renamed(value: Any) -> Any:
            if isinstance(value, Ref):
                return Ref(refs[value.node])
            if isinstance(value, Weight):
                return Weight(names[value.name])
            return tuple(map(renamed, value)) if type(value) is tuple else value

        trained = tuple(names[name] for name in chosen.parameters)
        kwargs = tuple((key, renamed(value)) for key, value in sorted(node.kwargs.items()))
        args = renamed(node.args)
        # 1, 1.0 and True are equal, and not the same argument
        return _single(node.op, args, kwargs, trained, repr((args, kwargs))), names

    def rule(self, site: str, params: Arrays) -> AffineRule | None:
        """The product rule of a site whose parameters only multiply its input, else None."""
        (chosen,) = [s for s in self.sites if s.name == site]
        (node,) = [n for n in self.nodes if n.name == chosen.node]
        return rule(node, {name: array.shape for name, array in params.items()})

    def linear_head(self, params: Arrays) -> LinearHead | None:
        """The linear layer that the whole function is, if images are its rows and it is trained."""
        if [node.op for node in self.nodes] != ["aten.linear.default"]:
            return None
        (node,) = self.nodes
        arguments = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
        weight, bias = arguments["weight"], arguments.get("bias")
        if arguments["x"] != Ref(self.images) or not isinstance(weight, Weight):
            return None
        inputs = params[weight.name].shape[1] if weight.name in params else 0
        trained = isinstance(bias, Weight) and bias.name in params
        return LinearHead(inputs, trained) if inputs or trained else None

    def _observed(self, params: Arrays, frozen: Arrays, x: Array) -> tuple[Array, dict[str, Any]]:
        names = {site.node: site.name for site in self.sites}
        outputs = {}

        def observe(node: Node, _inputs: tuple[Any, ...], output: Any) -> Any:
            if node.name in names:
                outputs[names[node.name]] = output
            return output

        return self._run(params, frozen, x, observe), outputs

    def _run(
        self,
        params: Arrays,
        frozen: Arrays,
        x: Array,
        observe: Callable[[Node, tuple[Array, ...], Any], Any],
    ) -> Array:
        values: dict[str, Any] = {self.images: x}
        for node in self.nodes:
            inputs = tuple(values[ref.node] for ref in references(node, Ref))
            output = _call(node, params, frozen, values, x.dtype)
            values[node.name] = observe(node, inputs, output)
        return values[self.output.node]


@cache
def _single(
    op: str,
    args: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    trained: tuple[str, ...],
    _text: str,
) -> Program:
    node = Node(SITE, op, args, dict(kwargs), "", "")
    return Program("", (node,), Ref(SITE), (Site(SITE, op, trained, (), SITE, ""),))


def _differentiable(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _call(
    node: Node, params: Arrays, frozen: Arrays, values: Mapping[str, Any], dtype: DTypeLike
) -> Any:
    """Run one operator; `dtype` is that of the images, to which the graph's constants are cast."""

    def resolve(value: Any) -> Any:
        if isinstance(value, Ref):
            return values[value.node]
        if isinstance(value, Weight):
            array = params[value.name] if value.name in params else frozen[value.name]
            follows = value.name.startswith(CONSTANT) and _differentiable(array)
            return jnp.asarray(array, dtype) if follows else array
        if isinstance(value, DType):
            return jnp.dtype(dtype if value.name == IMAGES else value.name)
        if isinstance(value, tuple):
            return tuple(resolve(part) for part in value)
        if isinstance(value, float) and math.isfinite(value):
            # `torch.finfo(x.dtype).min` was traced in float64, whose least number is lower.
            return min(max(value, -largest), largest)
        return value

    largest = float(jnp.finfo(dtype).max)
    arguments = [resolve(argument) for argument in node.args]
    return OPERATORS[node.op](*arguments, **{k: resolve(v) for k, v in node.kwargs.items()})
