"""LL4AL's loss prediction module (Yoo & Kweon, *Learning Loss for Active Learning*, CVPR 2019).

Predicts each image's loss from feature maps of a network: each map h, averaged over positions, goes
through a linear layer to `width` numbers and a ReLU, and all of these through one linear layer to a
number l̂. Images with the largest l̂ are queried. For a batch of images with losses l_i (detached) it
adds to the network's loss

    weight · mean over pairs (i, j) of max(0, −sign(l_i − l_j) · (l̂_i − l̂_j) + margin),

the pairs being the i-th of its first half and the i-th of its second (of an odd batch the last
image is left out), so l̂ orders images by their loss and has no scale. Once `detach` of the schedule
is over, and in extensions of it, the gradient no longer enters the network.

Differences from the paper, and choices that it leaves open:

- Optimiser, schedule, momentum and weight decay are the network's; the learning rate is 0.01 and
  never above the network's. The paper has one rate, 0.1, for either. At the rate of networks
  trained with L2 here (1.25), and at 0.1 beside it, all ReLUs of the module died within a few
  rounds: every image then has the same prediction, for good.
- Runs with L2 let 1/C of the gradient into the network (`grad_scale`), because that loss is a mean
  over C classes. With all of it the ranking loss dominated and labels were no longer fitted.
- Equal losses have no order: sign(0) = 0, where the paper has −1.
- The schedule is that of one training; with `stop` `fitted` it may end before its `detach`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Num
from torch import nn

from trainer.config import LossPredictionConfig
from trainer.errors import NetworkError
from trainer.fit import AuxiliaryModule
from trainer.networks.architecture import depths_of
from trainer.networks.vgg import VGG
from trainer.networks.wide_resnet import WideResNet
from trainer.predict import (
    Images,
    NotFiniteError,
    answers,
    forward,
    hooks,
    placement,
    submodule,
    to_tensor,
)
from trainer.randomness import seeded

_MOST = 4  # taps chosen by default; as many as Yoo & Kweon have
_POOLED = 1e-5


class Tap(NamedTuple):
    """A module of the network whose output is read.

    Attributes:
        name: of the submodule.
        width: channels of its output, averaged over positions.
    """

    name: str
    width: int


class _Output(NamedTuple):
    name: str
    value: torch.Tensor
    learned: bool  # depends on parameters of the network


def pooled(name: str, output: object) -> torch.Tensor:
    """Features averaged over positions, (batch, width).

    Args:
        name: of the module, for the message.
        output: (batch, channels, height, width) and more positions after the channels, or (batch,
            tokens, channels), or (batch, channels).

    Raises:
        NetworkError: it is none of these.
    """
    if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim >= 2:
        if output.ndim == 3:
            return output.mean(dim=1)
        return output.flatten(2).mean(dim=2) if output.ndim > 3 else output
    shape = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else ""
    raise NetworkError(
        f"the tap {name!r} gives a {type(output).__name__} {shape or 'that is no tensor'}; it "
        "must give (batch, channels, height, width), (batch, tokens, channels) or (batch, "
        "channels): name modules that do"
    )


def find_taps(
    network: nn.Module,
    images: Num[np.ndarray, "examples channels height width"],
    names: Sequence[str] = (),
) -> tuple[Tap, ...]:
    """The modules whose outputs are read: those named, or a choice.

    Of the papers' networks those after each residual stage (`wide_resnet`, `resnet18`), pooling
    (`vgg11_bn`) or convolution and ReLU (`cnn`). Of another network, among the modules that are
    called once and whose output depends on parameters, the last one at each resolution (for outputs
    without positions: of each width) before the logits; the last four of these, without those that
    only average the one before.

    Args:
        network: in eval mode; its state is left as it was.
        images: a few, as the network takes them.
        names: of submodules.

    Raises:
        NetworkError: no such submodule, one that is not called once or gives no features, or none
            is found.
    """
    outputs, answers = _outputs(network, images)
    if names:
        if len(set(names)) < len(names):
            raise NetworkError(f"the taps {', '.join(names)} name a module twice; name each once")
        return tuple(_named(network, name, outputs) for name in names)
    found = list(_known(network)) or list(_guessed(outputs, answers))
    if not found:
        some = [output.name for output in outputs][:10]
        raise NetworkError(
            f"no intermediate feature map was found in this {type(network).__name__}: give the "
            "taps by name (--ll4al.taps NAME …), modules that are called once and come before the "
            f"logits; of those called there are {', '.join(some) or 'none'}"
        )
    return tuple(_named(network, name, outputs) for name in found)


def _named(network: nn.Module, name: str, outputs: Sequence[_Output]) -> Tap:
    parts = dict(network.named_modules())
    if name not in parts or not name:
        near = ", ".join([part for part in parts if part][:10])
        raise NetworkError(f"the network has no part {name!r} to tap; its parts are {near}")
    values = [output.value for output in outputs if output.name == name]
    if len(values) != 1:
        raise NetworkError(
            f"the tap {name!r} is called {len(values)} times for a batch and must be called once: "
            "name another module"
        )
    return Tap(name, pooled(name, values[0]).shape[1])


def _known(network: nn.Module) -> Iterator[str]:
    """Names of the taps of a papers' network; none for another network."""
    depths = depths_of(network)
    kind = None if depths is None else depths.name
    if kind == "resnet18":
        yield from (f"layer{stage}" for stage in (1, 2, 3, 4))
    elif kind == "cnn":
        yield from ("features.1", "features.3", "features.5")
    elif isinstance(network, VGG):
        last = len(network.features) - 1  # a ReLU, where the fifth halving is left out
        for index, layer in enumerate(network.features):
            if isinstance(layer, nn.MaxPool2d) or index == last:
                yield f"features.{index}"
    elif isinstance(network, WideResNet):
        count = len(network.blocks)
        for index in range(count):  # a stage ends where the next begins
            if index + 1 == count or network.blocks[index + 1].shortcut is not None:
                yield f"blocks.{index}"


def _guessed(outputs: Sequence[_Output], answers: torch.Tensor) -> list[str]:
    """Names of the taps of any other network: the last output at each resolution."""
    calls = [output.name for output in outputs]
    chosen: list[_Output] = []
    for output in outputs:
        value = output.value
        usable = value.is_floating_point() and value.ndim >= 2 and len(value) == len(answers)
        final = value.shape == answers.shape and torch.allclose(value, answers)
        if not usable or final or not output.learned or calls.count(output.name) > 1:
            continue
        if chosen and _adds_nothing(output, chosen[-1]):
            continue
        if chosen and _resolution(value) == _resolution(chosen[-1].value):
            chosen.pop()
        chosen.append(output)
    return [output.name for output in chosen[-_MOST:]]


def _resolution(value: torch.Tensor) -> tuple[int, ...]:
    """Number of axes, and the sizes of the positions, or the width where there are none."""
    positions = {2: value.shape[1:], 3: value.shape[1:2]}.get(value.ndim, value.shape[2:])
    return (value.ndim, *positions)


def _adds_nothing(output: _Output, before: _Output) -> bool:
    """True if it is the output before it, reshaped, or averaged over positions."""
    one, other = output.value, before.value
    if one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten()):
        return True
    one, other = pooled(output.name, one), pooled(before.name, other)
    scale = float(one.abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_POOLED * scale)


def _outputs(network: nn.Module, images: np.ndarray) -> tuple[list[_Output], torch.Tensor]:
    """Outputs of every submodule for a few images, in the order in which they finish."""
    outputs: list[_Output] = []
    learned = False

    def note(name: str, module: nn.Module, _: object, value: object) -> None:
        nonlocal learned
        learned = learned or any(True for _ in module.parameters())
        if isinstance(value, torch.Tensor):
            # a copy: later layers may write into it in place
            outputs.append(_Output(name, value.detach().clone(), learned))

    modules = [(name, module) for name, module in network.named_modules() if name]
    registered = (module.register_forward_hook(partial(note, name)) for name, module in modules)
    with hooks(network, registered), torch.no_grad():
        return outputs, forward(network, to_tensor(images, network))


class LossPrediction(AuxiliaryModule):
    """Predicts the order of images by their loss; trained along with their network.

    Attributes:
        taps: names of the network's modules whose outputs it reads.
        config: margin, weight, detach, learning rate and scale of the gradient.
    """

    def __init__(self, taps: Sequence[Tap], config: LossPredictionConfig) -> None:
        """Draw the initial weights from torch's generator; use `of` for one of a given network.

        Args:
            taps: the network's modules whose outputs it reads.
            config: its width and training; `config.taps` is not read.
        """
        super().__init__()
        self.taps = tuple(tap.name for tap in taps)
        self.config = config
        self.maps = nn.ModuleList([nn.Linear(tap.width, config.width) for tap in taps])
        self.head = nn.Linear(config.width * len(taps), 1)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        images: Num[np.ndarray, "examples channels height width"],
        rng: np.random.Generator,
        config: LossPredictionConfig | None = None,
    ) -> "LossPrediction":
        """A new module for a network, on its device.

        Args:
            network: in eval mode; its state is left as it was.
            images: two or more, as the network takes them, for the sizes of its feature maps.
            rng: draws the initial weights.
            config: its taps, width and training; None for the defaults.

        Raises:
            NetworkError: no feature map is found, or one that is named cannot be read.
        """
        config = config or LossPredictionConfig()
        taps = find_taps(network, images, config.taps)
        device, dtype = placement(network)
        with seeded(rng, torch.device("cpu")):
            module = cls(taps, config)
        return module.to(device=device, dtype=dtype).eval()

    def forward(
        self, features: Sequence[Float[torch.Tensor, "batch _"]]
    ) -> Float[torch.Tensor, " batch"]:
        """Averaged feature maps, one for each tap → predicted losses."""
        projected = [torch.relu(fc(h)) for fc, h in zip(self.maps, features, strict=True)]
        return self.head(torch.cat(projected, dim=1))[:, 0]

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[list[torch.Tensor]]:
        """Within it one forward pass of the network fills the list with averaged feature maps.

        Raises:
            NetworkError: a tap is not there, or gives no features.
        """
        seen = [torch.empty(0)] * len(self.taps)

        def read(index: int, _: nn.Module, __: object, output: object) -> None:
            # averaged at once: later layers may write into the map itself
            seen[index] = pooled(self.taps[index], output)

        hint = "; give the network that the loss prediction module was made for"
        parts = [submodule(network, name, "a tap", hint) for name in self.taps]
        registered = (p.register_forward_hook(partial(read, i)) for i, p in enumerate(parts))
        with hooks(network, registered):
            yield seen

    def rate(self, network_rate: float) -> float:
        """The highest learning rate of this module beside a network's."""
        return min(network_rate, self.config.learning_rate)

    def added(
        self,
        seen: Sequence[torch.Tensor],
        losses: Float[torch.Tensor, " batch"],
        done: float,
    ) -> Float[torch.Tensor, ""]:
        """Term added to the loss of a batch (see the module).

        Args:
            seen: averaged feature maps of the batch, one for each tap.
            losses: of each image.
            done: the part of the schedule that is over.

        Raises:
            NetworkError: another network than the one that it was made for.
        """
        config = self.config
        scale = 1.0 if config.grad_scale is None else config.grad_scale
        scale = scale if done < config.detach else 0.0
        if scale < 1:  # the same values, and `scale` of the gradient through them
            seen = [h.detach() + scale * (h - h.detach()) if scale else h.detach() for h in seen]
        return config.weight * ranking_loss(self._read(seen), losses.detach(), config.margin)

    def predict(
        self,
        network: nn.Module,
        images: Images,
        batch_size: int = 512,
    ) -> Float32[np.ndarray, " examples"]:
        """Predicted loss of every image; only the order means anything.

        Args:
            network: that it was trained with, in eval mode.
            images: (examples, channels, height, width), as the network takes them; read batch by
                batch.
            batch_size: how many go through the network at once.

        Raises:
            NetworkError: another network than the one that it was made for; logits or predictions
                that are not finite (NotFiniteError).
        """
        rows: list[np.ndarray] = []
        with self.watch(network) as seen:
            read = lambda: rows.append(self._read(seen).float().cpu().numpy())
            answers(network, images, batch_size, read)
        predicted = np.concatenate(rows)
        finite = np.isfinite(predicted)
        if not finite.all():
            cause = "the logits are; look at that image, and at the weights of the module"
            raise NotFiniteError("predictions of the loss", int(np.argmin(finite)), cause)
        return predicted

    def _read(self, seen: Sequence[torch.Tensor]) -> torch.Tensor:
        got = [features.shape[-1] for features in seen]
        expected = [fc.in_features for fc in self.maps if isinstance(fc, nn.Linear)]
        if got != expected:
            raise NetworkError(
                f"the network's feature maps at {', '.join(self.taps)} have {got} channels and "
                f"the loss prediction module was made for {expected}: give the network that it was "
                "trained with"
            )
        return self(seen)


def ranking_loss(
    predicted: Float[torch.Tensor, " batch"],
    losses: Float[torch.Tensor, " batch"],
    margin: float = 1.0,
) -> Float[torch.Tensor, ""]:
    """Mean over pairs of max(0, −sign(l_i − l_j)(l̂_i − l̂_j) + ξ); 0 without a pair.

    Args:
        predicted: l̂.
        losses: l.
        margin: ξ.
    """
    half = len(losses) // 2
    if half == 0:
        return predicted.sum() * 0.0
    order = torch.sign(losses[:half] - losses[half : 2 * half])
    gap = predicted[:half] - predicted[half : 2 * half]
    return torch.relu(margin - order * gap).mean()
