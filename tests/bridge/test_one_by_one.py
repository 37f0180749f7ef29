"""Networks that take the size of their batch as a plain number are mirrored image by image."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge import portable
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.parity import certify
from bridge.trace import mirror
from kernel.ntk import empirical_ntk
from kernel.options import Request
from tests.small_networks import CLASSES, SHAPE


class Counts(nn.Module):
    """`len` makes a plain number of the batch's size, which torch.export then cannot leave free."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.embed, self.norm = nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm((torch.softmax(x @ x.transpose(1, 2), -1) @ x)[:, 0])
        return self.head(x + torch.zeros(len(x), 6, dtype=x.dtype))


class Loops(nn.Module):
    """A Python loop over the images."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(64, 4), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(F.silu(self.mix(image.flatten(1))).flatten()) for image in x])


NETWORKS: dict[str, Callable[[], nn.Module]] = {"len": Counts, "loop": Loops}


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE)).astype("float32")


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Mirror]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[request.param]().eval()
    return network, mirror(network, images(2))


def test_it_is_certified_layer_by_layer(pair) -> None:
    network, twin = pair
    assert twin.program is not None
    assert twin.program.one_by_one
    certificate = certify(network, twin, images(4))
    assert certificate.gradients < 1e-12
    assert certificate.compared == certificate.sites >= 2


@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_batch_size(pair, count: int) -> None:
    network, twin = pair
    ours = jax.jit(twin.apply)(twin.params, images(count))
    with torch.no_grad():
        theirs = network(torch.tensor(images(count))).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_kernels_go_by_taps_and_are_those_of_grad(pair) -> None:
    _, twin = pair
    model = twin.model()
    plain = model._replace(function=lambda p, f, x: 1 * twin.function(p, f, x))
    ours = empirical_ntk(model, images(3), Request("trace", precision="float64")).values
    theirs = empirical_ntk(plain, images(3), Request("trace", precision="float64")).values
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_it_is_saved_and_loaded(pair, tmp_path: Path) -> None:
    _, twin = pair
    portable.save(twin, tmp_path / "mirror.safetensors")
    loaded = portable.load(tmp_path / "mirror.safetensors")
    assert loaded.program is not None
    assert loaded.program.one_by_one
    x = jnp.asarray(images(3))
    np.testing.assert_array_equal(loaded.apply(loaded.params, x), twin.apply(twin.params, x))


class Mixing(Loops):
    """Divides by the size of the batch: not a function of one image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(x)


class Branches(Loops):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > len(x) else super().forward(-x)


def test_what_depends_on_the_batch_size_is_refused() -> None:
    network = Mixing().eval()
    twin = mirror(network, images(2))
    with pytest.raises(BridgeError, match="disagree"):
        certify(network, twin, images(4))
    with pytest.raises(BridgeError, match="depends on the values of the images"):
        mirror(Branches().eval(), images(2))
