import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel import sharded
from kernel.covariance import Cross, Kernel
from kernel.errors import KernelError
from kernel.jacobian import Chunk
from kernel.model import dtype_of, rounding_of
from kernel.ntk import TF32_IMAGES, empirical_ntk, tf32_error
from kernel.options import PRECISIONS, Precision, Request
from kernel.plan import Sizes, cast, plan_query
from kernel.posterior import DETERMINED, posterior
from kernel.sharded import contract_on, mesh
from tests.kernel_cases import mlp, random_problem

no_gpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="refused without a GPU only")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="TF32 is arithmetic of GPUs")
def test_tf32_is_close_and_no_closer_than_its_eleven_bits(rng):
    model, images = mlp(64, 256, 3, rng), rng.normal(size=(TF32_IMAGES, 64))
    error = tf32_error(model, images, Request("trace"))
    # 2⁻¹¹ is the rounding of one factor; that of float32 is far below
    assert 1e-6 < error < 2**-10


@no_gpu
def test_tf32_is_refused_without_a_gpu(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    with pytest.raises(KernelError, match=r"TF32 is arithmetic of NVIDIA GPUs .* use float32"):
        tf32_error(model, images, Request())


@pytest.mark.parametrize("kind", ["rademacher", "full"])
def test_error_of_float32_against_float64(kind, rng):
    model, images = mlp(6, 5, 3, rng), rng.normal(size=(TF32_IMAGES + 6, 6))
    request = Request(kind, chunk=16)
    seeds = [np.random.default_rng(3) for _ in range(3)]
    error = tf32_error(model, images, request, seeds[0], precisions=("float32", "float64"))
    one, other = (
        empirical_ntk(
            model, images[:TF32_IMAGES], Request(kind, precision=precision), rng=seed
        ).values
        for seed, precision in zip(seeds[1:], ("float32", "float64"), strict=True)
    )
    expected = np.linalg.norm(one - other) / np.linalg.norm(other)
    assert 0 < error < 1e-6
    # roundings differ with the order of sums, their size does not
    assert expected / 4 < error < 4 * expected


def test_an_arithmetic_has_no_error_against_itself(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    assert tf32_error(model, images, Request(), precisions=("float32", "float32")) == 0


@pytest.mark.parametrize(("products", "word"), [("highest", "HIGHEST"), ("tensorfloat32", "HIGH")])
def test_products_are_compiled_for_a_gpu_in_what_was_asked_for(products, word):
    chunk = Chunk(jnp.ones((1, 2, 1, 3), "float32"), (), jnp.ones((1, 2), bool))
    with jax.default_matmul_precision(products):
        traced = contract_on.trace(mesh(1), (), 1, chunk, chunk)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert f"precision = [{word}, {word}]" in text


@no_gpu
def test_a_kernel_in_tf32_is_refused_without_a_gpu(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    with pytest.raises(KernelError, match="TF32 is arithmetic of NVIDIA GPUs"):
        empirical_ntk(model, images, Request(precision="tf32"))


def test_a_sketch_in_tf32_is_refused(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    with pytest.raises(KernelError, match="a sketch has none: use float32"):
        empirical_ntk(model, images, Request(precision="tf32", sketch=4), rng=rng)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_multiplies_in_the_precision_of_the_request(precision, rng, monkeypatch):
    seen, real = [], sharded.contract_on

    def spied(*arguments):
        flag = "jax_default_matmul_precision"
        seen.append(getattr(jax.config, flag))
        return real(*arguments)

    monkeypatch.setattr(sharded, "contract_on", spied)
    # as on a GPU; a processor multiplies in float32 whatever it is told
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(5, 3))
    kernel = empirical_ntk(model, images, Request("trace", precision=precision))
    assert set(seen) == {"tensorfloat32" if precision == "tf32" else "highest"}
    assert kernel.precision == precision


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="TF32 is arithmetic of GPUs")
def test_a_kernel_in_tf32_differs_from_float32_by_the_error_that_is_told(rng):
    model, images = mlp(64, 256, 3, rng), rng.normal(size=(TF32_IMAGES, 64))
    quick, exact = (
        empirical_ntk(model, images, Request("trace", precision=precision)).values
        for precision in ("tf32", "float32")
    )
    found = np.linalg.norm(quick - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(found, tf32_error(model, images, Request("trace")), rtol=0.1)


def test_arrays_of_tf32_are_of_float32(rng):
    model = mlp(3, 4, 2, rng)
    assert cast(model, "tf32").params["first.bias"].dtype == "float32"
    image = jax.ShapeDtypeStruct((3,), "float32")
    # features, a kernel between anchors and all, and a whole one
    for sizes, sketch in ((Sizes(4, 50), 5), (Sizes(4, 50, 9), None), (Sizes(4, 50), None)):
        quick, single, double = (
            plan_query(model, image, sizes, Request(precision=name, sketch=sketch)).kernel_bytes
            for name in ("tf32", "float32", "float64")
        )
        assert quick == single < double


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neighbouring_numbers_are_as_far_apart_as_is_said(precision):
    unit = rounding_of(precision)
    assert _rounded(np.array(1 + unit), precision) == 1 + unit
    assert _rounded(np.array(1 + unit / 2), precision) == 1


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_pivot_below_the_rounding_needs_jitter(precision):
    left = 5e-4  # of the variance of the second image, once the first is labelled
    near = np.sqrt(1 - left)
    values = np.array([[1.0, near, 0.0], [near, 1.0, 0.0], [0.0, 0.0, 1.0]])
    result = posterior(
        Kernel(values, precision), np.ones((2, 1)), np.zeros((2, 1)), np.zeros((1, 1))
    )
    jitter = 1e-3 if precision == "tf32" else 0.0
    assert result.jitter == jitter
    np.testing.assert_allclose(result.floor, DETERMINED[precision] + 2 * jitter)
    assert not result.determined.any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("form", ["dense", "cross"])
def test_duplicates_are_determined_whatever_tf32_made_of_them(form, twice, seed):
    """Products of numbers cut to eleven bits, the worst there is, and an exact diagonal."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 300)).astype("float32")
    if twice:  # two labels of one image
        rows[3] = rows[1]
    rows[5], rows[9] = rows[0], rows[3]
    cut = _rounded(rows, "tf32").astype("float64")
    values = cut @ cut.T
    given = Kernel(values, "tf32")
    if form == "cross":
        given = Cross(values[:6], np.square(rows, dtype="float64").sum(axis=1), "tf32")
    sample = None if form == "dense" else np.array([0, 1])
    targets, f_l, f_u = random_problem(4, 8, 2, rng)
    result = posterior(given, targets, f_l, f_u, sample=sample)
    assert result.jitter == (1e-3 if twice else 0)
    assert np.flatnonzero(result.determined).tolist() == [1, 5]


def _rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    """The leading bits that are multiplied, those after them cut off."""
    if precision != "tf32":
        return values.astype(dtype_of(precision))
    bits = np.asarray(values, "float32").view("uint32")
    return (bits & np.uint32(0xFFFFE000)).view("float32")
