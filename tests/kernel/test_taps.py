"""Gradients formed from taps are those of `vmap(grad)` and of torch, however a weight enters."""

from typing import Any

import numpy as np
import pytest
import torch
from jax import numpy as jnp
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.mirror import Mirror
from bridge.parity import certify
from bridge.trace import mirror
from kernel.model import Model
from kernel.ntk import empirical_ntk
from kernel.options import KINDS, Request
from kernel.taps import Tapped, tap_gradients
from tests.kernel_cases import per_example_gradients
from tests.small_networks import CLASSES, NETWORKS, SHAPE, build


class Tokens(nn.Module):
    """A class token, positions and a bias table: sites whose axis 0 is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 5, 6))
        self.table = nn.Parameter(torch.randn(9, 2))
        self.index: Tensor
        self.register_buffer("index", torch.arange(25) % 9)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        bias = self.table[self.index].reshape(5, 5, 2).sum(-1)
        x = x.transpose(0, 1)  # tokens first
        x = self.mix(x).transpose(0, 1)
        return self.head(torch.softmax(x @ x.transpose(1, 2) + bias, -1) @ x)[:, 0]


class Standardised(nn.Module):
    """Weights that go through operators of their own before they meet the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.gains = nn.Parameter(torch.randn(2, 4))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        gain, _ = self.gains.max(0)  # values and places
        return self.head(F.relu(F.conv2d(x, centred)).amax((2, 3)) * gain)


class Twice(nn.Module):
    """One weight in three roles: a convolution, its own transpose, and a decay."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(3, 3))
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, self.shared[:, :, None, None])).mean((2, 3))
        return self.head(x @ self.shared.T) * torch.exp(-self.shared.square().sum())


class AtKinks(nn.Module):
    """Every pre-activation is exactly at a kink, or a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3, 1, 1))
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.shift
        x = torch.cat([F.relu(x), F.hardtanh(x + 1), x.abs(), F.hardswish(x + 3)], 1)
        return self.head(F.max_pool2d(x, 8).flatten(1))


OWN = {cls.__name__: cls for cls in (Tokens, Standardised, Twice, AtKinks)}


def network(name: str) -> nn.Module:
    if name in NETWORKS:
        return build(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return OWN[name]().eval()


def without_taps(model: Model) -> Model:
    def function(params, frozen, x):
        return model.function(params, frozen, x)

    return Model(function, model.params, model.frozen)


def twin_of(name: str) -> tuple[nn.Module, Mirror, np.ndarray]:
    images = np.random.default_rng(3).normal(size=(3, *SHAPE)).astype("float32")
    module = network(name)
    return module, mirror(module, images), images


@pytest.mark.parametrize("name", [*NETWORKS, *OWN])
def test_taps_agree_with_grad_and_with_torch(name: str) -> None:
    module, twin, images = twin_of(name)
    exact = twin.astype(jnp.float64).model()
    plain = without_taps(exact)
    assert isinstance(exact.function, Tapped)
    assert not isinstance(plain.function, Tapped)
    direction = jnp.arange(1.0, CLASSES + 1)
    ours = np.asarray(per_example_gradients(exact, jnp.asarray(images, float), direction))
    reference = np.asarray(per_example_gradients(plain, jnp.asarray(images, float), direction))
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12 * np.abs(reference).max())

    module = module.double()
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    outputs = module(torch.tensor(images).double()) @ torch.arange(1.0, CLASSES + 1).double()
    for value, row in zip(outputs, ours, strict=True):
        weights = [trainable[n] for n in sorted(trainable)]
        theirs = torch.autograd.grad(value, weights, retain_graph=True)
        flat = torch.cat([g.reshape(-1) for g in theirs]).numpy()
        np.testing.assert_allclose(row, flat, rtol=0, atol=1e-12 * np.abs(flat).max())


@pytest.mark.parametrize("name", OWN)
def test_such_networks_are_certified(name: str) -> None:
    module, twin, images = twin_of(name)
    certificate = certify(module, twin, images)
    assert certificate.gradients < 1e-12
    assert set(certificate.gradient_errors) == set(twin.params)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_from_taps_are_those_of_grad(kind: Any) -> None:
    _, twin, images = twin_of("Tokens")
    model = twin.model()
    plain = without_taps(model)
    ours, theirs = (
        empirical_ntk(
            m, images, Request(kind, precision="float64"), rng=np.random.default_rng(0)
        ).values
        for m in (model, plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())


def test_only_the_parameters_asked_for_are_returned() -> None:
    _, twin, images = twin_of("Twice")
    function = twin.program
    assert function is not None
    gradients = tap_gradients(
        function, twin.params, twin.frozen, jnp.asarray(images[0]), jnp.ones(CLASSES), ["shared"]
    )
    assert list(gradients) == ["shared"]
    assert gradients["shared"].shape == (3, 3)
