from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel.errors import KernelError
from kernel.infinite import nt
from kernel.model import Model
from kernel.ntk import empirical_ntk
from kernel.options import KINDS, PROBES, Request
from kernel.plan import cast, plan_kernel, problem_of
from tests.kernel_cases import linear_model, mlp, per_example_gradients

SHAPES = [(1, 3, 4, 2), (7, 2, 3, 3), (12, 5, 8, 4)]  # examples, features, hidden, classes


def seeded():
    """The generator of every kernel here: its first draw is what `rademacher` projects on."""
    return np.random.default_rng(7)


def contract(theta, kind):
    """Reduce the whole kernel (examples, examples, classes, classes) by definition."""
    classes = theta.shape[-1]
    probes = seeded().choice((-1.0, 1.0), size=(PROBES, classes))
    return {
        "rademacher": np.einsum("pc,ijcd,pd->ij", probes, theta, probes) / (PROBES * classes),
        "single": theta[..., 0, 0],
        "sum": theta.sum(axis=(-1, -2)) / classes,
        "trace": np.trace(theta, axis1=-2, axis2=-1) / classes,
        "full": theta.transpose(0, 2, 1, 3),
    }[kind]


def test_linear_model_has_the_gram_matrix_of_its_inputs(rng):
    images = rng.normal(size=(6, 4))
    model = linear_model(4, 3, rng)
    for kind in ("single", "sum", "trace"):
        kernel = empirical_ntk(model, images, Request(kind, precision="float64"))
        np.testing.assert_allclose(kernel.values, images @ images.T, rtol=1e-12)
    full = empirical_ntk(model, images, Request("full", precision="float64")).values
    expected = np.einsum("ij,cd->icjd", images @ images.T, np.eye(3))
    np.testing.assert_allclose(full, expected, rtol=1e-12)


@cache
def of_neural_tangents(shape):
    """A model, images and Θ (examples, examples, classes, classes)."""
    examples, features, hidden, classes = shape
    rng = np.random.default_rng(0)
    model = mlp(features, hidden, classes, rng)
    images = rng.normal(size=(examples, features))
    theta = nt.empirical_ntk_fn(
        lambda params, x: model.function(params, model.frozen, x), trace_axes=(), implementation=1
    )(jnp.asarray(images), None, model.params)
    return model, images, theta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kinds_against_neural_tangents(kind, shape):
    model, images, theta = of_neural_tangents(shape)
    kernel = empirical_ntk(model, images, Request(kind, precision="float64", chunk=5), rng=seeded())
    np.testing.assert_allclose(kernel.values, contract(np.asarray(theta), kind), rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_to_chunks_groups_and_order(kind, rng):
    model = mlp(5, 8, 3, rng)
    images = rng.normal(size=(11, 5))
    settings = {"kind": kind, "precision": "float64"}
    reference = empirical_ntk(model, images, Request(chunk=11, **settings), rng=seeded()).values
    image = jax.ShapeDtypeStruct((5,), "float64")
    # the arrays have 8, 40, 3 and 24 entries: whole, one at a time, in parts
    for chunk, columns in ((1, 75), (4, 40), (64, 7)):
        request = Request(kind, precision="float64", chunk=chunk)
        problem = problem_of(model, image, 11, 11, request, seeded())
        width = len(problem.directions.projections)
        kept = (11 + 2 * min(chunk, 11)) * 8 * columns * (width if kind == "full" else 1)
        budget = problem.result_bytes + problem.chunk_bytes(min(chunk, 11), width) + kept
        memory = {"chunk": chunk, "memory_gib": budget / 2**30}
        own = Request(**settings, **memory)
        assert len(plan_kernel(model, image, 11, own, seeded()).passes) > (columns < 75)
        split = empirical_ntk(model, images, own, rng=seeded())
        np.testing.assert_allclose(split.values, reference, rtol=1e-12)
    order = rng.permutation(11)
    permuted = empirical_ntk(model, images[order], Request(**settings), rng=seeded()).values
    expected = reference[order][:, order] if kind != "full" else reference[order][:, :, order]
    np.testing.assert_allclose(permuted, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_and_positive_semi_definite(kind, rng):
    values = empirical_ntk(
        mlp(4, 3, 2, rng), rng.normal(size=(20, 4)), Request(kind), rng=rng
    ).values
    rows = values.reshape(int(np.sqrt(values.size)), -1)
    np.testing.assert_allclose(rows, rows.T, rtol=1e-6, atol=1e-5)
    assert np.linalg.eigvalsh(rows).min() > -1e-4 * np.trace(rows) / len(rows)


def test_float32_is_close_to_float64(rng):
    model = mlp(6, 32, 3, rng)
    images = rng.normal(size=(9, 6))
    exact = empirical_ntk(model, images, Request("trace", precision="float64"))
    quick = empirical_ntk(model, images, Request("trace", precision="float32"))
    assert quick.precision == "float32"
    assert quick.values.dtype == np.float64
    np.testing.assert_allclose(quick.values, exact.values, rtol=1e-4, atol=1e-5)


def test_frozen_arrays_are_not_differentiated(rng):
    model = mlp(3, 4, 2, rng)
    gradients = per_example_gradients(model, jnp.ones((2, 3)), jnp.ones(2))
    assert gradients.shape == (2, sum(leaf.size for leaf in jax.tree.leaves(model.params)))


def test_compiles_once_for_new_weights_and_other_numbers_of_images(rng):
    traces, after = [], []

    def counted(params, frozen, images):
        traces.append(images.shape)
        return images @ params["weight"].T

    for examples in (9, 14, 30):
        model = Model(counted, {"weight": jnp.asarray(rng.normal(size=(2, 3)))}, {})
        empirical_ntk(model, rng.normal(size=(examples, 3)), Request(chunk=8))
        after.append(len(traces))
    assert after == after[:1] * 3


def test_progress_ends_where_the_plan_said(rng):
    seen = []
    empirical_ntk(
        mlp(3, 4, 2, rng),
        rng.normal(size=(10, 3)),
        Request("trace", chunk=4),
        progress=lambda *a: seen.append(a),
    )
    done, totals = np.array(seen).T
    assert len(set(totals)) == 1
    assert (np.diff(done) > 0).all()
    assert done[-1] == pytest.approx(totals[-1])


def test_cast_keeps_integers(rng):
    model = Model(lambda p, f, x: x, {"a": jnp.ones(2)}, {"steps": jnp.asarray(3)})
    single = cast(model, "float32")
    assert single.params["a"].dtype == jnp.float32
    assert single.frozen["steps"].dtype == jnp.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "singel"}, "unknown kernel kind 'singel'"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"memory_gib": 2**-30}, "needs at least .* GiB, of which .* GiB are given: give"),
        ({"images": np.zeros((0, 3))}, "at least one image"),
        ({"kind": "rademacher"}, "the kind rademacher is random: give it a generator"),
        ({"kind": "rademacher", "probes": 0}, "probes must be at least 1"),
        ({"sketch": 5}, "a sketch is random: give it a generator"),
        ({"sketch": 0, "rng": np.random.default_rng(0)}, "a sketch of 0 dimensions was asked for"),
        ({"sketch": 26, "rng": np.random.default_rng(0)}, "the network has 26 parameters"),
        (
            {"sketch": 5, "rng": np.random.default_rng(0), "memory_gib": 1e-8},
            r"of 2 images needs .* GiB and 1e-08 GiB are given",
        ),
    ],
)
def test_bad_requests(change, message, rng, unchecked_types):
    options = {"images": np.ones((2, 3)), "rng": None, **change}
    images, own = options.pop("images"), options.pop("rng")
    with pytest.raises(KernelError, match=message):
        empirical_ntk(mlp(3, 4, 2, rng), images, Request(**options), rng=own)


def test_not_finite_gradients_name_the_images(rng):
    images = rng.normal(size=(8, 3))
    images[5, 1] = np.nan
    with pytest.raises(KernelError, match=r"images \[5\]"):
        empirical_ntk(mlp(3, 4, 2, rng), images, Request(chunk=3))


def test_a_network_with_nothing_to_train_is_refused():
    with pytest.raises(KernelError, match="no trainable parameter"):
        empirical_ntk(Model(lambda p, f, x: x, {}, {}), np.ones((2, 3)))
