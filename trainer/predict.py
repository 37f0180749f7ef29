"""Eval-mode logits and penultimate features, batch by batch.

Anything but one finite row of logits an image is refused here, once for all that reads them. Images
may be read batch by batch (`Piecewise`), with no more than one of normalised images in memory. The
penultimate layer is recognised by the values it passes on, not by its name.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float32, Num
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.errors import DataError, NetworkError
from trainer.threads import limited


@runtime_checkable
class Images(Protocol):
    """(examples, channels, height, width), as the network takes them; an array is one."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, some: slice, /) -> np.ndarray:
        """A run of them."""
        ...


class Piecewise:
    """Images made when they are read, and not kept.

    Attributes:
        dtype: float32.
    """

    def __init__(self, make: Callable[[np.ndarray], np.ndarray], of: Images):
        """Nothing is made yet.

        Args:
            make: some entries of `of` → as many images as the network takes them.
            of: data-set indices, or pixels as they are stored.
        """
        self._make, self._of = make, of
        self._shape: tuple[int, ...] | None = None
        self.dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them, (examples, ...); the first is made for it."""
        if self._shape is None:
            self._shape = (len(self._of), *self[:1].shape[1:])
        return self._shape

    def __len__(self) -> int:
        """Number of images."""
        return len(self._of)

    def __getitem__(self, some: Any, /) -> np.ndarray:
        """Those at a slice or an array of positions."""
        return self._make(self._of[some])


class NotFiniteError(NetworkError):
    """Logits or features that are not finite: of a bad image, or of weights that diverged.

    Attributes:
        what: logits or features.
        image: position of the first such image in the array, or its name.
        cause: in words.
    """

    def __init__(
        self, what: str, image: int | str, cause: str, naming: str = "position in the array"
    ):
        """Name the image and what may be the cause."""
        self.what, self.image, self.cause = what, image, cause
        super().__init__(f"the {what} of image {image} ({naming}) are not finite: {cause}")

    def renamed(self, names: Sequence[int | str], naming: str) -> "NotFiniteError":
        """The same error with the image's name in place of its position.

        Args:
            names: of the images, by position.
            naming: how images are named, in words.
        """
        return NotFiniteError(self.what, names[int(self.image)], self.cause, naming)


@contextmanager
def hooks(
    network: nn.Module, handles: Iterable[torch.utils.hooks.RemovableHandle]
) -> Iterator[None]:
    """Remove hooks at the end, those registered before a failure too.

    Meanwhile what torch.compile made of the network runs as plain Python: compiled code does not
    call hooks that are registered after it.
    """
    compiled = any(
        part._compiled_call_impl is not None or hasattr(part.forward, "_torchdynamo_orig_callable")
        for part in network.modules()
    )
    registered = []
    try:
        registered.extend(handles)
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for handle in registered:
            handle.remove()


def placement(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the floating dtype of a network: those of its first floating tensor."""
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def to_tensor(images: Num[np.ndarray, "examples ..."], network: nn.Module) -> torch.Tensor:
    """A copy of images with the device and dtype of the network.

    Raises:
        DataError: the images are not floating point, so they were not normalised.
    """
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(
            f"images have dtype {images.dtype}; a network needs normalised floating point images: "
            "pass them through Dataset.normalise first"
        )
    device, dtype = placement(network)
    # one image of a reversed array is contiguous to numpy, and has a stride that torch refuses
    return torch.from_numpy(np.array(images, order="C")).to(device, dtype)


def logits_in(output: Any) -> Any:
    """The tensor `logits` of an object or dictionary, as Hugging Face's models return them.

    Anything else is returned as it is.
    """
    if isinstance(output, torch.Tensor | tuple | list):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", None) if found is None else found
    return found if isinstance(found, torch.Tensor) else output


def forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The network's logits for one batch, in whatever mode and gradient context it is called.

    Args:
        network: maps (batch, channels, height, width) to (batch, classes), or to an object or
            dictionary with these as `logits`.
        images: one batch.

    Raises:
        NetworkError: it fails on these images, or returns anything but a (batch, classes) tensor.
    """
    try:
        output = network(images)
    except NetworkError:  # of a hook
        raise
    except Exception as error:
        raise NetworkError(
            f"the network failed on images of shape {tuple(images.shape)} "
            f"(batch, channels, height, width): {type(error).__name__}: {error}"
        ) from error
    output = logits_in(output)
    if not isinstance(output, torch.Tensor):
        raise NetworkError(
            f"the network returned a {type(output).__name__}; it must return one tensor of logits "
            "of shape (batch, classes): wrap it in a module that picks the logits out"
        )
    if output.ndim != 2 or output.shape[0] != images.shape[0]:
        raise NetworkError(
            f"the network returned a tensor of shape {tuple(output.shape)} for "
            f"{images.shape[0]} images; it must return logits of shape ({images.shape[0]}, classes)"
        )
    return output


def logits(
    network: nn.Module,
    images: Images,
    batch_size: int = 512,
) -> Float32[np.ndarray, "examples classes"]:
    """Eval-mode logits of every image; the same for any batch size up to rounding.

    Args:
        network: in eval mode; its own device is used and its state is left as it was.
        images: (examples, channels, height, width), normalised, floating point, read batch by
            batch.
        batch_size: how many images go through the network at once.

    Raises:
        NetworkError: the network is in train mode, does not return (batch, classes) logits, or
            returns one that is not finite (NotFiniteError, naming the first such image).
        DataError: the images are not floating point.
    """
    refuse_training(network)
    return answers(network, images, batch_size)


def refuse_training(network: nn.Module) -> None:
    """Refuse a network with a module in train mode.

    Raises:
        NetworkError: naming the first such part.
    """
    training = [name or "the network itself" for name, m in network.named_modules() if m.training]
    if training:
        raise NetworkError(
            f"{len(training)} modules are in train mode, the first of them {training[0]}; "
            "BatchNorm and dropout make logits depend on the batch: call eval() on the network"
        )


def answers(
    network: nn.Module,
    images: Images,
    batch_size: int = 512,
    after: Callable[[], object] = lambda: None,
) -> Float32[np.ndarray, "examples classes"]:
    """Finite logits of every image, batch by batch, in whatever mode the network is.

    Args:
        network: as of `logits`, but for the mode.
        images: as of `logits`.
        batch_size: how many images go through the network at once.
        after: called after each batch; keeps what hooks have seen of it. Not every pass of the
            network is one of these images: its work is counted in a pass of its own.

    Raises:
        NetworkError, DataError: as `logits`, but for the mode.
    """
    if batch_size < 1:
        raise NetworkError(f"batch_size is {batch_size}; it must be at least 1")
    rows = []
    of_a_batch = lambda: min(batch_size, len(images)) * flops(network, images[:1])
    with torch.no_grad(), limited(of_a_batch):
        for start in range(0, max(len(images), 1), batch_size):
            batch = to_tensor(images[start : start + batch_size], network)
            rows.append(forward(network, batch).float().cpu().numpy())
            after()
            finite = np.isfinite(rows[-1]).all(axis=1)
            if not finite.all():
                index = start + int(np.argmin(finite))
                cause = (
                    "the image itself has non-finite pixels"
                    if not np.isfinite(images[index : index + 1]).all()
                    else "the image is finite, so the weights or running statistics are not"
                )
                raise NotFiniteError("logits", index, cause)
    return np.concatenate(rows)


_FLOPS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], float]] = WeakKeyDictionary()


def flops(network: nn.Module, image: Num[np.ndarray, "images ..."]) -> float:
    """Floating-point operations of products and convolutions in a forward pass; counted once.

    Args:
        network: in whatever mode.
        image: one, or none at all, which costs nothing.

    Returns:
        Infinity where the pass cannot be counted; a network that fails says so in the pass that was
        asked for.
    """
    known = _FLOPS.setdefault(network, {})
    if not len(image):
        return 0.0
    if image.shape in known:
        return known[image.shape]
    known[image.shape] = math.inf
    batch = to_tensor(np.repeat(image, 2, axis=0), network)  # not every network takes one alone
    devices = [batch.device] if batch.device.type == "cuda" else []
    with (
        suppress(Exception),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
        FlopCounterMode(display=False) as counter,
    ):
        # of the counter's own hooks
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)`", UserWarning)
        network(batch)
        known[image.shape] = counter.get_total_flops() / 2
    return known[image.shape]


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
    """Logits and features of one forward pass.

    Attributes:
        logits: of each image.
        features: of each image.
    """

    logits: Float32[np.ndarray, "examples classes"]
    features: Float32[np.ndarray, "examples width"]


def find_head(network: nn.Module, images: Num[np.ndarray, "examples ..."]) -> Head:
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
        submodule(network, named, NAMED)
        return Head(named, output=True)
    called: list[tuple[str, nn.Module, torch.Tensor]] = []

    def note(name: str, layer: nn.Module, _: object, output: torch.Tensor) -> None:
        # a copy: later layers may write into the output in place
        called.append((name, layer, output.detach().float().cpu().clone()))

    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, _LAYERS)]
    registered = (layer.register_forward_hook(partial(note, name)) for name, layer in layers)
    with hooks(network, registered):
        answers = torch.from_numpy(logits(network, images, max(len(images), 1)))
    for name, layer, output in reversed(called):
        if any(_same(end, answers) for end in ends(layer, output)):
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
    rows: list[np.ndarray] = []
    seen: list[torch.Tensor] = []

    def read(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        taken = output if head.output else (*given, *named.values())[0]
        if not isinstance(taken, torch.Tensor) or taken.ndim < 2:
            raise NetworkError(
                f"{head.name!r} returns a {type(taken).__name__}; features must be one tensor, "
                "with a row an image"
            )
        # a layer used twice makes the logits at the last
        seen[:] = [pooled(layer, taken, output=head.output)]

    layer = submodule(network, head.name, NAMED)
    refuse_training(network)
    with hooks(network, [layer.register_forward_hook(read, with_kwargs=True)]):
        keep = lambda: rows.append(seen.pop().float().cpu().numpy())
        outputs = answers(network, images, batch_size, keep)
    features = np.concatenate(rows)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        cause = f"the logits are; look at that image, or name another layer ({NAMED})"
        raise NotFiniteError(f"features at {head.name!r}", int(np.argmin(finite)), cause)
    return Predictions(outputs, features)


def pooled(layer: nn.Module, taken: torch.Tensor, *, output: bool) -> torch.Tensor:
    """One row an image: averaged over positions, which are last but for a linear layer's input."""
    taken = taken.detach()
    if isinstance(layer, nn.Linear) and not output:
        return taken.flatten(1, -2).mean(1) if taken.ndim > 2 else taken.clone()
    return taken.flatten(2).mean(2) if taken.ndim > 2 else taken.clone()


def ends(layer: nn.Module, output: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits from a layer's output, if nothing but a usual ending followed it: the candidates."""
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


def submodule(network: nn.Module, name: str, asked_by: str, hint: str = "") -> nn.Module:
    """The submodule of that name.

    Raises:
        NetworkError: there is none; the message says what named it.
    """
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        parts = ", ".join(name for name, _ in network.named_children())
        raise NetworkError(
            f"{asked_by} of the network is {name!r}, which is none of its submodules: {error}; its "
            f"parts are {parts or 'none'}{hint}"
        ) from error
