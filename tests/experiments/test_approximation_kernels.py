"""Scalar kernels contracted from the full one: distances, spectra and kernel regression."""

import numpy as np
import pytest

from experiments.approximation.kernels import (
    contract,
    coupling,
    distances,
    flat,
    regress,
    spectrum,
)
from kernel.errors import KernelError, SingularKernelError
from kernel.model import directions

KINDS = ("single", "sum", "trace", "rademacher")


def jacobian(rng, images=6, classes=3, parameters=40):
    return rng.normal(size=(images, classes, parameters))


def full_of(rows, columns=None):
    return np.einsum("icp,jdp->icjd", rows, rows if columns is None else columns)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_contracted_from_full_is_the_kernel_of_its_projections(kind, rng):
    rows, others = jacobian(rng), jacobian(rng, images=4)
    looked = directions(kind, 3, 5, np.random.default_rng(1))
    found = contract(full_of(rows, others), looked)
    expected = np.zeros((6, 4))
    for vector in looked.projections:
        left, right = (np.einsum("c,icp->ip", vector, one) for one in (rows, others))
        expected += left @ right.T / {"single": 1, "rademacher": 15}.get(kind, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_distances_are_of_the_kronecker_product_and_least_for_trace(rng):
    full = full_of(jacobian(rng), jacobian(rng, images=4))
    kernels = {kind: contract(full, directions(kind, 3, 4, rng)) for kind in KINDS}
    kernels["near trace"] = kernels["trace"] + 1e-3 * rng.normal(size=(6, 4))
    found = distances(full, kernels)
    for name, kernel in kernels.items():
        expected = np.linalg.norm(np.kron(kernel, np.eye(3)) - flat(full))
        assert found[name] == pytest.approx(expected / np.linalg.norm(full), rel=1e-10)
    assert min(found, key=lambda name: found[name]) == "trace"
    assert coupling(full) < found["trace"]


def test_a_kronecker_product_is_at_no_distance_and_regresses_alike(rng):
    """With any ridge: K ⊗ I and K are the same regression, if they have the same scale."""
    rows, others = rng.normal(size=(6, 20)), rng.normal(size=(4, 20))
    kernel, cross = rows @ rows.T, others @ rows.T
    full = np.einsum("ij,cd->icjd", kernel, np.eye(3))
    full_cross = np.einsum("ij,cd->icjd", cross, np.eye(3))
    assert distances(full, {"k": kernel})["k"] == 0
    targets = rng.normal(size=(2, 6, 3))
    for ridge in (0.0, 0.7):
        own = regress(kernel, cross, targets, ridge, "float64", range(6))
        other = regress(flat(full), flat(full_cross), targets, ridge, "float64", range(6))
        assert own.jitter == other.jitter == 0
        np.testing.assert_allclose(own.values, other.values, rtol=1e-9)
        for values, one in zip(own.values, targets, strict=True):
            expected = cross @ np.linalg.solve(kernel + ridge * np.eye(6), one)
            np.testing.assert_allclose(values, expected, rtol=1e-9)
        scaled = regress(3 * kernel, 3 * cross, targets, ridge, "float64", range(6)).values
        # of another scale it is the same regression without a ridge only
        assert np.allclose(scaled, own.values, rtol=1e-9) == (ridge == 0)


def test_regression_with_the_full_kernel_couples_the_classes(rng):
    rows, others = jacobian(rng), jacobian(rng, images=4)
    targets = rng.normal(size=(1, 6, 3))
    matrix = rows.reshape(18, 40) @ rows.reshape(18, 40).T
    right = matrix + 0.3 * np.eye(18)
    expected = others.reshape(12, 40) @ rows.reshape(18, 40).T
    expected = (expected @ np.linalg.solve(right, targets.reshape(18))).reshape(4, 3)
    found = regress(
        flat(full_of(rows)), flat(full_of(others, rows)), targets, 0.3, "float64", range(6)
    )
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-9)


def test_the_spectrum_and_what_rounding_leaves_of_it(rng):
    rows = rng.normal(size=(5, 9))
    ends = spectrum(rows @ rows.T, "float64")
    values = np.linalg.svd(rows, compute_uv=False) ** 2
    np.testing.assert_allclose(ends[:2], [values[0], values[-1]], rtol=1e-9)
    assert ends.condition == pytest.approx(np.linalg.cond(rows) ** 2)
    few = rng.normal(size=(5, 3))
    assert spectrum(few @ few.T, "float64").condition == np.inf
    small = np.diag([1.0, 1e-9])
    assert spectrum(small, "float64").condition == pytest.approx(1e9)
    assert spectrum(small, "float32").condition == np.inf


def closed_form(last, gram, hidden):
    """Θ of two linear layers from V, XXᵀ and the hidden units' XUᵀUXᵀ."""
    classes = len(last)
    return np.einsum("ij,cd->icjd", hidden, np.eye(classes)) + np.einsum(
        "ij,cd->icjd", gram, last @ last.T
    )


def test_of_two_linear_layers_the_distance_is_known_and_falls_as_the_root_of_the_width(rng):
    """Θ − K ⊗ I is (VVᵀ − m I) ⊗ XXᵀ with m = 1ᵀVVᵀ1/C for `sum`."""
    images, classes, widths = rng.normal(size=(7, 5)), 4, np.array([16, 64, 256, 1024])
    gram = images @ images.T
    errors = np.zeros((40, len(widths)))
    for repeat, number in np.ndindex(errors.shape):
        width = widths[number]
        first, last = rng.normal(size=(5, width)) / 5**0.5, rng.normal(size=(classes, width))
        full = closed_form(last, gram, images @ first @ first.T @ images.T)
        kernel = contract(full, directions("sum", classes))
        errors[repeat, number] = distances(full, {"sum": kernel})["sum"]
        outer = last @ last.T
        away = np.linalg.norm(outer - outer.sum() / classes * np.eye(classes))
        expected = away * np.linalg.norm(gram) / np.linalg.norm(full)
        assert errors[repeat, number] == pytest.approx(expected, rel=1e-9)
    slope, _ = np.polyfit(np.log(widths), np.log(errors.mean(axis=0)), 1)
    assert slope == pytest.approx(-0.5, abs=0.06)


def test_kernels_that_do_not_belong_together_are_refused(rng):
    full = full_of(jacobian(rng))
    with pytest.raises(KernelError, match=r"kernel sum of shape \(5, 5\).*same images"):
        distances(full, {"sum": np.eye(5)})
    with pytest.raises(KernelError, match="of the kind full"):
        contract(full, directions("full", 3))
    with pytest.raises(KernelError, match=r"3 classes.*shape \(1, 4\)"):
        contract(full, directions("sum", 4))
    with pytest.raises(KernelError, match="killed every unit"):
        coupling(0 * full)
    with pytest.raises(SingularKernelError, match="not positive definite"):
        regress(-np.eye(2) + 2, np.eye(2), np.zeros((1, 2, 3)), 0.0, "float64", [4, 7])
