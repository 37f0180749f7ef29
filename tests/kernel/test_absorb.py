"""Absorbing labels against factorising anew, in every form and on both routes."""

import numpy as np
import pytest

from kernel import linalg
from kernel.covariance import Cross, Features, Kernel
from kernel.criteria import mlmoc
from kernel.errors import KernelError
from kernel.posterior import absorb, posterior
from tests.kernel_cases import all_forms, full_kernel, one_hot, random_features, random_problem

FORMS = (
    "dense",
    "features kept",
    "features streamed",
    "cross",
    "dense streamed",
    "cross streamed",
)


@pytest.fixture(params=["host", "device"])
def route(request, monkeypatch):
    monkeypatch.setattr(linalg, "on_host", lambda: request.param == "host")
    return request.param


def afresh(features, problem, queried, labels, ridge):
    """The posterior with the queried candidates moved to the labelled set; they stay candidates."""
    targets, f_l, f_u = problem
    labelled = len(targets)
    rows = np.concatenate(
        [np.arange(labelled), labelled + queried, np.arange(labelled, len(features.values))]
    )
    return posterior(
        Features(features.values[rows], "float64"),
        np.concatenate([targets, labels]),
        np.concatenate([f_l, f_u[queried]]),
        f_u,
        ridge=ridge,
    )


def assert_same(result, expected, scale, rtol=1e-8):
    rows = result.covariance.sample
    dense = expected.covariance.dense()[rows]
    np.testing.assert_allclose(result.covariance.dense(), dense, atol=rtol * scale)
    np.testing.assert_allclose(result.variance, expected.variance, atol=rtol * scale)
    np.testing.assert_allclose(result.predictions, expected.predictions, atol=10 * rtol)
    np.testing.assert_array_equal(result.logits, expected.logits)


@pytest.mark.parametrize(
    ("form", "ridge"),
    [
        ("dense", 0.0),
        ("features kept", 0.5),
        ("features streamed", 0.0),
        ("cross", 0.5),
        ("dense streamed", 0.5),
        ("cross streamed", 0.0),
    ],
)
def test_one_block_and_afresh_agree_over_200_labels(form, ridge, route, rng):
    labelled, candidates, classes = 12, 260, 3
    features = random_features(labelled + candidates, 400, rng)
    problem = random_problem(labelled, candidates, classes, rng)
    queried = rng.permutation(candidates)[:200]
    labels = one_hot(rng.integers(classes, size=200), classes)
    sample = np.concatenate([queried, np.setdiff1d(np.arange(candidates), queried)[:20]])
    given, keep = all_forms(features, labelled, sample)[form]

    def start():
        return posterior(given, *problem, sample=sample, keep=keep, ridge=ridge)

    expected = afresh(features, problem, queried, labels, ridge)
    scale = float(np.square(features.values).sum(1).max())
    one_by_one = start()
    for candidate, label in zip(queried, labels, strict=True):
        one_by_one = absorb(one_by_one, candidate, label)
    assert_same(one_by_one, expected, scale)
    assert_same(absorb(start(), queried, labels), expected, scale)
    order = rng.permutation(200)
    parts = start()
    for part in np.array_split(order, 3):
        parts = absorb(parts, queried[part], labels[part])
    assert_same(parts, expected, scale)


def test_one_label_by_hand():
    # S = 2, G = 0.35, y = 1: G += 2·0.65/2.5 after a ridge of 0.5, S −= 4/2.5
    features = Features(np.array([[0.0, 1.0], [np.sqrt(2), 0.0]]), "float64")
    f_u = np.array([[0.35]])
    start = posterior(features, np.array([[1.0]]), np.array([[1.0]]), f_u, ridge=0.5)
    result = absorb(start, 0, np.array([1.0]))
    np.testing.assert_allclose(result.predictions, [[0.35 + 2 * 0.65 / 2.5]], rtol=1e-14)
    np.testing.assert_allclose(result.variance, [2 - 4 / 2.5], rtol=1e-14)
    np.testing.assert_allclose(result.covariance.dense(), [[2 - 4 / 2.5]], rtol=1e-14)
    np.testing.assert_array_equal(result.logits, f_u)


@pytest.mark.parametrize("form", FORMS)
def test_a_label_that_was_predicted_changes_only_s(form, route, rng):
    problem = random_problem(4, 9, 3, rng)
    sample = np.array([2, 5, 8])
    given, keep = all_forms(random_features(13, 20, rng), 4, sample)[form]
    start = posterior(given, *problem, sample=sample, keep=keep)
    before, predictions, drift = start.covariance.dense(), start.predictions, start.drift.copy()
    result = absorb(start, 5, predictions[5])
    np.testing.assert_allclose(result.drift, drift, atol=1e-13)
    assert np.abs(result.covariance.dense() - before).max() > 0.1
    assert result.determined[5]
    assert mlmoc(result)[5] == 0


@pytest.mark.parametrize("form", FORMS)
def test_determined_candidates_change_nothing(form, route, rng):
    features = random_features(13, 20, rng)
    features.values[6] = features.values[1]  # candidate 2 is labelled image 1 again
    features.values[9] = features.values[8]  # candidates 4 and 5 are the same
    problem = random_problem(4, 9, 3, rng)
    sample = np.arange(9)
    given, keep = all_forms(features, 4, sample)[form]
    start = posterior(given, *problem, keep=keep)
    assert absorb(start, 2, np.eye(3)[1]) is start
    labels = np.eye(3)[[0, 1, 2, 1]]
    block = absorb(start, np.array([4, 2, 5, 7]), labels)
    expected = afresh(features, problem, np.array([4, 7]), labels[[0, 3]], 0.0)
    assert_same(block, expected, 100.0)
    again = absorb(block, np.array([4, 5, 7]), 1 - labels[:3])
    assert again is block
    assert np.isfinite(mlmoc(again)).all()
    assert set(np.flatnonzero(again.determined)) == {2, 4, 5, 7}


def test_a_ridge_counts_repeated_labels(rng):
    """With λ > 0 a candidate is observed with noise: seeing it twice says more than once."""
    features = random_features(8, 12, rng)
    problem = random_problem(3, 5, 2, rng)
    twice = absorb(posterior(features, *problem, ridge=1.0), np.array([1, 1]), np.eye(2)[[0, 0]])
    expected = afresh(features, problem, np.array([1, 1]), np.eye(2)[[0, 0]], 1.0)
    assert_same(twice, expected, 10.0)


def test_full_kernel(rng):
    classes, labelled, candidates = 3, 4, 6
    kernel = full_kernel(labelled + candidates, classes, rng)
    problem = random_problem(labelled, candidates, classes, rng)
    queried, labels = np.array([4, 1]), np.eye(classes)[[0, 2]]
    rows = np.concatenate(
        [np.arange(labelled), labelled + queried, labelled + np.arange(candidates)]
    )
    expected = posterior(
        Kernel(kernel.values[rows][:, :, rows], "float64"),
        np.concatenate([problem[0], labels]),
        np.concatenate([problem[1], problem[2][queried]]),
        problem[2],
    )
    one_by_one = posterior(kernel, *problem)
    for candidate, label in zip(queried, labels, strict=True):
        one_by_one = absorb(one_by_one, candidate, label)
    scale = kernel.values.max()
    assert_same(one_by_one, expected, scale)
    assert_same(absorb(posterior(kernel, *problem), queried, labels), expected, scale)


@pytest.mark.parametrize("keep", [True, False])
def test_outside_the_sample_features_give_the_column(keep, route, rng):
    features = random_features(13, 20, rng)
    problem = random_problem(4, 9, 3, rng)
    start = posterior(features, *problem, sample=np.array([0, 3, 7]), keep=keep)
    result = absorb(start, np.array([5, 3]), np.eye(3)[:2])
    assert_same(result, afresh(features, problem, np.array([5, 3]), np.eye(3)[:2], 0.0), 100.0)
    result = absorb(result, 8, np.eye(3)[0])
    expected = afresh(features, problem, np.array([5, 3, 8]), np.eye(3)[[0, 1, 0]], 0.0)
    assert_same(result, expected, 100.0)


def test_float32_stream(route, rng):
    """Rounding of float32 does not grow over 200 labels."""
    exact = random_features(270, 400, rng)
    problem = random_problem(10, 260, 3, rng)
    single = Features(exact.values.astype(np.float32), "float32")
    start = posterior(single, *problem, keep=False, sample=np.arange(0, 260, 5), ridge=1.0)
    queried, labels = rng.permutation(260)[:200], one_hot(rng.integers(3, size=200), 3)
    for candidate, label in zip(queried, labels, strict=True):
        start = absorb(start, candidate, label)
    expected = afresh(exact, problem, queried, labels, 1.0)
    assert_same(start, expected, 400.0, rtol=1e-4)


def test_a_consumed_posterior_is_refused(route, rng):
    problem = random_problem(4, 9, 3, rng)
    for given, keep in all_forms(random_features(13, 20, rng), 4, np.arange(9)).values():
        start = posterior(given, *problem, keep=keep)
        after = absorb(start, 2, np.eye(3)[1])
        for use in (
            lambda old=start: mlmoc(old),
            lambda old=start: absorb(old, 3, np.eye(3)[1]),
            lambda old=start: old.covariance.dense(),
        ):
            with pytest.raises(KernelError, match="was consumed when a label was absorbed"):
                use()
        assert np.isfinite(mlmoc(after)).all()


def test_bad_requests(rng):
    problem = random_problem(4, 9, 3, rng)
    features = random_features(13, 20, rng)
    sample = np.array([0, 3, 7])
    for form in ("cross", "dense", "cross streamed"):
        given, keep = all_forms(features, 4, sample)[form]
        result = posterior(given, *problem, sample=sample, keep=keep)
        with pytest.raises(KernelError, match=r"candidates \[5\] are outside the reference sample"):
            absorb(result, 5, np.eye(3)[0])
        assert absorb(result, 3, np.eye(3)[0]).determined[3]
    result = posterior(features, *problem)
    with pytest.raises(KernelError, match=r"candidates \[9\] do not exist: places run from 0 to 8"):
        absorb(result, 9, np.eye(3)[0])
    with pytest.raises(KernelError, match=r"labels of shape \(1, 2\) do not fit 1 candidates of 3"):
        absorb(result, 1, np.eye(2)[0])
    with pytest.raises(KernelError, match="labels hold entries that are not finite"):
        absorb(result, 1, np.array([np.nan, 0.0, 1.0]))


def test_cross_with_an_asymmetric_sample_order(rng):
    """Anchors come in the sample's order, whatever it is."""
    features = random_features(11, 20, rng)
    problem = random_problem(4, 7, 2, rng)
    sample = np.array([6, 0, 3])
    cross, _ = all_forms(features, 4, sample)["cross"]
    assert isinstance(cross, Cross)
    result = absorb(posterior(cross, *problem, sample=sample), 3, np.eye(2)[1])
    assert_same(result, afresh(features, problem, np.array([3]), np.eye(2)[[1]], 0.0), 100.0)
