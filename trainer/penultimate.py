"""The penultimate features of a network: what the layer that makes its logits is given.

From a network and images to that layer, which is told by the values that it gives and not by its
name or place, and from there to logits and features of one forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import nn

from trainer.errors import NetworkError
from trainer.piecewise import Images
from trainer.predict import NotFiniteError, logits

NAMED = "feature_layer"  # the attribute by which a network names the layer that gives features
_LAYERS = (nn.Linear, nn.Conv2d)


class Head(NamedTuple):
    """Where the features of a network are read.

    Attributes:
        name: of a submodule.
        output: they are what it returns, as the network itself says; else what it is given, and
            it makes the logits.
    """

    name: str
    output: bool


class Predictions(NamedTuple):
    """Of one forward pass.

    Attributes:
        logits: of each image.
        features: of each image.
    """

    logits: Float32[np.ndarray, "examples classes"]
    features: Float32[np.ndarray, "examples width"]


def find_head(
    network: nn.Module, images: Num[np.ndarray, "examples channels height width"]
) -> Head:
    """The layer that makes the logits: a linear one, or a 1×1 convolution that is pooled.

    It is the last nn.Linear or nn.Conv2d that was called and whose output, averaged over whatever
    positions it has, is the logits of these images (of a log-softmax, its input; of the average
    of a ReLU, as in SqueezeNet, the ReLU's). A network without such a layer may say where its
    features are, by an attribute `feature_layer`, the name of the submodule that returns them.

    Args:
        network: in eval mode; its state is left as it was.
        images: a few, as the network takes them; the more they differ, the better.

    Raises:
        NetworkError: there is no such layer, or `feature_layer` names none; what `logits` raises.
    """
    named = getattr(network, NAMED, None)
    if isinstance(named, str):
        _submodule(network, named)
        return Head(named, output=True)
    called: list[tuple[str, nn.Module, torch.Tensor]] = []
    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, _LAYERS):
            # a copy: what is done to it in place afterwards is not what the layer gave
            note: Callable[..., None] = lambda layer, _, output, name=name: called.append(
                (name, layer, output.detach().float().cpu().clone())
            )
            handles.append(layer.register_forward_hook(note))
    try:
        answers = torch.from_numpy(logits(network, images, max(len(images), 1)))
    finally:
        for handle in handles:
            handle.remove()
    for name, layer, output in reversed(called):
        if any(_same(end, answers) for end in _ends(layer, output)):
            return Head(name, output=False)
    last = f", the last of them {called[-1][0]!r}," if called else ""
    parts = [name for name, _ in network.named_children()]
    raise NetworkError(
        "penultimate features are the input of the layer that makes the logits, and this "
        f"{type(network).__name__} has no such layer: of {len(called)} calls of an nn.Linear or "
        f"nn.Conv2d{last} none gives the network's logits, be it averaged over its positions. Let "
        f"the network end in an nn.Linear or a pooled 1×1 nn.Conv2d, or set its attribute {NAMED} "
        "to the name of the submodule whose output is to be taken as features (its parts are "
        f"{', '.join(parts) or 'none'})."
    )


def predictions(
    network: nn.Module,
    images: Images,
    head: Head,
    batch_size: int = 512,
) -> Predictions:
    """Eval-mode logits and penultimate features of every image, in one forward pass.

    Args:
        network: in eval mode.
        images: as the network takes them.
        head: from `find_head`.
        batch_size: how many images go through the network at once.

    Raises:
        NetworkError: as `logits`; features that are not finite (NotFiniteError).
    """
    with _reading(network, head) as rows:
        answers = logits(network, images, batch_size)
    features = np.concatenate(rows)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        cause = f"the logits are; look at that image, or name another layer ({NAMED})"
        raise NotFiniteError(f"features at {head.name!r}", int(np.argmin(finite)), cause)
    return Predictions(answers, features)


@contextmanager
def _reading(network: nn.Module, head: Head) -> Iterator[list[np.ndarray]]:
    """Within it every forward pass of the network adds its rows of features to the list."""
    layer, rows = _submodule(network, head.name), []
    seen: list[torch.Tensor] = []

    def read(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        taken = output if head.output else (*given, *named.values())[0]
        if not isinstance(taken, torch.Tensor) or taken.ndim < 2:
            raise NetworkError(
                f"{head.name!r} returns a {type(taken).__name__}; features must be one tensor, "
                "with a row an image"
            )
        seen[:] = [_rows(layer, taken, head)]  # a layer used twice makes the logits at the last

    def keep(*_: Any) -> None:
        rows.append(seen.pop().float().cpu().numpy())

    handles = [
        layer.register_forward_hook(read, with_kwargs=True),
        network.register_forward_hook(keep),
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: nn.Module, taken: torch.Tensor, head: Head) -> torch.Tensor:
    """One row an image: averaged over positions, which are last but for a linear layer."""
    taken = taken.detach()
    if isinstance(layer, nn.Linear) and not head.output:
        return taken.flatten(1, -2).mean(1) if taken.ndim > 2 else taken.clone()
    return taken.flatten(2).mean(2) if taken.ndim > 2 else taken.clone()


def _ends(layer: nn.Module, output: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the logits would be if nothing but a usual ending came after a layer."""
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size != (1, 1) or output.ndim != 4:
            return
        yield output.mean((2, 3))
        yield output.relu().mean((2, 3))
        return
    yield output if output.ndim == 2 else output.flatten(1, -2).mean(1)
    if output.ndim == 2:
        yield output.log_softmax(1)


def _same(end: torch.Tensor, answers: torch.Tensor) -> bool:
    if end.shape != answers.shape:
        return False
    scale = float(answers.abs().max()) if len(answers) else 0.0
    return torch.allclose(end, answers, rtol=1e-4, atol=1e-5 * scale)


def _submodule(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        parts = ", ".join(name for name, _ in network.named_children())
        raise NetworkError(
            f"{NAMED} of the network is {name!r}, which is none of its submodules: {error}; its "
            f"parts are {parts or 'none'}"
        ) from error
