import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel.devices import mesh
from kernel.errors import KernelError
from kernel.ntk import empirical_ntk
from kernel.passes import Chunk
from kernel.problem import Request
from kernel.programs import contract_on
from kernel.tf32 import BLOCK, arithmetic, product_error
from tests.kernel_cases import mlp

no_gpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="refused without a GPU only")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="TF32 is arithmetic of GPUs")
def test_tf32_is_close_and_no_closer_than_its_eleven_bits(rng):
    model, images = mlp(64, 256, 3, rng), rng.normal(size=(BLOCK, 64))
    error = product_error(model, images, Request("trace"))
    # 2⁻¹¹ is the rounding of one factor; that of float32 is far below
    assert 1e-6 < error < 2**-10


@no_gpu
def test_tf32_is_refused_without_a_gpu(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    with pytest.raises(KernelError, match=r"TF32 is arithmetic of NVIDIA GPUs .* use float32"):
        product_error(model, images, Request())


@pytest.mark.parametrize("kind", ["rademacher", "full"])
def test_error_of_float32_against_float64(kind, rng):
    model, images = mlp(6, 5, 3, rng), rng.normal(size=(BLOCK + 6, 6))
    request = Request(kind, chunk=16)
    seeds = [np.random.default_rng(3) for _ in range(3)]
    error = product_error(model, images, request, seeds[0], quick="float32", exact="float64")
    one, other = (
        empirical_ntk(model, images[:BLOCK], kind, rng=seed, precision=precision).values
        for seed, precision in zip(seeds[1:], ("float32", "float64"), strict=True)
    )
    expected = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert 0 < error < 1e-6
    # roundings differ with the order of sums, their size does not
    assert expected / 4 < error < 4 * expected


def test_an_arithmetic_has_no_error_against_itself(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    assert product_error(model, images, Request(), quick="float32", exact="float32") == 0


def test_unknown_arithmetic():
    with pytest.raises(KernelError, match="unknown arithmetic 'bfloat16'; known: float32"):
        arithmetic("bfloat16")


@pytest.mark.parametrize(("products", "word"), [("highest", "HIGHEST"), ("tensorfloat32", "HIGH")])
def test_products_are_compiled_for_a_gpu_in_what_was_asked_for(products, word):
    chunk = Chunk(jnp.ones((1, 2, 1, 3), "float32"), (), jnp.ones((1, 2), bool))
    with jax.default_matmul_precision(products):
        traced = contract_on.trace(mesh(1), (), 1, chunk, chunk)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"precision = [{word}, {word}]" in text
