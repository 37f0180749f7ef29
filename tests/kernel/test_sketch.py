"""Sketched kernels: the contraction they are, right on average, and no further off than 1/√k."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernel.jacobian import fold, random_signs
from kernel.model import directions
from kernel.ntk import empirical_ntk
from kernel.options import KINDS, Request
from tests.kernel_cases import mlp, per_example_gradients

CLASSES = 3


def problem(seed: int = 0):
    rng = np.random.default_rng(seed)
    return mlp(6, 20, CLASSES, rng), rng.normal(size=(9, 6))


@pytest.mark.parametrize(("columns", "buckets"), [(10, 3), (12, 4), (7, 1), (9, 8)])
def test_an_entry_goes_with_its_sign_to_its_bucket(columns, buckets, rng):
    rows, signs = rng.normal(size=(4, columns)), random_signs(columns, buckets, rng)
    assert set(np.unique(signs)) <= {-1, 1}
    expected = np.zeros((4, buckets))
    for i in range(columns):
        expected[:, i % buckets] += signs[i] * rows[:, i]
    np.testing.assert_allclose(fold(jnp.asarray(rows), jnp.asarray(signs), buckets), expected)


def test_the_kernel_is_the_contraction_of_sketched_gradients():
    model, images = problem()
    direction = jnp.asarray([1.0, 0.0, 0.0])
    jacobian = np.asarray(per_example_gradients(model, jnp.asarray(images), direction))
    signs = random_signs(jacobian.shape[1], 40, np.random.default_rng(5))
    folded = np.asarray(fold(jnp.asarray(jacobian), jnp.asarray(signs), 40))
    kernel = empirical_ntk(
        model,
        images,
        Request(sketch=40, precision="float64", chunk=4),
        rng=np.random.default_rng(5),
    )
    np.testing.assert_allclose(kernel.values, folded @ folded.T, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_positive_semi_definite_and_the_same_whatever_the_chunk_and_the_order(kind):
    model, images = problem()

    def sketched(x, chunk):
        rng = np.random.default_rng(3)
        return empirical_ntk(
            model, x, Request(kind, sketch=50, precision="float64", chunk=chunk), rng=rng
        ).values

    reference = sketched(images, 9)
    np.testing.assert_allclose(sketched(images, 2), reference, rtol=1e-11, atol=1e-12)
    rows = reference.reshape(int(np.sqrt(reference.size)), -1)
    assert np.linalg.eigvalsh(rows).min() > -1e-10 * np.trace(rows)
    order = np.random.default_rng(0).permutation(9)
    expected = reference[order][:, order] if kind != "full" else reference[order][:, :, order]
    np.testing.assert_allclose(sketched(images[order], 9), expected, rtol=1e-11, atol=1e-12)


def test_right_on_average_with_an_error_of_one_over_the_root_of_its_dimensions():
    """Of the Jacobian's own rows, of which a sketched kernel is made (above)."""
    model, images = problem()
    jacobian = jnp.asarray(per_example_gradients(model, images, jnp.eye(1, CLASSES)[0]))
    exact = np.asarray(jacobian @ jacobian.T)
    lengths = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    draws = 200
    for buckets in (16, 64):
        errors = np.empty((draws, *exact.shape))
        for seed in range(draws):
            signs = random_signs(jacobian.shape[1], buckets, np.random.default_rng(seed))
            rows = np.asarray(fold(jacobian, jnp.asarray(signs), buckets))
            errors[seed] = rows @ rows.T - exact
        spread = errors.std(axis=0) / lengths
        # Var ≤ (|g|²|g'|² + (g·g')²) / k, of which the share of colliding entries is left.
        assert spread.max() < np.sqrt(2 / buckets) * 1.2
        assert np.sqrt(np.mean(spread**2)) > 0.4 / np.sqrt(buckets)
        # each mean is within five standard errors of the exact value
        assert np.all(np.abs(errors.mean(axis=0)) < 5 * errors.std(axis=0) / np.sqrt(draws) + 1e-12)


def test_rademacher_is_right_on_average_for_trace():
    """By contractions of the full kernel, which kernels of a kind are (`test_kernel_ntk`)."""
    model, images = problem()
    full = empirical_ntk(model, images, Request("full", precision="float64")).values
    exact = np.einsum("icjc->ij", full) / full.shape[1]
    seeds = (np.random.default_rng(seed) for seed in range(200))
    kinds = [directions("rademacher", CLASSES, 2, rng) for rng in seeds]
    draws = np.stack(
        [k.scale * np.einsum("vc,icjd,vd->ij", k.projections, full, k.projections) for k in kinds]
    )
    error = np.abs(draws.mean(axis=0) - exact)
    assert np.all(error < 5 * draws.std(axis=0) / np.sqrt(200) + 1e-12)
    assert (draws.std(axis=0) > 1e-3 * np.abs(exact)).any()
