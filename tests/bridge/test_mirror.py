"""The mirror: same logits at any batch size, arrays that are kept apart, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge import module as bridge_module
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.trace import mirror
from tests.small_networks import CLASSES, NETWORKS, SHAPE, build
from trainer import networks as project

ARGUMENTS = {"wide_resnet": {"stages": 2, "widen": 1}}


def images(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *shape)).astype("float32")


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Mirror]:
    network = build(request.param)
    return network, mirror(network, images(2))


def torch_logits(network: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.tensor(x)).numpy()


def close(ours: np.ndarray | jax.Array, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("count", [2, 7])
def test_logits_are_those_of_torch_at_any_batch_size(pair, count: int) -> None:
    network, twin = pair
    close(jax.jit(twin.apply)(twin.params, images(count)), torch_logits(network, images(count)))


def test_one_image_and_vmap_over_single_images(pair) -> None:
    network, twin = pair
    x, theirs = images(3), torch_logits(network, images(3))
    close(jax.jit(twin.apply)(twin.params, x[:1]), theirs[:1])
    one = jax.vmap(lambda image: twin.apply(twin.params, image[None])[0])
    close(jax.jit(one)(jnp.asarray(x)), theirs)


def test_float64(pair) -> None:
    network, twin = pair
    exact = copy.deepcopy(network).double()
    theirs = exact(torch.tensor(images(3)).double()).detach().numpy()
    double = twin.astype(jnp.float64)
    assert double.function is twin.function
    ours = jax.jit(double.apply)(double.params, jnp.asarray(images(3), float))
    assert ours.dtype == jnp.float64
    close(ours, theirs, 1e-12)


@pytest.mark.parametrize("name", project.NETWORKS)
def test_the_networks_of_the_project(name: str) -> None:
    shape = (1, 28, 28)  # at which a VGG comes down to single pixels
    rng = np.random.default_rng(0)
    network = project.build(name, shape, 10, rng, ARGUMENTS.get(name, {}))
    twin = mirror(network, images(2, shape))
    x = images(3, shape)
    close(jax.jit(twin.apply)(twin.params, x), torch_logits(network, x), 2e-5)
    names = {n for n, _ in network.named_parameters()}
    assert set(twin.params) == names == {p for site in twin.sites for p in site.parameters}


def test_names_are_those_of_the_state_dict_and_tied_ones_come_once() -> None:
    twin = mirror(build("tied"), images(2))
    assert set(twin.params) == set(build("tied").state_dict()) - {"second.weight"}
    users = [site.name for site in twin.sites if "first.weight" in site.parameters]
    assert users == ["first", "second"]


def test_frozen_parameters_buffers_and_constants_are_apart() -> None:
    twin = mirror(build("handwritten"), images(2))
    assert {"frozen.weight", "frozen.bias", "shift"} <= set(twin.frozen)
    assert set(twin.params) == {"conv.weight", "scale", "head.weight", "head.bias"}
    assert len(twin.constants) == 1
    assert twin.constants <= set(twin.frozen)
    assert "frozen" not in [site.name for site in twin.sites]


def test_sites_are_named_by_module_and_line() -> None:
    twin = mirror(build("handwritten"), images(2))
    assert [site.name for site in twin.sites] == ["conv", "conv#2", "mul", "head"]
    assert twin.sites[0].op == "aten.conv2d.default"
    assert twin.sites[0].source.startswith("small_networks.py:")
    program = twin.program
    assert program is not None
    _, activations = program.activations(twin.params, twin.frozen, jnp.asarray(images(2)))
    assert list(activations)[:4] == ["conv", "conv#2", "mul", "sub"]
    assert activations["conv"].shape == (2, 3, 8, 8)


def test_the_function_outlives_the_weights_and_compiles_once() -> None:
    network, other = build("wide_resnet"), build("wide_resnet", seed=1)
    twin = mirror(network, images(2))
    traces = []

    def traced(function, params, frozen, x):
        traces.append(1)
        return function(params, frozen, x)

    run = jax.jit(traced, static_argnums=0)
    close(run(*twin.model(), images(2)), torch_logits(network, images(2)))
    later = twin.with_weights(bridge_module.weights_of(other))
    assert later.function is twin.function
    assert hash(later.function) == hash(twin.function)
    close(run(*later.model(), images(2)), torch_logits(other, images(2)))
    assert len(traces) == 1


def test_with_weights_lists_every_fault() -> None:
    twin = mirror(build("wide_resnet"), images(2))
    weights = bridge_module.weights_of(build("wide_resnet"))
    del weights.params["stem.bias"]
    weights.params["head.weight"] = weights.params["head.weight"].T
    weights.buffers["extra"] = np.ones(1)
    with pytest.raises(BridgeError) as caught:
        twin.with_weights(weights)
    message = str(caught.value)
    assert "stem.bias is missing" in message
    assert "extra is not in the mirror" in message
    assert "head.weight has shape (8, 5), the mirror's has (5, 8)" in message


def test_no_memory_is_shared_and_the_module_is_left_as_it_was() -> None:
    network = build("handwritten")
    before = copy.deepcopy(network.state_dict())
    flags = [(p.requires_grad, p.grad, p.device) for p in network.parameters()]
    x = images(2)
    twin = mirror(network, x)
    theirs = torch_logits(network, x)
    assert not network.training
    assert [(p.requires_grad, p.grad, p.device) for p in network.parameters()] == flags
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    weights = bridge_module.weights_of(network)
    again = twin.with_weights(weights)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.zero_()
    for array in weights.params.values():
        array[:] = 0
    close(twin.apply(twin.params, jnp.asarray(x)), theirs)
    close(again.apply(again.params, jnp.asarray(x)), theirs)


def test_bfloat16_weights() -> None:
    network = build("vgg").bfloat16()
    twin = mirror(network, images(2))
    assert twin.params["0.weight"].dtype == jnp.bfloat16
    single = twin.astype(jnp.float32)
    theirs = torch_logits(copy.deepcopy(network).float(), images(2))
    close(jax.jit(single.apply)(single.params, images(2)), theirs)


class Net(nn.Module):
    """Any forward, with one linear layer to call."""

    def __init__(self, forward: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.head = nn.Linear(int(np.prod(SHAPE)), CLASSES)
        self.function = forward

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


class Counter(Net):
    def __init__(self) -> None:
        super().__init__(lambda self, x: self.head(x.flatten(1)) + self.seen.add_(1.0))
        self.register_buffer("seen", torch.zeros(1))


def unnormalised() -> nn.Module:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), CLASSES))


def half_trained() -> nn.Module:
    network = build("wide_resnet")
    network.get_submodule("block.norm1").train()
    return network


def unused() -> nn.Module:
    network = build("wide_resnet")
    network.auxiliary = nn.Linear(2, 2).eval()
    return network


def mean_branch(self: Any, x: Tensor) -> Tensor:
    return self.head(x.flatten(1)) if x.mean() > 0 else self.head(-x.flatten(1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "train mode": (lambda: build("wide_resnet").train(), r"in train mode; call \.eval\(\)"),
    "one layer in train mode": (half_trained, r"layers are in train mode: block\.norm1; call"),
    "batch statistics": (unnormalised, r"layer '0'.*BatchNorm without running statistics"),
    "dropout": (
        lambda: Net(lambda self, x: self.head(F.dropout(x.flatten(1), 0.5, True))),
        r"draws random numbers in eval mode; if it is dropout",
    ),
    "noise": (
        lambda: Net(lambda self, x: self.head(x.flatten(1) + torch.randn_like(x.flatten(1)))),
        r"test_mirror\.py:\d+.*aten\.randn_like\.default draws random numbers",
    ),
    "branch on data": (lambda: Net(mean_branch), r"depends on the values of the images"),
    "fixed batch": (
        lambda: Net(lambda self, x: self.head(x.reshape(2, -1))),
        r"forward works for one batch size only",
    ),
    "tuple": (
        lambda: Net(lambda self, x: (self.head(x.flatten(1)), x)),
        r"returns a tuple of 2; it must return the logits alone",
    ),
    "dict": (
        lambda: Net(lambda self, x: {"scores": self.head(x.flatten(1)), "loss": x}),
        r"returns a dict \(scores, loss\)",
    ),
    "number": (lambda: Net(lambda self, x: 3.0), r"returns a float; it must return a tensor"),
    "not 2-D": (lambda: Net(lambda self, x: x), r"returns shape \(2, 3, 8, 8\) for 2 images"),
    "unused": (unused, r"do not depend on 2 trainable .*: auxiliary\.bias, auxiliary\.weight"),
    "state": (Counter, r"forward changes 'seen'"),
    "wrong size": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, CLASSES)),
        r"cannot be run on images of shape \(2, 3, 8, 8\)",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_a_function_of_one_image_is_refused(reason: str) -> None:
    make, message = REFUSED[reason]
    network = make()
    if "train mode" not in reason:
        network.eval()
    with pytest.raises(BridgeError, match=message):
        mirror(network, images(2))


@pytest.mark.parametrize("shape", [(1, *SHAPE), (3,)])
def test_an_example_of_one_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BridgeError, match="a batch of at least two images"):
        mirror(build("wide_resnet"), np.zeros(shape, "float32"))
