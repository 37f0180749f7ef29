"""Networks whose forward asks for dtypes: the images', one of its own, and bfloat16 weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge import module, portable
from bridge.parity import FLOAT64, certify
from bridge.trace import mirror
from bridge.weights import read
from pipelines.query import query
from tests.small_networks import CLASSES, NETWORKS, SHAPE, build


class Follows(nn.Module):
    """Tables, zeros and fractions in whatever dtype the images have."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(64, 8), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x.flatten(2))
        table = torch.sin(torch.arange(8, dtype=x.dtype) / 3)
        x = x * table + torch.full((), 0.1, dtype=x.dtype)
        y = x.new_zeros(x.shape)
        y[:, 1:] = x[:, 1:] * torch.tensor(1 / 3).to(x.dtype)
        y = y * (x > 0).to(x.dtype) + torch.zeros(x.shape, dtype=x.dtype)
        return self.head((x + y).flatten(1))


class Masked(nn.Module):
    """Attention with a mask of booleans: scores of −∞ among the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(64, 8), nn.Linear(24, CLASSES)
        self.bias = nn.Parameter(torch.randn(3, 3))
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool())

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x.flatten(2))
        y = F.scaled_dot_product_attention(x, x, x, attn_mask=~self.mask)
        scores = (x @ x.transpose(1, 2) + self.bias).masked_fill(self.mask, -torch.inf)
        return self.head((y + torch.softmax(scores, -1) @ x).flatten(1))


class Tied(nn.Module):
    """Insists on float32 for a constant that meets the images: it cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) @ torch.eye(192, dtype=torch.float32))


def seeded(cls: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls().eval()


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE)).astype("float32")


@pytest.mark.parametrize("cls", [Follows, Masked])
def test_what_follows_the_images_is_exact_in_float64(cls: type[nn.Module]) -> None:
    network = seeded(cls)
    twin = mirror(network, images(2))
    certificate = certify(network, twin, images())
    assert certificate.tolerance_float64 == FLOAT64
    assert certificate.exceptions == ()
    assert certificate.logits_float64 < 1e-14
    assert certificate.gradients < 1e-13
    logits = twin.apply(twin.params, jnp.asarray(images()))
    assert logits.dtype == jnp.float32
    assert {a.dtype.name for a in twin.params.values()} == {"float32"}


def test_constants_keep_their_digits_in_a_file(tmp_path: Path) -> None:
    network = seeded(Follows)
    portable.save(mirror(network, images(2)), tmp_path / "mirror.safetensors")
    loaded = portable.load(tmp_path / "mirror.safetensors")
    assert certify(network, loaded, images()).logits_float64 < 1e-14


def test_a_network_tied_to_its_dtype_is_mirrored_in_it() -> None:
    network = seeded(Tied)
    twin = mirror(network, images(2))
    ours = twin.apply(twin.params, jnp.asarray(images()))
    theirs = network(torch.tensor(images())).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_weights(name: str, tmp_path: Path) -> None:
    network = build(name).bfloat16()
    twin = mirror(network, images(2))
    assert {a.dtype.name for a in twin.params.values()} == {"bfloat16"}
    certificate = certify(network, twin, images())
    assert certificate.logits_float64 < 1e-13
    assert certificate.gradients < 1e-12
    ours = twin.apply(twin.params, jnp.asarray(images(), jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    theirs = network(torch.tensor(images()).bfloat16()).detach().float().numpy()
    np.testing.assert_allclose(ours.astype("float32"), theirs, atol=0.02 * np.abs(theirs).max())
    module.save_module(network, tmp_path / "weights.safetensors")
    assert certify(network, twin.with_weights(read(tmp_path / "weights.safetensors")), images())


def test_a_query_of_a_bfloat16_network() -> None:
    pool = np.random.default_rng(5).normal(size=(12, *SHAPE)).astype("float32")
    chosen = query(build("wide_resnet").bfloat16(), pool, {0: 1, 1: 2}, 3)
    assert len(set(chosen.indices.tolist())) == 3
    assert np.isfinite(chosen.candidate_scores).all()
