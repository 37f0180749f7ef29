"""Every row of the operator table against torch: values and gradients, in float32 and float64."""

import functools
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array
from torch import Tensor, nn

from bridge.errors import BridgeError
from bridge.graph import Lifted, lift
from bridge.module import one_dtype, to_numpy
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


class Found(NamedTuple):
    """What a row gives, by torch or by one compiled function of the lifted program.

    Rows that treat images apart are given five of them, where the example has two.

    Attributes:
        float32: the values; of a row that treats images apart, one image at a time under vmap.
        float64: the values, and their gradients by the images and by each parameter.
        bfloat16: of a layer, the values of arrays rounded to bfloat16.
    """

    float32: Any
    float64: Any
    bfloat16: Any = ()


def images_of(name: str, dtype: torch.dtype) -> Tensor:
    x = values_of(CASES[name], dtype)
    return torch.cat([x, x, x])[:5] if name in ROWWISE else x


def by_torch(name: str) -> Found:
    """Torch's side; its bfloat16 values are those of float32 on the same rounded arrays."""
    module, (_, tensors, trainable, _) = lifted(name)
    x = images_of(name, torch.float64).requires_grad_()
    leaves = {n: tensors[n].detach().double().requires_grad_() for n in sorted(trainable)}
    with one_dtype(torch.float64):
        exact = torch.func.functional_call(module, leaves, (x,))
    cotangent = torch.cos(torch.arange(exact.numel(), dtype=exact.dtype)).reshape(exact.shape)
    gradients = torch.autograd.grad(exact, [x, *leaves.values()], cotangent)
    halves = ()
    with torch.no_grad():
        if name in LAYERS:
            parameters = {n: tensors[n].bfloat16().float() for n in leaves}
            rounded = images_of(name, torch.bfloat16).float()
            halves = (torch.func.functional_call(module, parameters, (rounded,)),)
        with one_dtype(torch.float32):
            plain = module(images_of(name, torch.float32))
    return jax.tree.map(to_numpy, Found(plain, (exact, *gradients), halves))


def by_jax(name: str) -> Found:
    """The same of the lifted program, compiled as a whole."""
    _, (program, tensors, trainable, _) = lifted(name)

    def given(dtype: torch.dtype) -> tuple[dict[str, np.ndarray], np.ndarray]:
        cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
        return {n: to_numpy(t) for n, t in cast.items()}, to_numpy(images_of(name, dtype))

    def float32(arrays: dict[str, Array], x: Array) -> Array:
        if name in ROWWISE:
            return jax.vmap(lambda image: program(arrays, {}, image[None])[0])(x)
        return program(arrays, {}, x)

    def float64(arrays: dict[str, Array], x: Array) -> tuple[Array, ...]:
        params = {n: arrays[n] for n in sorted(trainable)}
        exact, pull = jax.vjp(lambda p, x: program(p, arrays, x), params, x)
        cotangent = jnp.cos(jnp.arange(exact.size, dtype=exact.dtype)).reshape(exact.shape)
        by_params, by_x = pull(cotangent)
        return (exact, by_x, *by_params.values())

    @jax.jit
    def everything(single: Any, double: Any, half: Any) -> Found:
        halves = (program(half[0], {}, half[1]),) if half else ()
        return Found(float32(*single), float64(*double), halves)

    half = given(torch.bfloat16) if name in LAYERS else None
    found = everything(given(torch.float32), given(torch.float64), half)
    return jax.tree.map(np.asarray, found)


def close(ours: np.ndarray, theirs: np.ndarray, rtol: float, told: str) -> None:
    """Within rtol of each value, or of the largest."""
    atol = rtol * max(1e-30, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=told)


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_torchs_in_values_and_gradients_in_any_batch_and_dtype(name: str) -> None:
    ours, theirs = by_jax(name), by_torch(name)
    assert ours.float32.dtype == theirs.float32.dtype
    close(ours.float32, theirs.float32, 2e-5, "float32")

    assert ours.float64[0].dtype == theirs.float64[0].dtype
    # torch's own float64 gradient of it is 1/6 in float32
    rtol = 1e-7 if "hardsigmoid" in name else 1e-11
    told = ("values in float64", "gradients of the images", *sorted(lifted(name)[1].trainable))
    for what, got, want in zip(told, ours.float64, theirs.float64, strict=True):
        close(got, want, rtol, what)

    for got, want in zip(ours.bfloat16, theirs.bfloat16, strict=True):  # each rounds elsewhere
        assert got.dtype == jnp.bfloat16
        error = np.abs(got.astype(np.float32) - want)
        assert error.max() <= 0.03 * max(1.0, np.abs(want).max()), "bfloat16"


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
    assert "aten.special_bessel_j0.default in the network's own forward (test_ops" in message
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
    with pytest.raises(
        BridgeError, match=r"y\[x > 0\] = x\[x > 0\]\): the number of values that a mask"
    ):
        lift(Masked().eval(), torch.ones(2, 3))
