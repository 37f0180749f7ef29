"""Parameter groups: layers, or layers that share a parameter, whose kernels add up.

A group has its columns of the Jacobian and, where one layer multiplies, the sizes of the Kronecker
factors that can stand for them. Kernels of two layers with a parameter in common do not add up, so
such layers are one group. A block is what one pass over the images has of a group.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernel.errors import KernelError
from kernel.model import Model
from kernel.taps import AffineRule, Site, Tapped, taps

# A multiplication of the elementwise part of contracting factors, which runs at the speed of
# memory, in multiplications of a matrix product.
_ELEMENTWISE = 8


class ParamGroup(NamedTuple):
    """Layers, by the parameters that they have to themselves.

    Attributes:
        sites: names of the layers; empty for a parameter of a function without taps.
        leaf_idx: of the parameters, in the order of `jax.tree.leaves`.
        columns: of the Jacobian.
        rule: how the only layer multiplies; None for any other layer.
        positions: T, at which a rule's layer meets its input, for one image.
    """

    sites: tuple[str, ...]
    leaf_idx: tuple[int, ...]
    columns: int
    rule: AffineRule | None = None
    positions: int = 0

    @property
    def outputs(self) -> int:
        """Slices of equal width that the columns fall into: output channels, or columns."""
        return self.rule.outputs if self.rule and self.rule.groups == 1 else self.columns

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms in which its part of a kernel can be contracted."""
        return ("rows", "factors") if self.rule and self.rule.groups == 1 else ("rows",)

    def kept(self, form: str, projections: int) -> int:
        """Numbers that are kept of one image."""
        if form == "rows":
            return self.columns * projections
        assert self.rule is not None
        return self.positions * (self.rule.features + self.rule.outputs * projections)

    def forming(self, form: str, projections: int) -> int:
        """Multiplications for one image, before anything is contracted."""
        return self.columns * max(self.positions, 1) * projections if form == "rows" else 0

    def contracting(self, form: str, projections: int, square: bool) -> int:
        """Multiplications for one pair of images.

        Args:
            form: one of `forms`.
            projections: of the logits.
            square: every pair of projections has an entry (the kind `full`); else they are summed.
        """
        pairs = projections**2 if square else projections
        if form == "rows":
            return self.columns * pairs
        assert self.rule is not None
        entries = self.rule.features + self.rule.outputs * pairs
        elementwise = _ELEMENTWISE * (1 + (pairs if square else 1))
        return self.positions**2 * (entries + elementwise)


class Block(NamedTuple):
    """The part of one group that a pass is for.

    Attributes:
        group: the layers.
        form: `rows` of the Jacobian, or Kronecker `factors`.
        outputs: of `ParamGroup.outputs`, how many a piece has; all of them if it is not cut.
        piece: which piece, from 0; what lies past the end counts as zeros.
    """

    group: ParamGroup
    form: str
    outputs: int
    piece: int = 0

    @classmethod
    def whole(cls, group: ParamGroup, form: str = "rows") -> "Block":
        """All of a group."""
        return cls(group, form, group.outputs)

    @property
    def columns(self) -> int:
        """Columns of the Jacobian for one projection; none for factors."""
        return self.group.columns // self.group.outputs * self.outputs if self.form == "rows" else 0

    @property
    def share(self) -> float:
        """Fraction of the group."""
        return self.outputs / self.group.outputs

    @property
    def by_rule(self) -> bool:
        """Whether it is made of the inputs and cotangents of its layer."""
        return self.group.rule is not None


def param_groups(model: Model, image: jax.ShapeDtypeStruct) -> list[ParamGroup]:
    """The groups of a network, in the order in which its parameters enter.

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
        return [ParamGroup((), (idx,), leaf.size) for idx, leaf in enumerate(leaves)]
    function, names = model.function, sorted(model.params)  # the order of the leaves of a dict
    sizes = {name: model.params[name].size for name in names}
    sites = [site for site in function.sites if site.parameters]
    inputs, cotangents = _shapes(function, model.params, model.frozen, image, sites)
    found = []
    for sharing in _sharing(sites):
        own = sorted({name for site in sharing for name in site.parameters})
        group = ParamGroup(
            sites=tuple(site.name for site in sharing),
            leaf_idx=tuple(names.index(name) for name in own),
            columns=sum(sizes[name] for name in own),
        )
        first, *more = sharing
        rule = None if more else function.rule(first.name, model.params)
        found.append(_with_rule(group, rule, inputs[first.name], cotangents[first.name]))
    if not found:  # a parameter that enters nowhere has a gradient of zero and no group
        raise KernelError("no trainable parameter enters the network, so its kernel is zero.")
    return found


def _with_rule(
    group: ParamGroup, rule: AffineRule | None, inputs: Sequence[Any], outputs: Sequence[Any]
) -> ParamGroup:
    """The group with its rule, if the layer's input is shaped as the rule expects."""
    if rule is None or (rule.window and inputs[0].ndim != len(rule.window.kernel) + 2):
        return group
    # axis 0 is that of the projections
    positions = math.prod(outputs[0].shape[1:]) // rule.outputs
    return group._replace(rule=rule, positions=positions)


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
    """Sites in lists such that no parameter enters in two of them."""
    found: list[list[Site]] = []
    for site in sites:
        names = set(site.parameters)
        touching = [own for own in found if any(names & set(other.parameters) for other in own)]
        found = [own for own in found if own not in touching]
        found.append([other for own in touching for other in own] + [site])
    return found
