"""The parts of a network that a kernel is the sum of: layers, or layers that share a parameter.

From a network to its units, each with its columns of the Jacobian and the sizes of the two factors
that can stand for them. Kernels of different units add up; those of two layers with a parameter in
common do not, so such layers are one unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernel.errors import KernelError
from kernel.model import Model
from kernel.taps import ELEMENTWISE, Lookup, Product, Rule, Site, Tapped, taps


@dataclass(frozen=True)
class Unit:
    """Some layers, by the parameters that they have to themselves.

    Attributes:
        sites: names of the layers; empty for a parameter of a function without taps.
        places: of the parameters, in the order of `jax.tree.leaves`.
        columns: of the Jacobian.
        rule: how the only layer multiplies; None for any other layer.
        positions: T, at which a rule's layer meets its input, for one image.
        pixels: positions of its padded input.
    """

    sites: tuple[str, ...]
    places: tuple[int, ...]
    columns: int
    rule: Rule | None = None
    positions: int = 0
    pixels: int = 0

    @property
    def outputs(self) -> int:
        """How many slices of equal width the columns fall into: output channels, or columns."""
        if isinstance(self.rule, Product) and self.rule.groups == 1:
            return self.rule.outputs
        return self.columns

    @property
    def forms(self) -> tuple[str, ...]:
        """The ways in which its part of a kernel can be had."""
        if isinstance(self.rule, Lookup):
            return ("rows", "patches")
        if self.rule is None or self.rule.groups > 1:
            return ("rows",)
        larger = self.rule.window is not None and math.prod(self.rule.window.kernel) > 1
        return ("rows", "patches", "pixels") if larger else ("rows", "patches")

    def kept(self, form: str, projections: int) -> int:
        """Numbers that are kept of one image."""
        if form == "rows":
            return self.columns * projections
        return self._inputs(form) + self.positions * self._width * projections

    def forming(self, form: str, projections: int) -> int:
        """Multiplications for one image, before anything is contracted."""
        return self.columns * max(self.positions, 1) * projections if form == "rows" else 0

    def contracting(
        self, form: str, projections: int, square: bool, elementwise: int = ELEMENTWISE
    ) -> int:
        """Multiplications for one pair of images.

        Args:
            form: one of `forms`.
            projections: of the logits.
            square: every pair of projections has an entry (the kind `full`); else they are summed.
            elementwise: what a multiplication outside a matrix product costs, in those inside one.
        """
        pairs = projections**2 if square else projections
        if form == "rows":
            return self.columns * pairs
        offsets = 1
        if form == "pixels":
            assert isinstance(self.rule, Product)
            offsets = math.prod(self.rule.window.kernel if self.rule.window else ())
        cotangents = self.positions**2 * self._width * pairs
        inputs = self._inputs(form) * (self.pixels if form == "pixels" else self.positions)
        outside = self.positions**2 * (offsets + (pairs if square else 1))
        return cotangents + inputs + elementwise * outside

    @property
    def _width(self) -> int:
        if isinstance(self.rule, Lookup):
            return self.columns // self.rule.entries
        assert self.rule is not None
        return self.rule.outputs

    def _inputs(self, form: str) -> int:
        if isinstance(self.rule, Lookup):
            return self.positions
        assert self.rule is not None
        if form == "pixels":
            return self.pixels * self.rule.inputs
        return self.positions * self.rule.features


def units(model: Model, image: jax.ShapeDtypeStruct) -> list[Unit]:
    """The units of a network, in the order in which its parameters enter.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.

    Raises:
        KernelError: there is nothing to train.
    """
    leaves = jax.tree.leaves(model.params)
    if not leaves:
        raise KernelError("the network has no trainable parameter, so its kernel is zero.")
    if not isinstance(model.function, Tapped):
        return [Unit((), (place,), leaf.size) for place, leaf in enumerate(leaves)]
    function, names = model.function, sorted(model.params)  # the order of the leaves of a dict
    sizes = {name: model.params[name].size for name in names}
    sites = [site for site in function.sites if site.parameters]
    inputs, cotangents = _shapes(function, model.params, model.frozen, image, sites)
    found = []
    for group in _sharing(sites):
        own = sorted({name for site in group for name in site.parameters})
        unit = Unit(
            sites=tuple(site.name for site in group),
            places=tuple(names.index(name) for name in own),
            columns=sum(sizes[name] for name in own),
        )
        first, *more = group
        rule = None if more else function.rule(first.name, model.params)
        found.append(_with_rule(unit, rule, inputs[first.name], cotangents[first.name]))
    unused = set(range(len(names))) - {place for unit in found for place in unit.places}
    # a parameter that enters nowhere has a gradient of zero and no part in the kernel
    if len(unused) == len(names):
        raise KernelError("no trainable parameter enters the network, so its kernel is zero.")
    return found


def _with_rule(unit: Unit, rule: Rule | None, inputs: Sequence[Any], outputs: Sequence[Any]):
    """The unit with its rule, if the layer's input is shaped as the rule expects."""
    if rule is None:
        return unit
    x, y = inputs[0], outputs[0]
    if isinstance(rule, Lookup):
        return Unit(unit.sites, unit.places, unit.columns, rule, math.prod(x.shape), x.size)
    rank = len(rule.window.kernel) if rule.window else None
    if rank is not None and x.ndim != rank + 2:
        return unit
    pixels = math.prod(x.shape) // rule.inputs
    if rule.window:
        edges = rule.window.edges
        padded = [n + low + high for n, (low, high) in zip(x.shape[2:], edges, strict=True)]
        pixels = x.shape[0] * math.prod(padded)
    positions = math.prod(y.shape[1:]) // rule.outputs  # axis 0 is that of the projections
    return Unit(unit.sites, unit.places, unit.columns, rule, positions, pixels)


def _shapes(
    function: Tapped,
    params: Mapping[str, Array],
    frozen: Mapping[str, Array],
    image: jax.ShapeDtypeStruct,
    sites: Sequence[Site],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of the inputs of every site and of its cotangents, with one projection."""

    def one(params: Any, frozen: Any, image: Array) -> tuple[Any, Any]:
        classes = jax.eval_shape(function, params, frozen, image[None]).shape[1]
        projections = jnp.zeros((1, classes), image.dtype)
        return taps(function, params, frozen, image, projections, [s.name for s in sites])[:2]

    return jax.eval_shape(one, params, frozen, image)


def _sharing(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites in groups such that no parameter enters in two groups."""
    groups: list[list[Site]] = []
    for site in sites:
        touching = [g for g in groups if any(_common(site, other) for other in g)]
        groups = [g for g in groups if g not in touching]
        groups.append([other for g in touching for other in g] + [site])
    return groups


def _common(one: Site, other: Site) -> bool:
    return not set(one.parameters).isdisjoint(other.parameters)
