"""Every row of the operator table against torch: values and gradients, in float32 and float64."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import BridgeError
from bridge.export import to_numpy
from bridge.graph import Lifted, lift
from bridge.ops import OPERATORS, register

IMAGE = (2, 4, 7, 6)
# Values on both sides of every kink, and on the kinks themselves.
KINKS = [-6.0, -3.0, -2.0, -1.0, -0.5, -0.3, 0.0, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 25.0]


# torch says of one of its own paths that it copies.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")


class Case(NamedTuple):
    """A torch function of an array and of parameters of the given shapes."""

    function: Callable[..., Tensor]
    shape: Sequence[int] = IMAGE
    parameters: Sequence[Sequence[int]] = ()
    positive: bool = False


def at_kinks(function: Callable[..., Tensor]) -> Case:
    return Case(function, (2, len(KINKS)))


def conv(*sizes: int, rank: int = 2, bias: bool = True, shape: Sequence[int] = IMAGE, **k) -> Case:
    parameters = [sizes, sizes[:1]] if bias else [sizes]
    call = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return Case(functools.partial(call, **k), shape, parameters)


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] += 1.0
    y[:, 1:, ::2] = y[:, 1:, ::2].clamp_(max=0.5)
    return y.mul_(3.0)


MEAN, VARIANCE = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 0.5, 2.0, 0.1])
CASES: dict[str, Case] = {
    # convolution and linear
    "conv": conv(5, 4, 3, 3),
    "conv-no-bias": conv(5, 4, 3, 3, bias=False),
    "conv-stride-padding": conv(5, 4, 3, 2, stride=(2, 1), padding=(1, 2)),
    "conv-1x1-stride": conv(5, 4, 1, 1, stride=2),
    "conv-same": conv(5, 4, 3, 3, padding="same"),
    "conv-same-even": conv(5, 4, 4, 2, padding="same"),
    "conv-valid": conv(5, 4, 3, 3, padding="valid"),
    "conv-dilation": conv(5, 4, 3, 3, padding=2, dilation=2),
    "conv-groups": conv(6, 2, 3, 3, padding=1, groups=2),
    "conv-depthwise": conv(8, 1, 3, 3, padding=1, groups=4),
    "conv-small-image": conv(5, 4, 3, 3, padding=1, shape=(2, 4, 2, 2)),
    "conv-small-stride": conv(5, 4, 3, 3, padding=1, stride=2, shape=(2, 4, 2, 1)),
    "conv-small-same": conv(5, 4, 4, 4, padding="same", shape=(2, 4, 3, 3)),
    "conv-small-dilation": conv(5, 4, 3, 3, padding=2, dilation=2, shape=(2, 4, 4, 4)),
    "conv1d": conv(5, 4, 3, rank=1, padding=1, shape=(2, 4, 7)),
    "conv1d-same": conv(5, 4, 3, rank=1, padding="same", shape=(2, 4, 7)),
    "conv3d": conv(5, 4, 3, 3, 3, rank=3, padding=1, shape=(2, 4, 4, 4, 4)),
    "conv3d-same": conv(5, 4, 3, 3, 3, rank=3, padding="same", shape=(2, 4, 4, 4, 4)),
    "linear": Case(F.linear, (2, 3, 6), [(5, 6), (5,)]),
    "linear-no-bias": Case(F.linear, (2, 6), [(5, 6)]),
    "matmul": Case(torch.matmul, (2, 3, 6), [(6, 5)]),
    "mm": Case(lambda x, w: torch.mm(x, w.t()), (2, 6), [(5, 6)]),
    "bmm": Case(lambda x: torch.bmm(x, x.transpose(1, 2)), (2, 3, 6)),
    "addmm": Case(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2), (2, 6), [(6, 5), (5,)]),
    "baddbmm": Case(lambda x: torch.baddbmm(x, x, x), (2, 3, 3)),
    # normalisation and softmax
    "batch-norm": Case(
        lambda x, w, b: F.batch_norm(x, MEAN.to(x), VARIANCE.to(x), w, b, eps=1e-3),
        IMAGE,
        [(4,), (4,)],
    ),
    "batch-norm-plain": Case(lambda x: F.batch_norm(x, MEAN.to(x), VARIANCE.to(x)), (3, 4)),
    "layer-norm": Case(lambda x, w, b: F.layer_norm(x, (7, 6), w, b), IMAGE, [(7, 6), (7, 6)]),
    "layer-norm-plain": Case(lambda x: F.layer_norm(x, (6,), eps=1e-2)),
    "group-norm": Case(lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, [(4,), (4,)]),
    "group-norm-plain": Case(lambda x: F.group_norm(x, 4)),
    "softmax": Case(lambda x: F.softmax(x, 1)),
    "softmax-dtype": Case(lambda x: F.softmax(x, 1, dtype=torch.float64)),
    "log-softmax": Case(lambda x: F.log_softmax(x, -1)),
    "logsumexp": Case(lambda x: torch.logsumexp(x, (1, 2))),
    "normalize": Case(lambda x: F.normalize(x, dim=1)),
    "dropout-off": Case(lambda x: F.dropout2d(F.dropout(x, 0.5, False), 0.5, False) * 2),
    # pooling
    "max-pool": Case(lambda x: F.max_pool2d(x, 2)),
    "max-pool-ties": Case(lambda x: F.max_pool2d(torch.round(x), 3, 1)),
    "max-pool-relu": Case(lambda x: F.max_pool2d(F.relu(x - 1), 2)),
    "max-pool-padding": Case(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max-pool-dilation": Case(lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
    "max-pool-ceil": Case(lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max-pool1d": Case(lambda x: F.max_pool1d(x, 2), (2, 4, 6)),
    "max-pool3d": Case(lambda x: F.max_pool3d(x, 2), (2, 3, 4, 4, 4)),
    "avg-pool": Case(lambda x: F.avg_pool2d(x, (2, 3))),
    "avg-pool-padding": Case(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg-pool-no-count": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg-pool-ceil": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "avg-pool-ceil-no-count": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, True, False)),
    "avg-pool-divisor": Case(lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    "avg-pool1d": Case(lambda x: F.avg_pool1d(x, 3, 1, 1), (2, 4, 6)),
    "avg-pool3d": Case(lambda x: F.avg_pool3d(x, 2), (2, 3, 4, 4, 4)),
    "adaptive-1": Case(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive-uneven": Case(lambda x: F.adaptive_avg_pool2d(x, (3, 4))),
    "adaptive-larger": Case(lambda x: F.adaptive_avg_pool2d(x, (9, 6))),
    "adaptive-1d": Case(lambda x: F.adaptive_avg_pool1d(x, 4), (2, 4, 6)),
    "adaptive-3d": Case(lambda x: F.adaptive_avg_pool3d(x, 2), (2, 3, 3, 4, 5)),
    # activations, at their kinks
    "relu": at_kinks(F.relu),
    "relu-in-place": at_kinks(lambda x: F.relu_(x * 1)),
    "relu6": at_kinks(F.relu6),
    "hardtanh": at_kinks(lambda x: F.hardtanh(x, -2, 3)),
    "hardsigmoid": at_kinks(F.hardsigmoid),
    "hardswish": at_kinks(F.hardswish),
    "leaky-relu": at_kinks(lambda x: F.leaky_relu(x, 0.3)),
    "prelu": Case(lambda x, w: F.prelu(torch.round(x), w), IMAGE, [(4,)]),
    "prelu-one": Case(F.prelu, (2, 5), [(1,)]),
    "elu": at_kinks(lambda x: F.elu(x, 0.7)),
    "selu": at_kinks(F.selu),
    "celu": at_kinks(lambda x: F.celu(x, 0.5)),  # torch rounds 1/alpha to float32
    "softplus": at_kinks(lambda x: F.softplus(x, 2.0, 10.0)),
    "mish": at_kinks(F.mish),
    "gelu": at_kinks(F.gelu),
    "gelu-tanh": at_kinks(lambda x: F.gelu(x, approximate="tanh")),
    "silu": at_kinks(F.silu),
    "sigmoid": at_kinks(torch.sigmoid),
    "log-sigmoid": at_kinks(F.logsigmoid),
    "tanh": at_kinks(torch.tanh),
    "softsign": at_kinks(F.softsign),
    "clamp": at_kinks(lambda x: torch.clamp(x, -2.0, 3.0)),
    "clamp-low": at_kinks(lambda x: torch.clamp(x, min=0.0)),
    "clamp-tensor": at_kinks(lambda x: torch.clamp(x, torch.tensor(-2.0), torch.tensor(3.0))),
    "clamp-min": at_kinks(lambda x: x.clamp_min(0.5)),
    "clamp-max": at_kinks(lambda x: x.clamp_max(0.5)),
    "threshold": at_kinks(lambda x: F.threshold(x, 0.5, 9.0)),
    "abs": at_kinks(torch.abs),
    "maximum": at_kinks(lambda x: torch.maximum(x, -x)),
    "minimum": at_kinks(lambda x: torch.minimum(x, x * x)),
    "sign-floor": at_kinks(lambda x: x * torch.sign(x) + torch.floor(x)),
    "where": at_kinks(lambda x: torch.where(x > 0.5, x * x, -x)),
    "where-scalar": at_kinks(
        lambda x: torch.where(x >= 0.5, x, 0.0) + torch.where(x < 0.3, 1.0, x)
    ),
    "masked-fill": at_kinks(
        lambda x: x.masked_fill((x < 0.3) | (x == 2.0), 7.0).masked_fill(x > 6, torch.tensor(0.0))
    ),
    "compare": at_kinks(
        lambda x: x * (x <= 0.3) + x * x * ((x != 1.0) & ~(x > x * x)) + x * (x < 7) * (x == 3)
    ),
    "logical": at_kinks(
        lambda x: x * torch.logical_and(x > 0, torch.logical_not(torch.logical_or(x < 3, x > 6)))
    ),
    "compare-tensors": at_kinks(
        lambda x: (
            x * (x < -x)
            + x * (x >= x * x)
            + x * (x == x * x)
            - x * (x != -x) * (x <= x * 2) * (x > -x)
        )
    ),
    # arithmetic
    "add-alpha": Case(lambda x, w: torch.add(x, w, alpha=2), IMAGE, [(7, 6)]),
    "sub-alpha": Case(lambda x, w: torch.sub(x, w, alpha=0.5), IMAGE, [(7, 1)]),
    "scalars": Case(lambda x: (2 - x) * 3 / 4 + 1 - (x - 0.5)),
    "rsub": Case(lambda x: torch.rsub(x, 3.0, alpha=2)),
    "div": Case(lambda x, w: x / w, IMAGE, [(6,)]),
    "div-integers": Case(lambda x: x * (torch.arange(6) / torch.tensor(4))),
    "powers": at_kinks(lambda x: x**2 + x**3.0 + torch.square(x)),
    "pow-fraction": Case(lambda x: x**1.5 + 2**x, positive=True),
    "pow-tensor": Case(lambda x: x**x, positive=True),
    "exp": Case(lambda x: torch.exp(x) + torch.expm1(x) + torch.erf(x)),
    "log": Case(lambda x: torch.log(x) + torch.log1p(x), positive=True),
    "roots": Case(lambda x: torch.sqrt(x) + torch.rsqrt(x) - torch.reciprocal(x), positive=True),
    "waves": Case(lambda x: torch.sin(x) - torch.cos(-x)),
    # reductions
    "mean": Case(lambda x: x.mean((2, 3))),
    "mean-keep": Case(lambda x: x - x.mean(1, keepdim=True)),
    "mean-all": Case(lambda x: x * x.mean()),
    "sum": Case(lambda x: x.sum(-1) + x.sum((1,)).sum(-2, keepdim=True).mean()),
    "sum-all": Case(lambda x: x * x.sum()),
    "var": Case(lambda x: x.var((2, 3)) + x.var(1, unbiased=False).mean()),
    "amax": Case(lambda x: torch.round(x).amax((2, 3)) - torch.round(x).amin(-1).sum()),
    "max-dim": Case(lambda x: x.max(1).values + x.max(1, keepdim=True).values[:, 0]),
    # shapes
    "view": Case(lambda x: x.view(x.shape[0], -1, 3).reshape(-1, 3) * 2),
    "flatten": Case(lambda x: x.flatten(1).unflatten(1, (2, -1)) * 2),
    "permute": Case(lambda x: x.permute(0, 2, 3, 1).contiguous().transpose(1, -1) * 2),
    "transposed": Case(lambda x, w: x @ w.T, (2, 5), [(3, 5)]),
    "squeeze": Case(lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze() * 2),
    "squeeze-dims": Case(lambda x: torch.squeeze(x[:, :1], (1, 2)).squeeze(0) * 2),
    "expand": Case(lambda x, w: x + w.expand(x.shape[0], -1, 7, 6), IMAGE, [(1, 4, 1, 1)]),
    "expand-as": Case(lambda x, w: w.expand_as(x) * x, IMAGE, [(6,)]),
    "repeat": Case(lambda x: x.repeat(1, 2, 1, 3) * 2),
    "select-slice": Case(lambda x: x[:, 1, ::2, -3:] + x.select(-1, 2)[:, 0, :4, None]),
    "cat-stack": Case(lambda x: torch.cat([x, x * 2], 1) + torch.stack([x, x], 2).flatten(1, 2)),
    "split": Case(lambda x: x.split(3, -2)[2] * x.split([2, 1, 4], 2)[1]),
    "chunk-unbind": Case(lambda x: x.chunk(4, 3)[2] + torch.unbind(x, 3)[0].unsqueeze(-1)),
    "flip": Case(lambda x: x.flip(2, 3) * 2),
    "pad": Case(lambda x: F.pad(x, (1, 2, -1, 0), value=1.5)),
    "pad-reflect": Case(lambda x: F.pad(x, (1, 2, 2, 1), "reflect")),
    "pad-replicate": Case(lambda x: F.pad(x, (1, 2, 2, 1), "replicate")),
    "pad-circular": Case(lambda x: F.pad(x, (1, 2, 2, 1), "circular")),
    "in-place": Case(in_place),
    "detach": Case(lambda x: x * x.detach()),
    "dtypes": Case(lambda x: x.double() * torch.ones(6, dtype=torch.int32).to(torch.float16)),
    "sizes": Case(lambda x: x * (x.shape[0] * 2 + 1) / ((x.shape[0] + 3) // 2 - x.shape[0] % 2)),
    "size-ratio": Case(lambda x: x * (x.shape[0] / 4) * -x.shape[0]),
    "makers": Case(
        lambda x: x * torch.ones(x.shape[0], 1, 1, 1) + torch.zeros(6) + torch.full((6,), 2.0)
    ),
    "likes": Case(lambda x: x + torch.ones_like(x) + torch.zeros_like(x) * torch.full_like(x, 2.0)),
    "arange": Case(
        lambda x: x * torch.arange(6) + torch.arange(1, 7) - torch.arange(0.0, 3.0, 0.5)
    ),
}


# Functions of one image, without those that no axis matters to.
MIXING = {"mean-all", "sum-all", "sizes", "size-ratio", "amax", "sum", "var", "view", "baddbmm"}
ROWWISE = [name for name in CASES if name not in MIXING and len(CASES[name].shape) > 2]


class Wrapped(nn.Module):
    def __init__(self, case: Case, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        arrays = [rng.uniform(0.5, 1.5, shape).astype("float32") for shape in case.parameters]
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(array)) for array in arrays)
        self.function = case.function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


@functools.cache
def lifted(name: str) -> tuple[Wrapped, Lifted]:
    module = Wrapped(CASES[name], 0).eval()
    return module, lift(module, torch.ones(tuple(CASES[name].shape)))


def values_of(case: Case, dtype: torch.dtype) -> Tensor:
    if list(case.shape) == [2, len(KINKS)]:
        return torch.tensor([KINKS, KINKS[::-1]], dtype=dtype)
    x = torch.tensor(np.random.default_rng(1).normal(size=tuple(case.shape)), dtype=dtype)
    return x.abs() + 0.2 if case.positive else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    module, (program, tensors, trainable, _) = lifted(name)
    x = values_of(CASES[name], dtype).requires_grad_()
    names = sorted(trainable)
    leaves = {n: tensors[n].detach().to(dtype).requires_grad_() for n in names}
    theirs = torch.func.functional_call(module, leaves, (x,))
    cotangent = torch.cos(torch.arange(theirs.numel(), dtype=theirs.dtype)).reshape(theirs.shape)
    gradients = torch.autograd.grad(theirs, [x, *leaves.values()], cotangent)

    params = {n: jnp.asarray(to_numpy(leaves[n])) for n in names}
    constants = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    frozen = {n: jnp.asarray(to_numpy(constants[n])) for n in tensors if n not in trainable}

    @jax.jit
    def value_and_gradients(p, x, cotangent):
        value, pull = jax.vjp(lambda p, x: program(p, frozen, x), p, x)
        return value, pull(cotangent)

    ours, (by_params, by_x) = value_and_gradients(params, to_numpy(x), to_numpy(cotangent))
    assert ours.dtype == to_numpy(theirs).dtype

    rtol = 2e-5 if dtype is torch.float32 else 1e-11
    if "hardsigmoid" in name:  # torch's own float64 gradient of it is 1/6 in float32
        rtol = max(rtol, 1e-7)
    expected = [to_numpy(tensor) for tensor in (theirs, *gradients)]
    for got, want in zip([ours, by_x, *(by_params[n] for n in names)], expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(1e-30, np.abs(want).max()))


@pytest.mark.parametrize("name", ROWWISE)
def test_any_batch_size_and_one_example_under_vmap(name: str) -> None:
    module, (program, tensors, trainable, _) = lifted(name)
    arrays = {n: jnp.asarray(to_numpy(t)) for n, t in tensors.items()}
    x = torch.cat([values_of(CASES[name], torch.float32)] * 3)[:5]
    with torch.no_grad():
        theirs = to_numpy(module(x))

    @jax.jit
    def together_and_apart(images):
        one = jax.vmap(lambda image: program(arrays, {}, image[None])[0])
        return program(arrays, {}, images), one(images)

    for ours in together_and_apart(to_numpy(x)):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_every_row_of_the_table_is_tested() -> None:
    met = {node.op for name in CASES for node in lifted(name)[1].program.nodes}
    assert set(OPERATORS) - met == set()


def test_nan_passes_through_relu_and_max_pool() -> None:
    x = jnp.asarray([[[[1.0, jnp.nan], [2.0, 0.0]]]])
    assert np.isnan(OPERATORS["aten.relu.default"](x)[0, 0, 0, 1])
    assert np.isnan(OPERATORS["aten.max_pool2d.default"](x, (2, 2))[0, 0, 0, 0])


def test_an_operator_has_one_row() -> None:
    with pytest.raises(ValueError, match=r"aten.relu.default has a row already"):
        register("aten.relu.default")(jnp.sign)


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Unfold(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.inner(torch.special.bessel_j0(x))).real


def test_unsupported_operators_are_all_listed_with_layer_and_line() -> None:
    with pytest.raises(BridgeError) as caught:
        lift(Unsupported().eval(), torch.ones(2, 3, 6, 6))
    message = str(caught.value)
    assert "aten.special_bessel_j0.default in the network's own forward (test_bridge_ops" in message
    assert "aten._fft_r2c.default" in message
    assert "bridge.ops.register" in message
