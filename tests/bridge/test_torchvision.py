"""The networks of torchvision, mirrored and certified on small images.

Their architectures as they come, with ten classes; weights are random, and nothing in them is left
at a 0 or 1 that would hide a fault. Two of them stand for the rest, which `make test-all` tries.
"""

import gc
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridge.errors import BridgeError
from bridge.parity import certify
from bridge.trace import mirror
from trainer.torchvision_compat import torchvision

CLASSES = 10
PLAIN: dict[str, Any] = {"aux_logits": False, "init_weights": False}
# maxvit_t, whose builder holds windows of 7 × 7, which need images of 224 × 224; here of 2 × 2,
# and one block of each kind, which repeat.
MAXVIT: dict[str, Any] = {
    "input_size": (64, 64),
    "stem_channels": 64,
    "partition_size": 2,
    "block_channels": [64, 128, 256, 512],
    "block_layers": [1, 1, 1, 1],
    "head_dim": 32,
    "stochastic_depth_prob": 0.2,
}
# vit_b_16 with two of its twelve layers, which are alike.
VIT: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 16,
    "num_layers": 2,
    "num_heads": 12,
    "hidden_dim": 768,
    "mlp_dim": 3072,
}
# Name of the builder, side of the images, and what it is built with. Quick ones come first.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "squeezenet1_1": (32, {}),
    "alexnet": (64, {}),
    "convnext_tiny": (32, {}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "googlenet": (32, PLAIN),
    "inception_v3": (75, PLAIN),
    "MaxVit": (64, MAXVIT),
    "mnasnet0_5": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_large": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "regnet_x_400mf": (32, {}),
    "regnet_y_400mf": (32, {}),
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "swin_t": (32, {}),
    "swin_v2_t": (32, {}),
    "vgg11": (32, {}),
    "vgg11_bn": (32, {}),
    "VisionTransformer": (32, VIT),
    "wide_resnet50_2": (32, {}),
}
# Joined branches and attention, for residual networks are the project's own; the rest is for
# `make test-all`.
REPRESENTATIVE = {"squeezenet1_1", "VisionTransformer"}
# Every operator of theirs is in one of the others, which is a test of its own.
REPEATING = {
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v3_large",
    "regnet_x_400mf",
    "resnet50",
    "resnext50_32x4d",
    "vgg11",
    "wide_resnet50_2",
}
# torch's own derivative of hardsigmoid in float64 is 1/6 rounded to float32.
GRADIENTS = {"mobilenet_v3_small": 1e-7, "mobilenet_v3_large": 1e-7}


def build(name: str, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(num_classes=CLASSES, **arguments)
        if name.startswith("vgg"):  # 4096 wide, its dense layers would take gigabytes
            sizes = ((0, 512 * 49, 64), (3, 64, 64), (6, 64, CLASSES))
            for place, inputs, outputs in sizes:
                network.classifier[place] = nn.Linear(inputs, outputs)
        return perturbed(network)


def perturbed(network: nn.Module) -> nn.Module:
    """Eval mode, with statistics, scales and biases that are not those of a new network."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features) / 10
            part.running_var = torch.rand(part.num_features) + 0.5
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("layer_scale"):
                parameter.uniform_(0.5, 1.0)
            elif parameter.ndim < 2 or parameter.unique().numel() == 1:
                parameter.add_(torch.randn(parameter.shape) / 10)
    return network.eval()


def images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, side, side)).astype("float32")


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """These are large: what was compiled for one is not kept for the next."""
    yield
    jax.clear_caches()
    gc.collect()


def marked(name: str) -> Any:
    marks = [] if name in REPRESENTATIVE else [pytest.mark.exhaustive]
    return pytest.param(name, marks=[pytest.mark.slow, *marks])


@pytest.mark.parametrize("name", [marked(name) for name in NETWORKS])
def test_it_is_certified_at_other_batch_sizes_than_its_example(name: str) -> None:
    side, arguments = NETWORKS[name]
    network = build(name, **arguments)
    twin = mirror(network, images(2, side))
    certificate = certify(network, twin, images(3, side))  # of three images, and of one
    assert certificate.parameters == len(list(network.parameters()))
    assert certificate.compared >= certificate.sites / 2  # torch fuses attention's
    assert certificate.logits_float64 < 1e-12
    assert certificate.gradients < GRADIENTS.get(name, 1e-10)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_networks_that_are_left_out_have_no_operator_of_their_own() -> None:
    operators: dict[bool, set[str]] = {True: set(), False: set()}
    for name, (side, arguments) in NETWORKS.items():
        program = mirror(build(name, **arguments), images(2, side)).program
        assert program is not None
        operators[name in REPEATING].update(node.op for node in program.nodes)
    assert operators[True] <= operators[False]


@pytest.mark.exhaustive
def test_heads_of_training_alone_are_refused_by_name_and_taken_frozen() -> None:
    network = build("googlenet", aux_logits=True, init_weights=False)
    with pytest.raises(
        BridgeError, match=r"depend on \d+ trainable .*: aux1\.conv\.bn\.bias, aux1"
    ):
        mirror(network, images(2, 32))
    for head in ("aux1", "aux2"):
        network.get_submodule(head).requires_grad_(False)
    twin = mirror(network, images(2, 32))
    assert not [name for name in twin.params if name.startswith("aux")]
    assert "aux1.fc1.weight" in twin.frozen
