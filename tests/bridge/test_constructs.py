"""What people write by hand, each as a small network: mirrored, certified, and where it enters."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import BridgeError
from bridge.parity import certify
from bridge.program import Program
from bridge.trace import mirror
from tests.bridge.construct_networks import NETWORKS, SHAPE, Net


def images(count: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(count, *SHAPE)).astype("float32")


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name]().eval()
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d) and module.track_running_stats:
                module.running_mean, module.running_var = torch.randn(4) / 4, torch.rand(4) + 0.5
        return network


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_certified_at_any_batch_size(name: str) -> None:
    network = build(name)
    twin = mirror(network, images(2))
    certificate = certify(network, twin, images(3))
    assert certificate.gradients < 1e-10
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    assert set(twin.params) == trainable
    assert {p for site in twin.sites for p in site.parameters} == trainable
    with torch.no_grad():
        theirs = network(torch.tensor(images(1))).numpy()
    ours = twin.apply(twin.params, jnp.asarray(images(1)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def sites(name: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(site.op, site.parameters) for site in mirror(build(name), images(2)).sites]


def test_the_site_of_a_weight_is_where_it_enters_a_chain() -> None:
    entries = [
        op for op, parameters in sites("weight standardisation") if "conv.weight" in parameters
    ]
    assert entries == ["aten.mean.dim", "aten.sub.Tensor", "aten.std.correction"]
    assert ("aten.conv2d.default", ("conv.bias",)) in sites("weight standardisation")


def test_einsum_and_transposed_convolution_are_sites() -> None:
    assert ("aten.einsum.default", ("query",)) in sites("einsum attention")
    assert ("aten.conv_transpose2d.input", ("up.weight", "up.bias")) in sites("up and down")


def test_buffers_of_whole_numbers_are_not_parameters() -> None:
    twin = mirror(build("windows"), images(2))
    assert twin.frozen["index"].dtype == np.int64
    assert twin.astype(np.float64).frozen["index"].dtype == np.int64


def test_what_no_image_decides_is_made_by_torch() -> None:
    twin = mirror(build("table of sines"), images(2))
    (name,) = twin.constants
    assert name.startswith("constant:")
    assert twin.frozen[name].shape == (16, 4)
    assert isinstance(twin.function, Program)
    ops = {node.op for node in twin.function.nodes}
    assert not ops & {"aten.sin.default", "aten.arange.default", "aten.slice_scatter.default"}


REFUSED = {
    "fractional pooling": (
        lambda: Net(lambda self, x: F.fractional_max_pool2d(x, 2, output_size=3)),
        r"aten\.rand\.default draws random numbers",
    ),
    "attention with dropout": (
        lambda: Net(
            lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5).mean((2, 3))
        ),
        r"aten\.scaled_dot_product_attention\.default draws random numbers",
    ),
    "gumbel": (
        lambda: Net(lambda self, x: F.gumbel_softmax(x, dim=1)),
        r"aten\.exponential\.default draws random numbers",
    ),
    "random slopes": (
        lambda: Net(lambda self, x: F.rrelu(x, training=True)),
        r"draws random numbers",
    ),
    "mask": (
        lambda: Net(lambda self, x: x.masked_select(x > 0).sum() * x),
        r"masked_select",
    ),
    "matrix exponential": (
        lambda: Net(lambda self, x: torch.linalg.matrix_exp(x)),
        r"(?s)linalg_matrix_exp.*def linalg_matrix_exp\(x\):",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(BridgeError, match=message):
        mirror(make().eval(), images(2))


class Direct(nn.Module):
    """Logits that a parameter alone decides for all images are still logits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], -1) * x.mean((1, 2, 3))[:, None]


def test_a_bare_parameter_alone() -> None:
    network = Direct().eval()
    assert certify(network, mirror(network, images(2)), images(2)).gradients < 1e-12
