"""The routes without taps: torch2jax and a hand-written twin; which faults no route may take."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge import trace
from bridge.errors import BridgeError, ExportError, ParityError
from bridge.module import weights_of
from bridge.parity import certify
from bridge.trace import mirror
from kernel.ntk import empirical_ntk
from kernel.options import Request
from tests.kernel_cases import per_example_gradients
from tests.small_networks import CLASSES, SHAPE, build

pytest.importorskip("torch2jax")


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE)).astype("float32")


class Small(nn.Module):
    """BatchNorm, a frozen and a tied layer, of what torch2jax has; subclasses change `body`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.fixed = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, CLASSES)
        self.table: Tensor
        self.register_buffer("table", torch.tensor([0.5, 1.0, 1.5, 2.0]), persistent=False)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1) * self.table
        h = self.fixed(torch.tanh(self.second(torch.tanh(self.first(h)))))
        return self.head(h)


class Kept(Small):
    """A table for each shape of the images, made when it is first met."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def body(self, x: Tensor) -> Tensor:
        key = tuple(x.shape)
        if key not in self.kept:
            self.kept[key] = torch.ones(1) * 0.25
        return super().body(x) * self.kept[key]


class Reported(Small):
    """A line for the log that names the number of images."""

    def body(self, x: Tensor) -> Tensor:
        self.line = f"{x.shape[0]:4d} images"
        return super().body(x)


class Made(nn.Module):
    """Any body before the rest of `Small`."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.small, self.body = Small(), body
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))
        self.count = 0
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.small(self.body(self, x))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in eval mode with other statistics than the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = torch.randn(part.num_features) / 4
                part.running_var = torch.rand(part.num_features) + 0.5
    return network.eval()


@pytest.mark.parametrize("make", [Kept, Reported])
def test_what_torch_export_refuses_as_such_is_converted_and_certified(make) -> None:
    network = seeded(make)
    with pytest.raises(ExportError, match=r"torch\.export cannot turn the network into a graph"):
        mirror(network, images(2), route="torch.export")
    with pytest.warns(UserWarning, match=r"SymInt.*mirrored by torch2jax instead, without taps"):
        twin = mirror(network, images(2))
    assert (twin.route, twin.program, twin.sites) == ("torch2jax", None, ())
    certificate = certify(network, twin, images(4))
    assert certificate.logits_float64 < 1e-13
    assert certificate.gradients < 1e-12
    assert not getattr(network, "kept", None)
    assert not hasattr(network, "line")


def test_arrays_are_those_of_any_mirror_and_the_kernels_run() -> None:
    network = seeded(Small)
    plain, twin = mirror(network, images(2)), mirror(network, images(2), route="torch2jax")
    assert set(twin.params) == set(plain.params)
    assert set(twin.frozen) == set(plain.frozen)
    assert twin.constants == plain.constants == {"table"}
    assert "first.weight" in twin.params
    assert "fixed.weight" in twin.frozen
    x, v = jnp.asarray(images(3)), jnp.linspace(-1, 1, CLASSES, dtype=jnp.float32)
    np.testing.assert_allclose(
        per_example_gradients(twin.model(), x, v),
        per_example_gradients(plain.model(), x, v),
        rtol=1e-4,
        atol=1e-6,
    )
    kernels = [
        empirical_ntk(m.model(), images(3), Request(precision="float64")) for m in (twin, plain)
    ]
    np.testing.assert_allclose(kernels[0].values, kernels[1].values, rtol=1e-10)


def test_the_function_outlives_the_weights_and_compiles_once() -> None:
    network = seeded(Small)
    twin = mirror(network, images(2), route="torch2jax")
    traces = []

    def traced(function, params, frozen, x):
        traces.append(1)
        return function(params, frozen, x)

    run = jax.jit(traced, static_argnums=0)
    run(*twin.model(), images(2))
    with torch.no_grad():
        network.get_parameter("head.bias").add_(1)
    later = twin.with_weights(weights_of(network))
    theirs = network(torch.tensor(images(2))).detach().numpy()
    np.testing.assert_allclose(run(*later.model(), images(2)), theirs, atol=1e-6)
    assert later.function is twin.function
    assert len(traces) == 1


def test_a_wrong_conversion_is_caught_by_the_certificate() -> None:
    """torch2jax 0.1.0 computes the tanh form of GELU: what a transformer's feed-forward is."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, CLASSES)
    ).eval()
    twin = mirror(network, images(2), route="torch2jax")
    with pytest.raises(ParityError, match=r"first disagree in the logits"):
        certify(network, twin, images(4))


def two_sides(self: Any, x: Tensor) -> Tensor:
    return x if torch.sum(x) > 0 else x * 2


def changed(self: Any, x: Tensor) -> Tensor:
    return x + self.seen.add_(1.0)


# No route may take these: torch.export's refusal, or ours, is the last word.
FINAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "noise": lambda self, x: x + torch.randn_like(x),
    "dropout": lambda self, x: F.dropout(x, 0.5, True),
    "batch statistics": lambda self, x: F.batch_norm(x, None, None, training=True),
    "changed buffer": changed,
    "branch on data": two_sides,
    "fixed batch": lambda self, x: x.reshape(2, *SHAPE),
    "operator without a row": lambda self, x: torch.special.bessel_j0(x),
}


@pytest.mark.parametrize("reason", FINAL)
def test_a_refusal_for_what_the_network_does_is_final(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trace, "convert")  # to fall back would be an AttributeError
    with pytest.raises(BridgeError) as caught:
        mirror(seeded(lambda: Made(FINAL[reason])), images(2))
    assert not isinstance(caught.value, ExportError)


def looped(self: Any, x: Tensor) -> Tensor:
    return sum(x[:, channel][:, None] for channel, _ in enumerate(x[0])) * torch.ones(1, 3, 1, 1)


# What torch2jax by itself takes one side of, never returns from, forgets, or makes an assertion of.
EXPLICIT: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "branch on data": (two_sides, r"\(test_routes\.py:\d+: return x if .*depends on the va"),
    "item": (lambda self, x: x * torch.mean(x).item(), r"depends on the values of the images"),
    "noise": (lambda self, x: x + torch.randn_like(x), r"draws random numbers in eval mode"),
    "changed buffer": (changed, r"forward changes seen, so that its logits depend"),
    "fixed batch": (lambda self, x: x.reshape(2, *SHAPE), r"torch2jax cannot run the network"),
    "function it lacks": (
        lambda self, x: F.softplus(x),
        r"\(test_routes\.py:\d+: .*NotImplementedError: Unhandled function call",
    ),
    "assertion": (
        lambda self, x: F.max_pool2d(x, 2, ceil_mode=True),
        r"AssertionError: TODO: implement ceil_mode",
    ),
}


@pytest.mark.parametrize("reason", EXPLICIT)
def test_what_torch2jax_does_not_do_rightly_is_refused(reason: str) -> None:
    body, message = EXPLICIT[reason]
    with pytest.raises(BridgeError, match=message):
        mirror(seeded(lambda: Made(body)), images(2), route="torch2jax")


def test_a_loop_over_a_tensor_ends() -> None:
    network = seeded(lambda: Made(looped))
    twin = mirror(network, images(2), route="torch2jax")
    assert certify(network, twin, images(2)).logits_float64 < 1e-13


def test_unused_parameters_are_refused_on_this_route_too() -> None:
    network = seeded(Small)
    network.auxiliary = nn.Linear(2, 2).eval()
    with pytest.raises(BridgeError, match=r"not depend on 2 .*: auxiliary\.bias, auxiliary\.weigh"):
        mirror(network, images(2), route="torch2jax")


def test_both_refusals_are_named() -> None:
    network = seeded(lambda: Made(lambda self, x: F.softplus(x) * len(f"{x.shape[0]:d}")))
    with pytest.raises(BridgeError) as caught:
        mirror(network, images(2))
    assert "torch.export cannot turn the network into a graph" in str(caught.value)
    assert "the second route does not take it either: torch2jax cannot run" in str(caught.value)


def test_a_missing_torch2jax_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch2jax", None)
    with pytest.raises(BridgeError, match=r"torch2jax is not installed.*ntk-lookahead\[torch2jax"):
        mirror(seeded(Small), images(2), route="torch2jax")


def test_torch2jax_is_not_loaded_for_what_torch_export_takes() -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setitem(sys.modules, "torch2jax", None)
        warnings.simplefilter("error")
        assert mirror(build("tied"), images(2)).route == "torch.export"


class Wrapper(nn.Module):
    """What decorators and wrappers of modules leave of a signature."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "arguments of any number": Wrapper,
    "DataParallel": lambda: nn.DataParallel(Small()),
    "compiled": lambda: torch.compile(Small(), backend="eager"),  # type: ignore[return-value]
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_has_taps_like_what_it_wraps(name: str) -> None:
    network = seeded(WRAPPED[name])
    forward = network.forward
    twin = mirror(network, images(2))
    assert twin.route == "torch.export"
    assert network.forward == forward
    assert certify(network, twin, images(3)).gradients < 1e-12


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    part = torch.jit.script(nn.Linear(192, CLASSES).eval())
    whole = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval())
    with pytest.raises(BridgeError, match="the network is compiled by TorchScript"):
        mirror(whole, images(2))
    with pytest.raises(BridgeError, match="layer '1' is compiled by TorchScript"):
        mirror(nn.Sequential(nn.Flatten(), part).eval(), images(2), route="torch2jax")


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(BridgeError, match=r"unknown route 'onnx'; known: auto, torch\.export, tor"):
        mirror(build("tied"), images(2), route="onnx")


def counted(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    return x * self.count


def cached(self: Any, x: Tensor) -> Tensor:
    if "x" not in self.kept:
        self.kept["x"] = x
    return x + self.kept["x"]


def cached_by_shape(self: Any, x: Tensor) -> Tensor:
    """State that torch.export refuses as such: the first route to be asked is not the last."""
    return x + self.kept.setdefault(str(hash(x.shape[0])), x)


@pytest.mark.parametrize("route", ["auto", "torch2jax"])
@pytest.mark.parametrize("body", [counted, cached, cached_by_shape])
def test_a_network_that_remembers_is_refused(body, route: str) -> None:
    with pytest.raises(BridgeError, match=r"once it has seen different ones.*a counter or a cache"):
        mirror(seeded(lambda: Made(body)), images(2), route=route)
