"""Gradients that cancel: compared with the size of their terms, refused where they are false."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import ParityError
from bridge.ops import OPERATORS
from bridge.parity import GRADIENTS, certify, compare
from bridge.trace import mirror

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.shift = nn.Parameter(torch.zeros(1))
        self.key = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        h = self.function(self, x).flatten(2).mean(2)
        return self.head(F.layer_norm(h + self.shift, (6,))) + self.key(h).sum(1, keepdim=True)


def attention(self: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    return ((tokens @ self.key(tokens).mT).softmax(-1) @ tokens).mT


CANCELLING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "instance norm": lambda self, x: F.instance_norm(x).relu(),
    "instance norm of large values": lambda self, x: F.instance_norm(1e4 * x).relu(),
    "group norm": lambda self, x: F.group_norm(x, 6).relu(),
    "softmax over positions": lambda self, x: x.flatten(2).softmax(-1) * x.flatten(2).abs(),
    "mean taken away": lambda self, x: (x - x.mean((2, 3), keepdim=True)).abs(),
    "keys of attention": attention,
}


def made(function: Callable[[Any, Tensor], Tensor], only: str = "") -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net(function).eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(only in name)
    return network


@pytest.mark.parametrize("name", CANCELLING)
def test_what_cancels_is_certified(name: str) -> None:
    network = made(CANCELLING[name])
    certificate = certify(network, mirror(network, IMAGES[:2]), IMAGES)
    assert certificate.tolerance_gradients == GRADIENTS
    assert certificate.gradients < 1e-12


def test_a_network_of_nothing_but_what_cancels() -> None:
    network = made(CANCELLING["instance norm"], only="conv.bias")
    network.key.requires_grad_(False)
    assert certify(network, mirror(network, IMAGES[:2]), IMAGES).gradients < 1e-10


def without_gradient_of_the_mean(x: Any, *args: Any) -> Any:
    """Instance normalisation whose mean is held constant: right values, and a bias that counts."""
    axes = (2, 3)
    centred = x - jax.lax.stop_gradient(x.mean(axes, keepdims=True))
    return centred * jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + 1e-5)


def scaled_slope(factor: float) -> Callable[..., Any]:
    """A ReLU of the right values and a slope wrong by a factor."""
    return lambda x: (
        jax.lax.stop_gradient(jnp.where(x <= 0, 0, x) - factor * jnp.where(x <= 0, 0, x))
        + factor * jnp.where(x <= 0, 0, x)
    )


def test_a_false_gradient_of_what_cancels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made(CANCELLING["instance norm"], only="conv.bias")
    monkeypatch.setitem(OPERATORS, "aten.instance_norm.default", without_gradient_of_the_mean)
    with pytest.raises(ParityError, match=r"per-example gradients of conv\.bias"):
        certify(network, mirror(network, IMAGES[:2]), IMAGES)


@pytest.mark.parametrize("factor", [1 + 1e-8, 1.5])
def test_a_false_gradient_beside_what_cancels_is_refused(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    network = made(CANCELLING["instance norm"])
    monkeypatch.setitem(OPERATORS, "aten.relu.default", scaled_slope(factor))
    faults = compare(network, mirror(network, IMAGES[:2]), IMAGES).disagreements
    assert any("per-example gradients of conv.weight" in fault for fault in faults)
