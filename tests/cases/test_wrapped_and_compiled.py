"""A network that is wrapped, patched or compiled is the network inside: same mirror, same batch."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bridge.parity import certify
from bridge.trace import mirror
from pipelines.query import query
from pipelines.strategies.baselines import retrained
from trainer.batchnorm import reestimate
from trainer.config import TrainConfig
from trainer.networks.loss_prediction import find_taps

IMAGES = np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)


class Net(nn.Module):
    """Begins with a Linear, which refuses images of another dtype than its weights'."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(48, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)).relu())


class Adapter(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def compiled_by_torch(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


class Compiled(Net):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def patched(forward: Callable[[Net, Callable[..., Tensor]], Any]) -> Net:
    """A network whose instance has another forward, made of itself and its own."""
    network = Net()
    network.forward = forward(network, network.forward)
    return network


def closure(network: Net, old: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(old)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * old(*args, **kwargs) + network.head.bias

    return forward


def hooked() -> Net:
    network = Net()
    shift: Callable[..., Any] = lambda module, inputs, output: output + network.head.bias.sum()
    network.first.register_forward_hook(shift)
    return network


def inner_patched() -> Net:
    network = Net()
    old = network.first.forward
    vars(network.first)["forward"] = lambda x: 2 * old(x)
    return network


def compiled_in_place() -> Net:
    network = Net()
    network.compile(backend="eager")
    return network


NETWORKS: dict[str, Callable[[], Any]] = {
    "DataParallel": lambda: nn.DataParallel(Net()),
    "AveragedModel": lambda: AveragedModel(Net()),
    "adapter": lambda: Adapter(Net()),
    "adapter of DataParallel": lambda: Adapter(nn.DataParallel(Net())),
    "closure": lambda: patched(closure),
    "autocast": lambda: patched(lambda net, old: torch.autocast("cpu", enabled=False)(old)),
    "method": lambda: patched(lambda net, old: MethodType(Net.forward, net)),
    "partial": lambda: patched(lambda net, old: functools.partial(old)),
    "hook that knows the network": hooked,
    "inner layer patched": inner_patched,
    "compiled": lambda: compiled_by_torch(Net()),
    "compiled Sequential": lambda: compiled_by_torch(nn.Sequential(Net())),
    "compiled DataParallel": lambda: compiled_by_torch(nn.DataParallel(Net())),
    "compiled inside": lambda: nn.Sequential(compiled_by_torch(Net())),
    "compiled in place": compiled_in_place,
    "compiled method": lambda: patched(lambda net, old: torch.compile(old, backend="eager")),
    "compiled by a decorator": Compiled,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_certified_and_stays_as_it_was(name: str) -> None:
    network = NETWORKS[name]().eval()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    forward = vars(network).get("forward")
    twin = mirror(network, IMAGES[:2])
    assert twin.route == "torch.export"
    assert set(twin.params) == set(before)
    assert certify(network, twin, IMAGES[:4]).gradients < 1e-12
    assert vars(network).get("forward") is forward
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(p.dtype is torch.float32 for p in network.parameters())


@pytest.mark.parametrize("name", ["closure", "hook that knows the network", "inner layer patched"])
def test_a_copy_that_is_trained_is_not_the_network(name: str) -> None:
    network, labels = NETWORKS[name]().eval(), np.arange(20) % 3
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    config = TrainConfig(min_steps=5, epochs=1, extensions=0)
    copied = retrained(network, IMAGES, labels, config, 0)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    with torch.no_grad():  # it no longer depends on the network's weights
        answers = copied(torch.tensor(IMAGES))
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(copied(torch.tensor(IMAGES)), answers)


def plain() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        ).eval()


@pytest.fixture(params=["whole", "whole, after a call", "in place", "a layer"])
def compiled(request: pytest.FixtureRequest) -> Any:
    network = plain()
    if request.param == "in place":
        network.compile(backend="eager")
        return network
    if request.param == "a layer":
        network[4] = compiled_by_torch(network[4])
        return network
    whole = compiled_by_torch(network)
    if "call" in request.param:
        whole(torch.tensor(IMAGES))
    return whole


@pytest.mark.parametrize("strategy", ["margin", "coreset", "badge", "mlmoc"])
def test_a_compiled_network_chooses_what_the_plain_one_does(compiled: Any, strategy: str) -> None:
    expected = query(plain(), IMAGES, {0: 0, 5: 1}, 2, strategy).indices.tolist()
    assert query(compiled, IMAGES, {0: 0, 5: 1}, 2, strategy).indices.tolist() == expected


def test_hooks_of_training_reach_a_compiled_network(compiled: Any) -> None:
    network = plain()
    reestimate(network, IMAGES)
    reestimate(compiled, IMAGES)
    means = [
        next(m for n, m in net.named_buffers() if n.endswith("running_mean"))
        for net in (network, compiled)
    ]
    assert torch.equal(*means)
    assert [t.width for t in find_taps(compiled, IMAGES)] == [
        t.width for t in find_taps(network, IMAGES)
    ]
