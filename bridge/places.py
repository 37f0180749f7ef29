"""Which place of a tree each array of a torch module fills, and whether it fits there.

From a map of names, as a person writes it, to one line for everything that is wrong with it.
"""

import difflib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from bridge.intake import Held

# How flax and most others lay out the weights of Linear, Conv2d and Conv1d; said first if it fits.
_USUAL = ((1, 0), (2, 3, 1, 0), (2, 1, 0))


@dataclass(frozen=True)
class At:
    """Where in the tree an array of torch goes, and how.

    Attributes:
        place: path of the leaf, such as `params/Conv_0/kernel` or `layers/0/weight`.
        axes: the array is transposed by these, as by `numpy.transpose`; None leaves it.
        split: shape that the array is given before it is transposed, such as
            (classes, channels, height, width) for a Linear behind an NCHW flatten; with it, the
            result takes whatever shape the place has.
    """

    place: str
    axes: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None

    def lay(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The array as the place has it, in a shape that `misfit` has passed."""
        array = array if self.split is None else array.reshape(self.split)
        return (array if self.axes is None else array.transpose(self.axes)).reshape(shape)


Places = str | At | tuple[str | At, ...] | None


def wanted(
    canonical: Mapping[str, str], held: Held, names: Mapping[str, Places]
) -> tuple[list[tuple[str, At]], list[str]]:
    """Canonical names with the places that they are to fill, and what is wrong with the names.

    Args:
        canonical: every name of the module's arrays to the first of the same array.
        held: the arrays, by canonical name.
        names: as a person writes them.
    """
    found, faults = [], []
    for name, places in names.items():
        if name not in canonical:
            faults.append(f"the network has no {name!r}{close(name, canonical)}")
        elif places is None and canonical[name] in held.params:
            faults.append(f"{name} is trainable, so it cannot be left out")
        elif places is not None:
            each = places if isinstance(places, tuple) else (places,)
            each = [At(place) if isinstance(place, str) else place for place in each]
            found += [(canonical[name], at) for at in each]
    mapped = {canonical[name] for name in names if name in canonical}
    for name, array in {**held.params, **held.frozen}.items():
        if name not in mapped and name not in held.constants:
            advice = "" if name in held.params else "; give it None if the function does without it"
            faults.append(f"{name}, of shape {array.shape}, has no place{advice}")
    return found, faults


def misfit(name: str, array: Array, at: At, leaf: Any) -> list[str]:
    """Why an array cannot go to its place, if so."""
    if not is_array(leaf):
        return [f"{name}: {at.place} is a {type(leaf).__name__}, not an array"]
    if _kind(array.dtype) != _kind(leaf.dtype):
        return [f"{name} is {array.dtype}, {at.place} is {leaf.dtype}"]
    shape, place = tuple(array.shape), tuple(leaf.shape)
    if at.split is not None and math.prod(at.split) != array.size:
        return [f"{name} has shape {shape}, which cannot be split as {at.split}"]
    before = shape if at.split is None else at.split
    if at.axes is not None and sorted(at.axes) != list(range(len(before))):
        return [f"{name} has shape {before}, which cannot be transposed by {at.axes}"]
    after = before if at.axes is None else tuple(before[axis] for axis in at.axes)
    merged = at.split is not None and math.prod(after) == math.prod(place)
    if merged or _long(after) == _long(place):
        return []
    how = f", {after} as {at}" if after != shape else ""
    return [f"{name} has shape {shape}{how}, {at.place} has {place}{_suggestion(before, place)}"]


def _suggestion(shape: tuple[int, ...], place: tuple[int, ...]) -> str:
    """The transposition that would fit: the only one, or the usual one."""
    fits = [
        axes
        for axes in itertools.permutations(range(len(shape)))
        if tuple(shape[axis] for axis in axes) == place
    ]
    usual = [axes for axes in fits if axes in _USUAL]
    if len(fits) == 1:
        return f"; axes={fits[0]} would fit"
    if usual:
        return f"; axes={usual[0]} would fit, and is the usual one"
    if math.prod(shape) == math.prod(place):
        return "; they have as many entries: say with split= and axes= how one becomes the other"
    return ""


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array to fill: no Python object, and no key of jax.random."""
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "shape") and dtype is not None and _kind(dtype) != "other"


def _kind(dtype: Any) -> str:
    kinds = {"bool": jnp.bool_, "integer": jnp.integer, "floating": jnp.floating}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), "other")


def _long(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without its axes of size 1, which carry no order."""
    return tuple(size for size in shape if size != 1)


def close(name: str, known: Iterable[str]) -> str:
    """Advice for a name that is not known: the one most like it, if any is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
