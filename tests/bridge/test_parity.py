"""The certificate: rounding errors for a true mirror, the layer's name for a false one."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge import module as bridge_module
from bridge.errors import BridgeError, ParityError
from bridge.mirror import Mirror
from bridge.ops import OPERATORS
from bridge.parity import certify, compare
from bridge.program import Node
from bridge.trace import mirror
from tests.small_networks import CLASSES, NETWORKS, SHAPE, build
from trainer import networks as project


def images(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *shape)).astype("float32")


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Mirror]:
    network = build("wide_resnet")
    return network, mirror(network, images(2))


def sabotage(twin: Mirror, module: str, op: str, change) -> Mirror:
    """The mirror with the arguments of one node changed."""

    def replace(node: Node) -> Node:
        hit = node.module == module and node.op == op
        return dataclasses.replace(node, args=change(node.args)) if hit else node

    program = twin.program
    assert program is not None
    nodes = tuple(replace(node) for node in program.nodes)
    assert nodes != program.nodes
    return dataclasses.replace(twin, function=dataclasses.replace(program, nodes=nodes))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_true_mirror_is_certified(name: str) -> None:
    network = build(name)
    twin = mirror(network, images(2))
    certificate = certify(network, twin, images(3))
    assert certificate.examples == 3
    assert certificate.parameters == len(twin.params)
    assert certificate.compared == certificate.sites >= len(twin.sites)
    assert certificate.logits_float32 < 1e-5
    assert certificate.logits_float64 < 1e-13
    assert certificate.activations < 1e-13
    assert certificate.gradients < 1e-12
    assert certificate.batch < 1e-13
    assert json.loads(json.dumps(certificate.as_dict())) == certificate.as_dict()


@pytest.mark.parametrize("name", ["wide_resnet", "cnn"])
def test_the_networks_of_the_project_are_certified(name: str) -> None:
    shape = (1, 14, 14) if name == "wide_resnet" else (3, 32, 32)
    arguments = {"stages": 1, "widen": 1} if name == "wide_resnet" else {}
    network = project.build(name, shape, 10, np.random.default_rng(0), arguments)
    certificate = certify(network, mirror(network, images(2, shape)), images(2, shape))
    assert certificate.compared == certificate.sites
    assert certificate.gradients < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_the_larger_networks_of_the_project_are_certified(name: str) -> None:
    shape = (3, 32, 32)
    network = project.build(name, shape, 10, np.random.default_rng(0), {})
    certificate = certify(network, mirror(network, images(2, shape)), images(2, shape))
    assert certificate.compared == certificate.sites
    assert certificate.gradients < 1e-12


def test_the_certificate_of_another_round_compiles_nothing(pair) -> None:
    network, twin = pair
    certify(network, twin, images(3))
    other = build("wide_resnet", seed=1)
    later = twin.with_weights(bridge_module.weights_of(other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bridge.program.Program._run", None)  # tracing would call it
        assert certify(other, later, images(3)).gradients < 1e-12


def test_a_float64_network_is_certified() -> None:
    network = build("wide_resnet").double()
    assert certify(network, mirror(network, images(2)), images(2)).logits_float64 < 1e-13


def test_an_epsilon_of_another_size_is_found_and_its_layer_named(pair) -> None:
    network, twin = pair
    change = lambda args: (*args[:7], 1e-3, *args[8:])
    false = sabotage(twin, "block.norm2", "aten.batch_norm.default", change)
    with pytest.raises(ParityError, match=r"at layer 'block\.norm2' \(aten\.batch_norm\.default;"):
        certify(network, false, images(3))


def test_a_missing_bias_is_found_and_its_layer_named(pair) -> None:
    network, twin = pair
    change = lambda args: (*args[:2], None, *args[3:])
    false = sabotage(twin, "block.shortcut", "aten.conv2d.default", change)
    with pytest.raises(ParityError, match=r"at layer 'block\.shortcut'"):
        certify(network, false, images(3))


def test_a_missing_bias_of_zeros_is_found() -> None:
    network = build("wide_resnet")
    nn.init.zeros_(network.get_parameter("head.bias"))
    twin = mirror(network, images(2))
    false = sabotage(twin, "head", "aten.linear.default", lambda args: args[:2])
    with pytest.raises(ParityError, match=r"the mirror never uses head\.bias"):
        certify(network, false, images(3))


def test_a_fault_between_layers_names_the_first_layer_after_it() -> None:
    twin = mirror(build("vgg"), images(2))
    change = lambda args: (args[0], (1, 1), (2, 2))
    false = sabotage(twin, "3", "aten.max_pool2d.default", change)
    with pytest.raises(ParityError, match=r"at layer '4' \(aten\.conv2d\.default\b"):
        certify(build("vgg"), false, images(3))


def test_swapped_weights_are_found(pair) -> None:
    network, twin = pair
    params = dict(twin.params)
    params["norm.weight"], params["norm.bias"] = params["norm.bias"], params["norm.weight"]
    with pytest.raises(ParityError, match=r"the mirror's norm\.weight is not the network's"):
        certify(network, dataclasses.replace(twin, params=params), images(3))


def test_a_stale_mirror_is_found(pair) -> None:
    _, twin = pair
    network = build("wide_resnet")
    network.get_buffer("norm.running_var").mul_(1.001)
    with pytest.raises(ParityError, match=r"norm\.running_var is not the network's"):
        certify(network, twin, images(3))


def test_another_network_and_another_mask_are_found(pair) -> None:
    _, twin = pair
    with pytest.raises(ParityError, match="differ in their trainable parameters"):
        certify(build("vgg"), twin, images(3))
    network = build("wide_resnet")
    network.get_parameter("stem.bias").requires_grad_(False)
    with pytest.raises(ParityError, match=r"differ in their trainable parameters: stem\.bias;"):
        certify(network, twin, images(3))


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(int(np.prod(SHAPE)), 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        return self.head(hidden - hidden.mean(0))


def test_images_that_depend_on_their_batch_are_found_and_located() -> None:
    network = Coupled().eval()
    twin = mirror(network, images(2))
    with pytest.raises(ParityError, match=r"other images of its batch, from layer 'head'"):
        certify(network, twin, images(3))


def test_a_false_gradient_behind_true_values_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half the slope at a kink: what jnp.maximum does where an input is exactly 0.
    monkeypatch.setitem(OPERATORS, "aten.relu.default", lambda x: jnp.maximum(x, 0))
    first = nn.Linear(192, 6)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(6, CLASSES)).eval()
    for parameter in first.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ParityError, match=r"gradients of 1\.\w+, used by '1'"):
        certify(network, mirror(network, images(2)), images(3))


def test_gradients_that_are_no_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The root has an infinite slope at 0, which times 0, of what is not chosen, is NaN.
    rooted = lambda x: jnp.where(x <= 0, 0, jnp.sqrt(jnp.maximum(x, 0)) ** 2)
    monkeypatch.setitem(OPERATORS, "aten.relu.default", rooted)
    first = nn.Linear(192, 6)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(6, CLASSES)).eval()
    for parameter in first.parameters():
        nn.init.zeros_(parameter)
    certificate = compare(network, mirror(network, images(2)), images(3))
    assert certificate.gradients == np.inf
    assert any("per-example gradients of 1." in fault for fault in certificate.disagreements)


def test_logits_that_are_not_finite_are_refused() -> None:
    network = build("wide_resnet")
    nn.init.constant_(network.get_parameter("head.bias"), float("nan"))
    with pytest.raises(ParityError, match="not finite"):
        certify(network, mirror(network, images(2)), images(3))


def test_train_mode_and_a_single_image_are_refused(pair) -> None:
    network, twin = pair
    with pytest.raises(BridgeError, match="at least two images"):
        certify(network, twin, images(1))
    network = build("wide_resnet").train()
    with pytest.raises(BridgeError, match=r"train mode; call \.eval\(\)"):
        certify(network, twin, images(3))


class OwnDtype(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(int(np.prod(SHAPE)), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) @ torch.eye(192, dtype=torch.float32))


def test_a_network_that_insists_on_its_dtype_is_certified_in_float64() -> None:
    network = OwnDtype().eval()
    assert certify(network, mirror(network, images(2)), images(2)).logits_float64 < 1e-13
