"""Every row of the operator table against torch: values and gradients, in float32 and float64."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge.errors import BridgeError
from bridge.graph import Lifted, lift
from bridge.module import to_numpy
from bridge.ops import OPERATORS, register
from tests.bridge import operator_cases_layers, operator_cases_shapes, operator_cases_values
from tests.bridge.operator_case import Case, values_of

CASES = {
    **operator_cases_layers.CASES,
    **operator_cases_values.CASES,
    **operator_cases_shapes.CASES,
}

# torch says of one of its own paths that it copies.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")

# Functions of one image, without those that no axis matters to.
MIXING = frozenset(
    "roll-flat index-pairs prod-all std-all max-all argmax-all adaptive-max-places mean-all "
    "sum-all index-put-pairs size-arithmetic size-power batch-sized batch-aranges sizes size-ratio "
    "amax sum var view baddbmm".split()
)
# Layers that are also tried in bfloat16.
LAYERS = (
    "conv conv-groups conv-small-image transposed-stride linear addmm einsum attention "
    "attention-kept batch-norm layer-norm group-norm instance-norm rms-norm softmax "
    "max-pool-padding avg-pool-no-count adaptive-uneven adaptive-max-uneven nearest "
    "bilinear-factor bicubic relu6 hardswish gelu silu prelu mean var-mean std embedding"
).split()
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


@pytest.mark.parametrize("name", CASES)
def test_values_in_float32_are_those_of_torch(name: str) -> None:
    module, (program, tensors, _, _) = lifted(name)
    x = values_of(CASES[name], torch.float32)
    with torch.no_grad():
        theirs = to_numpy(module(x))
    arrays = {n: jnp.asarray(to_numpy(t)) for n, t in tensors.items()}
    ours = jax.jit(lambda images: program(arrays, {}, images))(to_numpy(x))
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(
        ours, theirs, rtol=2e-5, atol=2e-5 * max(1e-30, np.abs(theirs).max())
    )


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_in_float64_are_those_of_torch(name: str) -> None:
    module, (program, tensors, trainable, _) = lifted(name)
    dtype = torch.float64
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

    # torch's own float64 gradient of it is 1/6 in float32
    rtol = 1e-7 if "hardsigmoid" in name else 1e-11
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


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16(name: str) -> None:
    """Torch and JAX round at other places: each is compared with float32 on the same values."""
    module, (program, tensors, _, _) = lifted(name)
    x = values_of(CASES[name], torch.bfloat16)
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    arrays = {n: jnp.asarray(to_numpy(t)) for n, t in half.items()}
    ours = jax.jit(lambda arrays, x: program(arrays, {}, x))(arrays, jnp.asarray(to_numpy(x)))
    parameters = {n: half[n].float() for n, _ in module.named_parameters()}
    with torch.no_grad():
        exact = to_numpy(torch.func.functional_call(module, parameters, (x.float(),)))
    assert ours.dtype == jnp.bfloat16
    error = np.abs(np.asarray(ours, np.float32) - exact)
    assert error.max() <= 0.03 * max(1.0, np.abs(exact).max())


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
        return torch.fft.fft(self.inner(torch.special.bessel_j0(x)), dim=1, norm="ortho").real


def test_unsupported_operators_are_all_listed_with_layer_line_and_example() -> None:
    with pytest.raises(BridgeError) as caught:
        lift(Unsupported().eval(), torch.ones(2, 3, 6, 6))
    message = str(caught.value)
    assert "aten.special_bessel_j0.default in the network's own forward (test_bridge_ops" in message
    assert "aten._fft_r2c.default in" in message
    assert "the first of them:" in message
    example = textwrap.dedent(message.split("the first of them:")[1])
    assert "# aten::special_bessel_j0(Tensor self) -> Tensor" in example
    compile(example.replace("jnp. ...", "jnp.x"), "example", "exec")


class Exponent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._fft_c2r(x.to(torch.complex64), [1], 0, 4)


def test_the_example_has_every_parameter_of_the_schema() -> None:
    with pytest.raises(BridgeError) as caught:
        lift(Exponent().eval(), torch.ones(2, 3))
    assert '@register("aten._fft_c2r.default")\n' in str(caught.value)
    assert "def fft_c2r(x, dim, normalization, last_dim_size):" in str(caught.value)


def test_a_row_may_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "aten.special_bessel_j0.default", None)  # undone at the end
    del OPERATORS["aten.special_bessel_j0.default"]
    register("aten.special_bessel_j0.default")(jnp.cos)
    with pytest.raises(BridgeError) as caught:
        lift(Unsupported().eval(), torch.ones(2, 3, 6, 6))
    assert "aten.special_bessel_j0" not in str(caught.value)


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[x > 0] = x[x > 0]
        return y


def test_selecting_by_a_mask_is_refused() -> None:
    with pytest.raises(BridgeError, match=r"y\[x > 0\] = x\[x > 0\]\): a mask selects as many"):
        lift(Masked().eval(), torch.ones(2, 3))
