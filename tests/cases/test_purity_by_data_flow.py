"""Impurity of a network is a matter of its data flow, not of the names of its operations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from bridge.errors import BridgeError
from bridge.module import weights_of
from bridge.parity import certify
from bridge.trace import mirror

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


class Net(nn.Module):
    """Two convolutions, the second with whatever weight is made of its own, and any forward."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.gain = nn.Parameter(torch.rand(6) + 0.5)
        self.spectral = parametrizations.spectral_norm(nn.Linear(6, 6))
        for name, start in {"mean": torch.zeros(6), "var": torch.ones(6)}.items():
            self.register_buffer(name, start)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.stem(x)) * self.gain + self.spectral(self.gain))

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight.reshape_as(self.conv.weight), self.conv.bias).mean((2, 3))


def plain(self: Any, x: Tensor) -> Tensor:
    return self.convolved(x, self.conv.weight)


def made(function: Callable[[Any, Tensor], Tensor]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(function).eval()


def standardised(self: Any, x: Tensor, *statistics: Any) -> Tensor:
    rows = self.conv.weight.reshape(1, 6, -1)
    mean, var = statistics or (None, None)
    return self.convolved(x, F.batch_norm(rows, mean, var, self.gain, None, True, 0.0, 1e-6))


def counting(self: Any, x: Tensor) -> Tensor:
    self.seen += 1
    return plain(self, x)


def averaging(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
    return plain(self, x)


def overwriting(self: Any, x: Tensor) -> Tensor:
    self.mean.copy_(self.head.weight.detach().sum(0))
    return plain(self, x) + self.mean


def in_place(self: Any, x: Tensor) -> Tensor:
    return self.convolved(x, self.conv.weight.clone().mul_(2).clamp_(-0.1, 0.1))


def part_without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        features = plain(self, x)
    return features * plain(self, x)


def drawn_in_vain(self: Any, x: Tensor) -> Tensor:
    size = torch.rand_like(self.mean).shape[0] + F.dropout(self.var, 0.5, True).shape[0]
    return plain(self, x) / size


PURE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "batch_norm of weights": standardised,
    "batch_norm of weights with statistics": lambda self, x: standardised(
        self, x, self.mean, self.var
    ),
    "instance_norm of weights": lambda self, x: self.convolved(
        x, F.instance_norm(self.conv.weight.flatten(1)[None])
    ),
    "dropout of nothing": lambda self, x: F.dropout(plain(self, x), 0.0, True),
    "dropout of no channel": lambda self, x: plain(self, F.dropout2d(x, 0.0, True)),
    "random numbers whose size alone counts": drawn_in_vain,
    "a part without gradient": part_without_gradient,
    "a counter": counting,
    "statistics that are kept and not used": averaging,
    "a buffer that is written before it is read": overwriting,
    "in place on a copy of a weight": in_place,
}


@pytest.mark.parametrize("name", PURE)
def test_a_function_of_one_image_is_certified(name: str) -> None:
    network = made(PURE[name])
    assert certify(network, mirror(network, IMAGES[:2]), IMAGES).gradients < 1e-10


def test_a_counter_that_went_on_is_no_stale_mirror() -> None:
    network = made(counting)
    twin = mirror(network, IMAGES[:2])
    network(torch.tensor(IMAGES))
    assert int(network.get_buffer("seen")) == 1
    certify(network, twin, IMAGES)
    certify(network, twin.with_weights(weights_of(network)), IMAGES)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_may_have_been_trained(norm: Any) -> None:
    network = made(plain)
    network.head = norm(nn.Linear(6, 4))
    network.train()(torch.tensor(IMAGES)).sum().backward()
    network.eval()
    assert certify(network, mirror(network, IMAGES[:2]), IMAGES).gradients < 1e-10


def using(self: Any, x: Tensor) -> Tensor:
    averaging(self, x)
    return plain(self, x) + self.mean


IMPURE: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "batch_norm of images": (
        lambda self, x: plain(self, F.batch_norm(x, None, None, training=True)),
        "BatchNorm without running statistics",
    ),
    "dropout of a constant": (
        lambda self, x: plain(self, x) * F.dropout(torch.ones(6), 0.5, True),
        "draws random numbers",
    ),
    "dropout of weights": (
        lambda self, x: self.convolved(x, F.dropout(self.conv.weight, 0.5, True)),
        "draws random numbers",
    ),
    "noise in the shape of a constant": (
        lambda self, x: plain(self, x) + torch.rand_like(self.mean),
        "draws random numbers",
    ),
    "statistics that are kept and used": (using, r"forward changes 'mean' and reads it"),
}


@pytest.mark.parametrize("name", IMPURE)
def test_anything_else_is_refused(name: str) -> None:
    function, message = IMPURE[name]
    with pytest.raises(BridgeError, match=message):
        mirror(made(function), IMAGES[:2])
