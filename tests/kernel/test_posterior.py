import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.covariance import Kernel
from kernel.errors import KernelError, SingularKernelError
from kernel.posterior import posterior
from tests.kernel_cases import full_kernel, one_hot, scalar_kernel


def problem(labelled, candidates, classes, rng):
    targets = one_hot(rng.integers(classes, size=labelled), classes)
    f_l = rng.normal(size=(labelled, classes))
    f_u = rng.normal(size=(candidates, classes))
    return targets, f_l, f_u


def test_one_label_by_hand():
    # K_LL = 4, K_LU = 2, K_UU = 3, residual 1 − 0.5: S = 3 − 2·2/4, D = 2·0.5/4
    kernel = Kernel(np.array([[4.0, 2.0], [2.0, 3.0]]), "float64")
    result = posterior(kernel, np.array([[1.0]]), np.array([[0.5]]), np.array([[0.1]]))
    assert result.covariance.dense().item() == 2.0
    assert result.variance.item() == 2.0
    assert float(result.drift[0, 0]) == 0.25
    assert float(result.predictions[0, 0]) == 0.35
    assert result.jitter == 0.0


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 2), st.integers(0, 99))
def test_against_the_plain_inverse(labelled, candidates, classes, ridge, seed):
    rng = np.random.default_rng(seed)
    targets, f_l, f_u = problem(labelled, candidates, classes, rng)
    for kernel in (
        scalar_kernel(labelled + candidates, rng),
        full_kernel(labelled + candidates, classes, rng),
    ):
        rows = (labelled + candidates) * (classes if kernel.values.ndim == 4 else 1)
        split = labelled * rows // (labelled + candidates)
        k = kernel.values.reshape(rows, rows)
        inverse = np.linalg.inv(k[:split, :split] + ridge * np.eye(split))
        s = k[split:, split:] - k[split:, :split] @ inverse @ k[:split, split:]
        residual = (targets - f_l).reshape(split, -1)
        d = (k[split:, :split] @ inverse @ residual).reshape(f_u.shape)
        result = posterior(kernel, targets, f_l, f_u, ridge=ridge)
        np.testing.assert_allclose(result.covariance.dense(), s, atol=1e-9 * k.max())
        np.testing.assert_allclose(result.drift, d, atol=1e-9 * max(1.0, np.abs(d).max()))
        assert result.ridge == ridge


def test_duplicates_of_labelled_images_are_determined(rng):
    features = rng.normal(size=(8, 20))
    features[5] = features[1]  # candidate 1 is labelled image 1 again
    targets, f_l, f_u = problem(4, 4, 3, rng)
    result = posterior(Kernel(features @ features.T, "float64"), targets, f_l, f_u)
    assert np.asarray(result.determined).tolist() == [False, True, False, False]
    single = Kernel((features.astype("f4") @ features.astype("f4").T).astype("f8"), "float32")
    assert np.asarray(posterior(single, targets, f_l, f_u).determined).tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_duplicates_within_the_labelled_set_need_jitter(rng):
    features = rng.normal(size=(6, 20))
    features[2] = features[0]
    features[5] = features[0]
    targets, f_l, f_u = problem(3, 3, 2, rng)
    targets[2], f_l[2] = targets[0], f_l[0]
    result = posterior(Kernel(features @ features.T, "float64"), targets, f_l, f_u)
    assert result.jitter == 1e-8
    assert result.ridge == pytest.approx(1e-8 * (features[:3] ** 2).sum() / 3)
    assert np.asarray(result.determined).tolist() == [False, False, True]
    # the same answer as without the repeated label
    once = Kernel(np.delete(np.delete(features @ features.T, 2, 0), 2, 1), "float64")
    expected = posterior(once, targets[:2], f_l[:2], f_u)
    np.testing.assert_allclose(result.drift, expected.drift, atol=1e-6)
    np.testing.assert_allclose(
        result.covariance.dense(), expected.covariance.dense(), atol=1e-6 * features.size
    )


def test_an_indefinite_kernel_is_refused_and_duplicates_are_named():
    values = np.eye(4)
    values[0, 2] = values[2, 0] = 1.1
    targets, f_l, f_u = np.ones((3, 1)), np.zeros((3, 1)), np.zeros((1, 1))
    with pytest.raises(SingularKernelError, match=r"duplicates of each other: 40 and 42\."):
        posterior(Kernel(values, "float64"), targets, f_l, f_u, identifiers=[40, 41, 42])


def test_a_zero_kernel_is_refused():
    with pytest.raises(SingularKernelError, match="is zero"):
        posterior(
            Kernel(np.zeros((2, 2)), "float64"), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))
        )


def test_bad_requests(rng):
    targets, f_l, f_u = problem(3, 2, 2, rng)
    kernel = scalar_kernel(5, rng)
    with pytest.raises(KernelError, match="labelled set is empty"):
        posterior(scalar_kernel(2, rng), targets[:0], f_l[:0], f_u)
    with pytest.raises(KernelError, match="ridge must be 0 or more"):
        posterior(kernel, targets, f_l, f_u, ridge=-1.0)
    with pytest.raises(KernelError, match=r"shape \(4, 4\).*need \(5, 5\)"):
        posterior(scalar_kernel(4, rng), targets, f_l, f_u)
    with pytest.raises(KernelError, match="do not fit"):
        posterior(kernel, targets, f_l[:, :1], f_u)
    f_u[0, 0] = np.inf
    with pytest.raises(KernelError, match="logits hold entries that are not finite"):
        posterior(kernel, targets, f_l, f_u)
