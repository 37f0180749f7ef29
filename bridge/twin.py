"""A person's own JAX function as the mirror of their PyTorch module, by a map of names.

From a module, a function of a tree of arrays (flax, equinox or plain) and the place of every array
of the module in that tree, to a `Mirror` whose arrays keep torch's names and layout, so that
weights, certificates and kernels are those of any other mirror.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import nn

from bridge.errors import BridgeError
from bridge.export import to_numpy
from bridge.intake import (
    canonical_names,
    check_eval,
    check_memory,
    check_output,
    held_arrays,
    on_cpu,
)
from bridge.mirror import Mirror
from bridge.places import At, Places, close, is_array, misfit, wanted

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True, eq=False)
class Twin:
    """A function of a tree, called with torch's arrays; one object whatever the weights.

    Attributes:
        function: of the tree and the images, to logits.
        leaves: of the tree; arrays of torch are put in place of some.
        structure: of the tree.
        sources: for each leaf that is filled, by its number: torch's name, and how.
        shapes: of these leaves.
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
        for number, (name, at) in self.sources.items():
            array = jnp.asarray(params[name] if name in params else frozen[name])
            leaves[number] = at.lay(array, self.shapes[number])
        images = jnp.asarray(x)
        tree = jax.tree.unflatten(self.structure, leaves)
        return self.function(tree, images if self.axes is None else images.transpose(self.axes))


def twin(
    module: nn.Module,
    example: np.ndarray | torch.Tensor,
    function: Callable[[Any, Array], Any],
    like: Any,
    names: Mapping[str, Places],
    *,
    layout: str = "NCHW",
) -> Mirror:
    """The mirror that a person wrote: their function, with the module's arrays put in their tree.

    Certify it (`bridge.parity`) before it is used. It has no taps, so kernels go through
    `vmap(grad)`, which is slower and takes more memory.

    Args:
        module: maps images (batch, channels, height, width) to logits (batch, classes).
        example: at least two images, normalised as for training; their values do not matter.
        function: `function(tree, images)` → logits (batch, classes), pure and in eval mode; all
            arrays that come from torch are in the tree.
        like: a tree as the function takes it: arrays or `jax.ShapeDtypeStruct` (as from
            `jax.eval_shape`) at the places to fill; whatever else it holds is passed on.
        names: for each name in the module's state dict its place in the tree, as a path or as an
            `At` with a transposition; a tuple of places if it fills several, as a tied one may;
            None for a buffer that the function does without, such as num_batches_tracked. A tied
            parameter goes by any of its names.
        layout: of the images as the function takes them, one of `LAYOUTS`.

    Raises:
        BridgeError: names without a place, places without a name, shapes or dtypes that do not
            fit, all of them listed; a module that no route takes; a function that cannot be run.
    """
    if layout not in LAYOUTS:
        raise BridgeError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    check_eval(module)
    network, images = on_cpu(module, example)
    logits = check_output(network, images)
    held = held_arrays(network)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    spelt = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    template = {i: leaf for i, (_, leaf) in enumerate(leaves) if is_array(leaf)}
    targets, faults = wanted(canonical_names(network), held, names)
    sources: dict[int, tuple[str, At]] = {}
    for name, at in targets:
        number = spelt.index(at.place) if at.place in spelt else None
        if number is None:
            faults.append(f"{name}: the tree has no place {at.place!r}{close(at.place, spelt)}")
        elif number in sources:
            faults.append(f"{name}: {sources[number][0]} fills {at.place} already")
        else:
            sources[number] = (name, at)
            array = held.params[name] if name in held.params else held.frozen[name]
            faults += misfit(name, array, at, leaves[number][1])
    faults += [
        f"nothing fills {spelt[number]}, which has shape {tuple(leaf.shape)}"
        for number, leaf in template.items()
        if number not in sources
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
        shapes={number: tuple(leaf.shape) for number, leaf in template.items()},
        axes=(0, *range(2, images.ndim), 1) if layout == "NHWC" else None,
    )
    _check_function(mirrored, held.params, held.frozen, images, tuple(logits.shape))
    check_memory(module, example)
    return Mirror(mirrored, held.params, held.frozen, held.constants, route="twin")


def made_by(function: Callable[..., object], module: nn.Module, images: np.ndarray) -> Mirror:
    """What a person's `function(module, images)` returns, which must be a mirror.

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
