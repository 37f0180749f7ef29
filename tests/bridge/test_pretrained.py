"""Networks of timm, and outputs as Hugging Face's models return them, mirrored and certified."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridge.errors import BridgeError
from bridge.parity import certify
from bridge.trace import mirror
from trainer.networks import build
from trainer.trainable import set_trainable

# EfficientNet-lite0 stands for the others in `make test`.
TIMM = (
    ("tf_efficientnet_lite0", "last:2", 5),
    ("resnet18", "last:2", 8),
    ("vit_tiny_patch16_224", "head", 2),
    ("convnext_atto", "last:1", 4),
    ("mobilenetv3_small_050", "last:2", 4),
)


def images(side=32, channels=3):
    shape = (4, channels, side, side)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "trainable", "arrays"),
    [
        pytest.param(*row, marks=[pytest.mark.slow, *([pytest.mark.exhaustive] if at else [])])
        for at, row in enumerate(TIMM)
    ],
)
def test_networks_of_timm_are_certified(name, trainable, arrays):
    network = build(f"timm:{name}", (3, 32, 32), 3, np.random.default_rng(0))
    set_trainable(network, trainable, images())
    made = mirror(network, images())
    certificate = certify(network, made, images())
    assert len(made.params) == certificate.parameters == arrays
    assert made.program is not None  # by torch.export
    assert all(p.grad is None for p in network.parameters())


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3))
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class Output(dict):
    """As transformers' ModelOutput is: a dictionary with attributes."""

    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"logits": x, "loss": None},
        lambda x: Output(logits=x, hidden_states=(x, x)),
        lambda x: SimpleNamespace(logits=x),
    ],
    ids=["dictionary", "ModelOutput", "object"],
)
def test_logits_of_an_object_are_mirrored(wrap):
    network = Returns(wrap).eval()
    some = images(4)
    made = mirror(network, some)
    certify(network, made, some)
    assert made.program is not None
    assert set(made.params) == {name for name, _ in network.named_parameters()}
    answers = made.function(made.params, made.frozen, jnp.asarray(some))
    np.testing.assert_allclose(answers, network.body(torch.tensor(some)).detach(), atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda x: (x, x), lambda x: {"scores": x}])
def test_other_outputs_are_refused(wrap):
    with pytest.raises(BridgeError, match="it must return the logits alone"):
        mirror(Returns(wrap).eval(), torch.tensor(images(4)))
