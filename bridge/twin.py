"""A user's own JAX function as the mirror of their PyTorch module, by a map of names.

The function takes a pytree of arrays (flax, equinox or plain), and the map says which leaf each
array of the module fills. Arrays keep torch's names and layout, so that weights, certificates and
kernels are those of any other mirror.
"""

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import nn

from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.module import (
    ModuleArrays,
    canonical_names,
    check_eval,
    check_output,
    check_stateless,
    copy_to_cpu,
    module_arrays,
    to_numpy,
)

# Axes by which flax and most others transpose the weights of Linear, Conv2d and Conv1d.
_USUAL = ((1, 0), (2, 3, 1, 0), (2, 1, 0))


@dataclass(frozen=True)
class At:
    """The leaf that an array of torch fills, and how the array is laid out there.

    Attributes:
        path: of the leaf, such as `params/Conv_0/kernel` or `layers/0/weight`.
        axes: the array is transposed by these, as by `numpy.transpose`; None leaves it.
        split: shape that the array is given before it is transposed, such as
            (classes, channels, height, width) for a Linear behind an NCHW flatten; with it, the
            result takes whatever shape the leaf has.
    """

    path: str
    axes: tuple[int, ...] | None = None
    split: tuple[int, ...] | None = None

    def lay(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The array in the layout and shape of its leaf, which `misfit` has checked."""
        array = array if self.split is None else array.reshape(self.split)
        return (array if self.axes is None else array.transpose(self.axes)).reshape(shape)


Targets = str | At | tuple[str | At, ...] | None


def name_map(
    canonical: Mapping[str, str], arrays: ModuleArrays, names: Mapping[str, Targets]
) -> tuple[list[tuple[str, At]], list[str]]:
    """Pairs of a canonical name and the leaf it fills, and the faults of the names, in words.

    Args:
        canonical: for each name of the module's arrays, the first name of the same array.
        arrays: the module's.
        names: as for `twin`.
    """
    pairs, faults = [], []
    for name, targets in names.items():
        if name not in canonical:
            faults.append(f"the network has no {name!r}{did_you_mean(name, canonical)}")
        elif targets is None and canonical[name] in arrays.params:
            faults.append(f"{name} is trainable, so it cannot be left out")
        elif targets is not None:
            each = targets if isinstance(targets, tuple) else (targets,)
            leaves = [At(target) if isinstance(target, str) else target for target in each]
            pairs += [(canonical[name], leaf) for leaf in leaves]
    mapped = {canonical[name] for name in names if name in canonical}
    for name, array in {**arrays.params, **arrays.frozen}.items():
        if name not in mapped and name not in arrays.constants:
            trainable = name in arrays.params
            advice = "" if trainable else "; give it None if the function does without it"
            faults.append(f"{name}, of shape {array.shape}, has no leaf{advice}")
    return pairs, faults


def misfit(name: str, array: Array, at: At, leaf: Any) -> list[str]:
    """The reason why an array does not fit its leaf, in a list; an empty one if it does."""
    if not is_array(leaf):
        return [f"{name}: {at.path} is a {type(leaf).__name__}, not an array"]
    if _kind(array.dtype) != _kind(leaf.dtype):
        return [f"{name} is {array.dtype}, {at.path} is {leaf.dtype}"]
    shape, wanted = tuple(array.shape), tuple(leaf.shape)
    if at.split is not None and math.prod(at.split) != array.size:
        return [f"{name} has shape {shape}, which cannot be split as {at.split}"]
    before = shape if at.split is None else at.split
    if at.axes is not None and sorted(at.axes) != list(range(len(before))):
        return [f"{name} has shape {before}, which cannot be transposed by {at.axes}"]
    after = before if at.axes is None else tuple(before[axis] for axis in at.axes)
    merged = at.split is not None and math.prod(after) == math.prod(wanted)
    if merged or _squeezed(after) == _squeezed(wanted):
        return []
    how = f", {after} as {at}" if after != shape else ""
    return [f"{name} has shape {shape}{how}, {at.path} has {wanted}{_suggestion(before, wanted)}"]


def _suggestion(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Advice on a transposition: the only one that fits, or the usual one."""
    fits = [
        axes
        for axes in itertools.permutations(range(len(shape)))
        if tuple(shape[axis] for axis in axes) == wanted
    ]
    usual = [axes for axes in fits if axes in _USUAL]
    if len(fits) == 1:
        return f"; axes={fits[0]} would fit"
    if usual:
        return f"; axes={usual[0]} would fit, and is the usual one"
    if math.prod(shape) == math.prod(wanted):
        return "; they have as many entries: say with split= and axes= how one becomes the other"
    return ""


def is_array(leaf: Any) -> bool:
    """True for an array of numbers: no Python object, no key of jax.random."""
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "shape") and dtype is not None and _kind(dtype) != "other"


def _kind(dtype: Any) -> str:
    kinds = {"bool": jnp.bool_, "integer": jnp.integer, "floating": jnp.floating}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), "other")


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without its axes of size 1."""
    return tuple(size for size in shape if size != 1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the nearest known one, if any is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True, eq=False)
class Twin:
    """A user's function of a tree, called with torch's arrays; one object whatever the weights.

    Attributes:
        function: `function(tree, images)` → logits.
        leaves: of the tree; None where an array of torch is filled in.
        structure: of the tree.
        sources: for each leaf that is filled, by its index, torch's name and the layout.
        shapes: of these leaves, by index.
        axes: of the images, as the function takes them; None leaves them as torch has them.
    """

    function: Callable[[Any, Array], Any]
    leaves: tuple[Any, ...]
    structure: Any
    sources: Mapping[int, tuple[str, At]]
    shapes: Mapping[int, tuple[int, ...]]
    axes: tuple[int, ...] | None

    def __call__(self, params: Mapping[str, Array], frozen: Mapping[str, Array], x: Array) -> Any:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        leaves = list(self.leaves)
        for index, (name, at) in self.sources.items():
            array = jnp.asarray(params[name] if name in params else frozen[name])
            leaves[index] = at.lay(array, self.shapes[index])
        images = jnp.asarray(x)
        tree = jax.tree.unflatten(self.structure, leaves)
        return self.function(tree, images if self.axes is None else images.transpose(self.axes))


def twin(
    module: nn.Module,
    example: np.ndarray | torch.Tensor,
    function: Callable[[Any, Array], Any],
    like: Any,
    names: Mapping[str, Targets],
    *,
    layout: str = "NCHW",
) -> Mirror:
    """The mirror that a user wrote: their function, with the module's arrays put into its tree.

    Certify it (`bridge.parity`) before it is used. It has no taps, so kernels go through
    `vmap(grad)`, which is slower and takes more memory.

    Args:
        module: maps images (batch, channels, height, width) to logits (batch, classes).
        example: at least two images, normalised as for training; their values do not matter.
        function: `function(tree, images)` → logits (batch, classes), pure and in eval mode; all
            arrays that come from torch are in the tree.
        like: a tree as the function takes it: arrays or `jax.ShapeDtypeStruct` (as from
            `jax.eval_shape`) as the leaves to fill; other leaves are passed on.
        names: for each name in the module's state dict the leaf that it fills, as a path or as an
            `At` with a transposition; a tuple if it fills several, as a tied one may; None for a
            buffer that the function does without, such as num_batches_tracked. A tied parameter
            goes by any of its names.
        layout: of the images as the function takes them, one of `LAYOUTS`.

    Raises:
        BridgeError: names without a leaf, leaves without a name, shapes or dtypes that do not
            fit, all of them listed; a module that no route takes; a function that cannot be run.
    """
    if layout not in LAYOUTS:
        raise BridgeError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    check_eval(module)
    network, images = copy_to_cpu(module, example)
    logits = check_output(network, images)
    arrays = module_arrays(network)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    template = {i: leaf for i, (_, leaf) in enumerate(leaves) if is_array(leaf)}
    targets, faults = name_map(canonical_names(network), arrays, names)
    sources: dict[int, tuple[str, At]] = {}
    for name, at in targets:
        index = paths.index(at.path) if at.path in paths else None
        if index is None:
            faults.append(f"{name}: the tree has no leaf {at.path!r}{did_you_mean(at.path, paths)}")
        elif index in sources:
            faults.append(f"{name}: {sources[index][0]} fills {at.path} already")
        else:
            sources[index] = (name, at)
            array = arrays.params[name] if name in arrays.params else arrays.frozen[name]
            faults += misfit(name, array, at, leaves[index][1])
    faults += [
        f"nothing fills {paths[index]}, which has shape {tuple(leaf.shape)}"
        for index, leaf in template.items()
        if index not in sources
    ]
    if faults:
        raise BridgeError(
            "the names do not map the network onto the tree:\n  " + "\n  ".join(faults)
        )
    mirrored = Twin(
        function=function,
        leaves=tuple(None if i in sources else leaf for i, (_, leaf) in enumerate(leaves)),
        structure=structure,
        sources=sources,
        shapes={index: tuple(leaf.shape) for index, leaf in template.items()},
        axes=(0, *range(2, images.ndim), 1) if layout == "NHWC" else None,
    )
    _check_function(mirrored, arrays.params, arrays.frozen, images, tuple(logits.shape))
    check_stateless(module, example)
    return Mirror(mirrored, arrays.params, arrays.frozen, arrays.constants, route="twin")


def build_twin(function: Callable[..., object], module: nn.Module, images: np.ndarray) -> Mirror:
    """The mirror that a user's `function(module, images)` returns.

    Raises:
        BridgeError: it is something else.
    """
    made = function(module, images)
    if not isinstance(made, Mirror):
        raise BridgeError(
            f"the twin is a {type(made).__name__}; its function must return a mirror, as "
            "bridge.twin.twin does"
        )
    return made


def _check_function(
    function: Twin,
    params: dict[str, Array],
    frozen: dict[str, Array],
    images: torch.Tensor,
    expected: tuple[int, ...],
) -> None:
    x = jax.ShapeDtypeStruct(tuple(images.shape), to_numpy(images[:0]).dtype)
    try:
        logits = jax.eval_shape(function, params, frozen, x)
    except Exception as error:
        raise BridgeError(
            f"the function cannot be run on images of shape {x.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not is_array(logits) or tuple(logits.shape) != expected:
        got = tuple(logits.shape) if is_array(logits) else type(logits).__name__
        raise BridgeError(
            f"the function returns {got} for images of shape {x.shape}, the network {expected}; "
            "it must return the logits alone"
        )
