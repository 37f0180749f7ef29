"""Products by tiles are the plain ones, into whatever array they are added."""

import numpy as np
import pytest

from kernel import linalg

SIZES = [(1, 3), (5, 1), (37, 20), (64, 9)]


@pytest.fixture(params=[1, 7, 512])
def tiles(request, monkeypatch):
    monkeypatch.setattr(linalg, "TILE", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("count", "columns"), SIZES)
def test_gram_and_products_are_added(count, columns, rng):
    rows, others = rng.normal(size=(count, columns)), rng.normal(size=(11, columns))
    values = rng.normal(size=(count, count))
    expected = values + rows @ rows.T
    linalg.add_gram(values, rows)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    wider = np.zeros((count, 15))
    linalg.add_products(wider[:, 2:13], rows, others)
    np.testing.assert_allclose(wider[:, 2:13], rows @ others.T, atol=1e-12)
    assert not wider[:, :2].any()
    assert not wider[:, 13:].any()


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("count", "inner"), SIZES)
def test_triangular_systems_and_what_is_taken_away(count, inner, rng):
    factor = np.tril(rng.normal(size=(inner, inner))) + 3 * np.eye(inner)
    right = rng.normal(size=(inner, count))
    solved = linalg._solve_columns(factor, right)
    np.testing.assert_allclose(factor @ solved, right, atol=1e-10)
    matrix = rng.normal(size=(count, count))
    matrix += matrix.T
    expected = matrix - solved.T @ solved
    linalg.add_gram(matrix, solved.T, subtract=True)
    np.testing.assert_allclose(matrix, expected, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_array_equal(matrix, matrix.T)


def test_products_keep_the_dtype_of_their_rows(rng):
    rows = rng.normal(size=(6, 4)).astype(np.float32)
    values = np.zeros((6, 6))
    linalg.add_gram(values, rows)
    np.testing.assert_allclose(values, rows @ rows.T, rtol=1e-5)
    np.testing.assert_array_equal(values, values.astype(np.float32))


def test_a_failure_in_a_tile_is_not_swallowed():
    values = np.zeros((2, 2))
    values.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        linalg.add_gram(values, np.ones((2, 3)))
