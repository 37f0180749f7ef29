"""Random small networks of the layers that the table has, mirrored and certified."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bridge.parity import certify
from bridge.trace import mirror

SIDE = 6


class Residual(nn.Module):
    """x + f(x), where f keeps the shape."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Joined(nn.Module):
    """The channels of two branches, one after another."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=1)


class Attention(nn.Module):
    """Each pixel looks at every other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        pixels = self.attention(pixels, pixels, pixels, need_weights=False)[0]
        return pixels.transpose(1, 2).reshape(x.shape)


ACTIVATIONS = [
    nn.ReLU(inplace=True),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.ELU(0.7),
    nn.LeakyReLU(0.1),
    nn.Hardtanh(),
    nn.Hardswish(),
    nn.Softplus(2.0),
    nn.Mish(),
    nn.Tanhshrink(),
    nn.Softshrink(0.2),
    nn.Softmax(dim=1),
    nn.Dropout2d(0.3),
]
Layers = tuple[list[nn.Module], int, int]  # layers, and the channels and side that come out


def divisors(*numbers: int) -> st.SearchStrategy[int]:
    return st.sampled_from([d for d in range(1, 9) if all(n % d == 0 for n in numbers)])


@st.composite
def convolution(draw: st.DrawFn, channels: int, side: int) -> Layers:
    width = channels * draw(st.integers(1, 2)) if channels < 8 else 4
    kernel = draw(st.integers(1, 3))
    padding = draw(st.integers(0, 1))
    dilation = draw(st.integers(1, 2))
    stride = draw(st.integers(1, 2))
    reach = dilation * (kernel - 1)
    if side + 2 * padding <= reach:
        padding, dilation, reach = kernel - 1, 1, kernel - 1
    layer = nn.Conv2d(
        channels,
        width,
        kernel,
        stride,
        padding,
        dilation,
        groups=draw(divisors(channels, width)),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"])),
    )
    return [layer], width, (side + 2 * padding - reach - 1) // stride + 1


@st.composite
def transposed(draw: st.DrawFn, channels: int, side: int) -> Layers:
    width, kernel, stride = draw(st.sampled_from([2, 4])), draw(st.integers(2, 3)), 2
    extra = draw(st.integers(0, 1))
    groups = draw(divisors(channels, width))
    layer = nn.ConvTranspose2d(channels, width, kernel, stride, 1, extra, groups)
    new = (side - 1) * stride - 2 + kernel - 1 + extra + 1
    return ([layer], width, new) if 1 <= new <= 2 * SIDE else ([], channels, side)


@st.composite
def norm(draw: st.DrawFn, channels: int, side: int) -> Layers:
    options = [
        nn.BatchNorm2d(channels),
        nn.GroupNorm(draw(divisors(channels)), channels),
        nn.LayerNorm([side, side]),
        nn.RMSNorm(side, eps=1e-4),
        nn.LocalResponseNorm(2),
    ]
    if side > 1:
        options.append(nn.InstanceNorm2d(channels, affine=True))
    return [draw(st.sampled_from(options))], channels, side


@st.composite
def activation(draw: st.DrawFn, channels: int, side: int) -> Layers:
    options = [*ACTIVATIONS, nn.PReLU(channels)]
    return [draw(st.sampled_from(options))], channels, side


@st.composite
def pool(draw: st.DrawFn, channels: int, side: int) -> Layers:
    new = draw(st.integers(1, side))
    half = -(-side // 2)
    options: list[tuple[nn.Module, int]] = [
        (nn.AdaptiveAvgPool2d(new), new),
        (nn.AdaptiveMaxPool2d(new), new),
        (nn.MaxPool2d(2, ceil_mode=True), half),
        (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), half),
        (nn.MaxPool2d(3, 1, 1), side),
        (nn.Upsample(size=(new, new), mode="bilinear"), new),
        (nn.Upsample(size=(new, new)), new),
    ]
    layer, side = draw(st.sampled_from(options))
    return [layer], channels, side


@st.composite
def attention(draw: st.DrawFn, channels: int, side: int) -> Layers:
    heads = draw(divisors(channels))
    return [Residual(Attention(channels, heads))], channels, side


@st.composite
def residual(draw: st.DrawFn, channels: int, side: int) -> Layers:
    first, _, _ = draw(norm(channels, side))
    second, _, _ = draw(activation(channels, side))
    last = nn.Conv2d(channels, channels, 3, padding="same", groups=draw(divisors(channels)))
    return [Residual(*first, *second, last)], channels, side


@st.composite
def joined(draw: st.DrawFn, channels: int, side: int) -> Layers:
    if channels > 4:
        return [nn.Conv2d(channels, 4, 1)], 4, side
    left, _, _ = draw(activation(channels, side))
    return [Joined(nn.Sequential(*left), nn.Conv2d(channels, 2, 3, 1, 1))], channels + 2, side


BLOCKS = [convolution, transposed, norm, activation, pool, attention, residual, joined]


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Three channels in, blocks in any order, a linear head; weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 99)))
        layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
        channels, side = 4, SIDE
        for _ in range(draw(st.integers(1, 5))):
            block = draw(st.sampled_from(BLOCKS))
            more, channels, side = draw(block(channels, side))
            layers += more
        size = channels * side * side
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 3)).eval()
        perturb([part for part in network.modules() if isinstance(part, nn.BatchNorm2d)])
        return network


def perturb(norms: Sequence[nn.BatchNorm2d]) -> None:
    for part in norms:
        part.running_mean = torch.randn(part.num_features) / 4
        part.running_var = torch.rand(part.num_features) + 0.5
        nn.init.normal_(part.weight, 1.0, 0.2)
        nn.init.normal_(part.bias, 0.0, 0.2)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network=networks())
def test_random_networks_are_certified(network: nn.Sequential) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype("float32")
    certificate = certify(network, mirror(network, images[:2]), images)
    assert certificate.gradients < 1e-10
    assert certificate.compared > 0
