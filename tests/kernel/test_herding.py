"""MaxHerding, UHerding, MaxDet and NTKCPL against what they say in plain loops."""

import dataclasses

import numpy as np
import pytest
from scipy.special import entr, log_softmax, softmax

from kernel.covariance import Covariance, Features, Kernel
from kernel.errors import KernelError
from kernel.herding import (
    COLDEST,
    WARMEST,
    HerdingState,
    calibrated_temperature,
    coverage,
    leave_one_out,
    uncertainty,
)
from kernel.lookahead import acquisition_state
from kernel.ntkcpl import NTKCPLState, embedding
from kernel.options import Options
from kernel.posterior import posterior
from tests.kernel_cases import all_forms, one_hot, random_features, random_problem

FORMS = ("dense", "features kept", "features streamed", "cross", "dense streamed", "cross streamed")
LABELLED, CANDIDATES, CLASSES = 5, 13, 3


def cosines(features) -> np.ndarray:
    k = np.asarray(features.values @ features.values.T)
    return k / np.sqrt(np.outer(k.diagonal(), k.diagonal()))


def literal_gains(similar, weights, sample, covered, sigma) -> np.ndarray:
    """Mean of u(x)[k_σ(x,x') − m(x)]₊, one pair at a time."""
    shape = (lambda c: c) if sigma is None else lambda c: np.exp(-(2 - 2 * c) / sigma**2)
    gains = np.zeros(CANDIDATES)
    for candidate in range(CANDIDATES):
        for x in sample:
            row = similar[LABELLED + x]
            most = max(shape(row[c]) for c in covered)
            more = shape(row[LABELLED + candidate]) - most
            gains[candidate] += weights[x] * max(more, 0) / len(sample)
    return gains


def smallest_distance(similar, labelled) -> float:
    pairs = [(i, j) for i in labelled for j in labelled if i < j]
    return min(np.sqrt(2 - 2 * similar[i, j]) for i, j in pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("radius", [None, "adaptive", 0.7])
@pytest.mark.parametrize("criterion", ["max_herding", "uherding"])
def test_a_greedy_batch_and_labels_after_it(criterion, radius, form, rng):
    """Picks by brute force; then true labels: coverage, radius and uncertainty follow."""
    features = random_features(LABELLED + CANDIDATES, 9, rng)
    targets, f_l, f_u = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    sample = rng.permutation(CANDIDATES)[:8]
    given, keep = all_forms(features, LABELLED, sample)[form]
    result = posterior(given, targets, f_l, f_u, sample=sample, keep=keep, ridge=0.3)
    options = Options(radius=radius, temperature=0.4)
    seen = acquisition_state(criterion, given, result, options, targets=targets)
    assert isinstance(seen, HerdingState)
    similar, covered = cosines(features), list(range(LABELLED))
    sigma = smallest_distance(similar, covered) if radius == "adaptive" else radius

    def weights(logits):
        if criterion == "max_herding":
            return np.ones(CANDIDATES)
        p = np.sort(softmax(logits / 0.4, axis=1), axis=1)
        return 1 - (p[:, -1] - p[:, -2])

    for _ in range(3):
        expected = literal_gains(similar, weights(f_u), sample, covered, sigma)
        scores = seen.scores()
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)
        pick = int(expected.argmax())
        covered.append(LABELLED + pick)
        seen = seen.assume(np.array([pick]))
    chosen = np.array([sample[1], sample[5]])
    labels = one_hot(np.array([2, 0]), CLASSES)
    seen = seen.absorb(chosen, labels)
    covered += [LABELLED + int(c) for c in chosen]
    if radius == "adaptive":
        known = [*range(LABELLED), *covered[-2:]]
        sigma = smallest_distance(similar, known)
    np.testing.assert_allclose(seen.cover.sigma(radius) or 0, sigma or 0, rtol=1e-9)
    k = np.asarray(features.values @ features.values.T)
    rows = [*range(LABELLED), *(LABELLED + chosen)]
    wanted = np.concatenate([targets, labels]) - np.concatenate([f_l, f_u[chosen]])
    block = k[np.ix_(rows, rows)] + 0.3 * np.eye(len(rows))
    g = f_u + k[LABELLED:, rows] @ np.linalg.solve(block, wanted)
    np.testing.assert_allclose(seen.posterior.predictions, g, rtol=1e-8, atol=1e-10)
    expected = literal_gains(similar, weights(g), sample, covered, sigma)
    np.testing.assert_allclose(seen.scores(), expected, rtol=1e-7, atol=1e-11)


def test_herding_a_batch_reads_no_column_of_s(rng):
    features = random_features(LABELLED + CANDIDATES, 9, rng)
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    result = posterior(features, *problem, keep=False, ridge=0.1)
    seen = acquisition_state("uherding", features, result, targets=problem[0])
    result.covariance._lease.updates += 1  # whoever reads S now is refused
    for _ in range(3):
        seen = seen.assume(np.array([int(seen.scores().argmax())]))
    with pytest.raises(KernelError, match="was consumed"):
        result.covariance.dense()


def test_the_kernel_must_not_have_been_consumed(rng):
    values = random_features(LABELLED + CANDIDATES, 30, rng).values
    kernel = Kernel(np.asarray(values @ values.T), "float64")
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    result = posterior(kernel, *problem, consume=True)
    with pytest.raises(KernelError, match="S has taken the memory of the kernel"):
        acquisition_state("uherding", kernel, result, targets=problem[0])


def test_duplicates_of_labelled_images_are_no_scale(rng):
    features = random_features(LABELLED + CANDIDATES, 9, rng)
    features.values[1] = 2 * features.values[0]
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    result = posterior(features, *problem, ridge=0.1)
    cover = coverage(features, result, LABELLED)
    similar = cosines(features)
    assert cover.apart == pytest.approx(smallest_distance(similar, [0, 2, 3, 4]))
    one = posterior(features, problem[0][:1], problem[1][:1], np.zeros((17, CLASSES)), ridge=0.1)
    assert coverage(features, one, 1).sigma("adaptive") == 1.0


def test_leave_one_out_is_leaving_one_out(rng):
    features = random_features(8, 20, rng)
    k, ridge = np.asarray(features.values @ features.values.T), 0.4
    y = np.eye(3)[[0, 1, 2, 0, 1, 2, 2, 0]]
    for i, found in enumerate(leave_one_out(k, y, ridge)):
        rest = np.delete(np.arange(8), i)
        block = k[np.ix_(rest, rest)] + ridge * np.eye(7)
        np.testing.assert_allclose(found, k[i, rest] @ np.linalg.solve(block, y[rest]), rtol=1e-9)


def test_the_temperature_is_the_likeliest(rng):
    y = np.eye(3)[rng.integers(3, size=200)]
    logits = y + rng.normal(size=y.shape)

    def surprise(t):
        return -(y * log_softmax(logits / t, axis=1)).sum()

    found = calibrated_temperature(logits, y)
    grid = np.geomspace(COLDEST, WARMEST, 4001)
    assert found == pytest.approx(grid[np.argmin([surprise(t) for t in grid])], rel=2e-3)
    assert calibrated_temperature(y, y) == pytest.approx(COLDEST, rel=1e-3)
    assert calibrated_temperature(-y, y) == pytest.approx(WARMEST, rel=1e-3)
    # and it is what the outlook works with
    features = random_features(LABELLED + CANDIDATES, 9, rng)
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    seen = acquisition_state(
        "uherding", features, posterior(features, *problem, ridge=0.5), targets=problem[0]
    )
    assert isinstance(seen, HerdingState)
    k = np.asarray(features.values[:LABELLED] @ features.values[:LABELLED].T)
    own = leave_one_out(k, problem[0], 0.5)

    assert seen.temperature == pytest.approx(calibrated_temperature(own, problem[0]))


@pytest.mark.parametrize("labels", ["simplex", "softmax"])
def test_uncertainty(labels, rng):
    logits = rng.normal(size=(6, 4))
    options = Options(labels=labels, beta=2.0)
    p = softmax(2 * logits, axis=1)
    if labels == "softmax":
        ordered = np.sort(p, axis=1)
        margin = 1 - ordered[:, -1] + ordered[:, -2]
        np.testing.assert_allclose(uncertainty(logits, options, None), margin, rtol=1e-12)
        entropy = Options(labels=labels, beta=2.0, uncertainty="entropy")
        np.testing.assert_allclose(uncertainty(logits, entropy, None), entr(p).sum(1), rtol=1e-12)
    twice = uncertainty(logits, Options(labels="softmax", beta=2.0), None)
    np.testing.assert_allclose(uncertainty(logits, options, 0.5), twice)
    # what is certain but for rounding keeps its order
    sure = uncertainty(np.array([[90.0, 0.0], [80.0, 0.0]]), options, 1.0)
    assert 0 < sure[0] < sure[1]


def test_uherding_refuses_what_is_never_uncertain(rng):
    features = random_features(6, 9, rng)
    problem = random_problem(2, 4, 3, rng)
    result = posterior(features, *problem, ridge=0.1)
    options = Options(labels="one_hot", temperature=None)
    with pytest.raises(KernelError, match="one_hot leaves none"):
        acquisition_state("uherding", features, result, options, targets=problem[0])
    one = random_problem(2, 4, 1, rng)
    made = posterior(features, *one, ridge=0.1)
    with pytest.raises(KernelError, match="at least two classes"):
        acquisition_state("uherding", features, made, targets=one[0])


@pytest.mark.parametrize("form", FORMS)
def test_max_det_is_greedy_for_the_determinant(form, rng):
    features = random_features(LABELLED + CANDIDATES, 30, rng)
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    sample = rng.permutation(CANDIDATES)
    given, keep = all_forms(features, LABELLED, sample)[form]
    result = posterior(given, *problem, sample=sample, keep=keep, ridge=0.2)
    k = np.asarray(features.values @ features.values.T)
    rows = list(range(LABELLED))
    seen = acquisition_state("max_det", given, result, targets=problem[0])
    for _ in range(4):
        whole = np.linalg.slogdet(k[np.ix_(rows, rows)] + 0.2 * np.eye(len(rows)))[1]
        left = [c for c in range(CANDIDATES) if LABELLED + c not in rows]
        more = [
            np.linalg.slogdet(k[np.ix_(own, own)] + 0.2 * np.eye(len(own)))[1] - whole
            for own in ([*rows, LABELLED + c] for c in left)
        ]
        np.testing.assert_allclose(np.log(seen.scores()[left] + 0.2), more, rtol=1e-8)
        pick = left[int(np.argmax(more))]
        rows.append(LABELLED + pick)
        seen = seen.assume(np.array([pick]))
    after = seen.absorb(np.array(rows[LABELLED:]) - LABELLED, np.eye(CLASSES)[[0, 1, 2, 0]])
    np.testing.assert_allclose(after.scores(), seen.scores(), rtol=1e-7, atol=1e-9)


def test_max_det_passes_over_duplicates(rng):
    features = random_features(LABELLED + CANDIDATES, 30, rng)
    features.values[LABELLED + 4] = features.values[LABELLED + 7]
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    seen = acquisition_state("max_det", features, posterior(features, *problem), targets=problem[0])
    after = seen.assume(np.array([7])).scores()
    assert after[4] == 0
    assert after[7] == 0
    np.testing.assert_array_equal(seen.assume(np.array([7, 4])).scores(), after)


@pytest.mark.parametrize("form", FORMS)
def test_clusters_do_not_depend_on_the_form(form, rng):
    """Coordinates reproduce the normalised kernel where there are as many as directions."""
    features = random_features(LABELLED + CANDIDATES, 6, rng)
    sample = rng.permutation(CANDIDATES)
    given, _ = all_forms(features, LABELLED, sample)[form]
    placed = embedding(given, LABELLED, sample, np.random.default_rng(0))
    np.testing.assert_allclose(placed @ placed.T, cosines(features), atol=1e-9)


def test_ntkcpl_counts_agreement_with_clusters(rng):
    """Three far groups: labels spread over each, and the count is that of literal retraining."""
    centres = 5 * np.eye(3, 8)
    group = np.array([0, 1, 2, 2, 0, *rng.integers(3, size=CANDIDATES)])
    values = centres[group] + 0.3 * rng.normal(size=(LABELLED + CANDIDATES, 8))
    features = random_features(1, 8, rng)._replace(values=values)
    targets = one_hot(group[:LABELLED], 3)
    f_l, f_u = rng.normal(size=(LABELLED, 3)), rng.normal(size=(CANDIDATES, 3))
    result = posterior(features, targets, f_l, f_u, ridge=0.5)
    seen = acquisition_state("ntkcpl", features, result, Options(clusters=3), targets=targets)
    assert isinstance(seen, NTKCPLState)
    wanted = group[LABELLED:]
    np.testing.assert_array_equal(seen.pseudo_labels(), wanted)
    k = values @ values.T
    expected = []
    for c in range(CANDIDATES):
        rows = [*range(LABELLED), LABELLED + c]
        y = np.concatenate([targets, one_hot(wanted[[c]], 3)])
        block = k[np.ix_(rows, rows)] + 0.5 * np.eye(len(rows))
        solved = np.linalg.solve(block, y - np.concatenate([f_l, f_u[[c]]]))
        expected.append(((f_u + k[LABELLED:, rows] @ solved).argmax(1) == wanted).sum())
    np.testing.assert_array_equal(seen.scores(), expected)
    # another label splits a cluster between its nearest
    after = seen.absorb(np.array([6]), one_hot(np.array([(wanted[6] + 1) % 3]), 3))
    assert after.pseudo_labels()[6] == (wanted[6] + 1) % 3
    assert (after.pseudo_labels() == wanted)[wanted != wanted[6]].all()


def test_a_cluster_without_labels_is_of_the_class_it_is_predicted_to_be(rng):
    values = np.concatenate([5 * np.eye(1, 4), 5 * np.eye(1, 4, 1).repeat(4, 0)])
    values = values + 0.1 * rng.normal(size=values.shape)
    features = random_features(1, 4, rng)._replace(values=values)
    f_u = one_hot(np.array([1, 1, 2, 1]), 3)
    targets = one_hot(np.array([0]), 3)
    result = posterior(features, targets, targets, f_u, ridge=0.5)
    seen = acquisition_state("ntkcpl", features, result, Options(clusters=2), targets=targets)
    assert isinstance(seen, NTKCPLState)
    assert seen.pseudo_labels().tolist() == [1, 1, 1, 1]


def many(form: str, rng: np.random.Generator, criterion: str = "uherding", width: int = 6):
    """A pool in which a pick is near to few candidates, and its outlook."""
    features = random_features(20 + 300, width, rng)
    problem = random_problem(20, 300, CLASSES, rng)
    sample = rng.permutation(300)[:120]
    given, keep = all_forms(features, 20, sample)[form]
    result = posterior(given, *problem, sample=sample, keep=keep, ridge=0.3)
    options = Options(radius="adaptive", temperature=0.4)
    seen = acquisition_state(criterion, given, result, options, targets=problem[0])
    assert isinstance(seen, HerdingState)
    return seen


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", ["max_herding", "uherding"])
def test_gains_follow_from_those_before_a_pick(criterion, form, rng):
    """As if they were summed anew, over 40 picks, with most rows of the kernel left alone."""
    seen, followed = many(form, rng, criterion), 0
    for _ in range(40):
        best = int(seen.scores().argmax())
        seen = seen.assume(np.array([best]))
        followed += seen.known is not None
        anew = dataclasses.replace(seen, known=None)
        scale = anew.scores().max()
        np.testing.assert_allclose(seen.scores(), anew.scores(), rtol=1e-9, atol=1e-12 * scale)
        assert seen.scores()[best] == 0
        assert (seen.scores() >= 0).all()
    assert followed >= 35


def test_a_pick_reads_only_rows_that_it_is_nearer_to(rng, monkeypatch):
    seen = many("features streamed", rng)
    seen.scores()
    read, block = [], Covariance.block

    def counted(self, rows, columns):
        if isinstance(columns, slice):  # else of the pick alone
            read.append(len(rows))
        return block(self, rows, columns)

    monkeypatch.setattr(Covariance, "block", counted)
    for _ in range(10):
        after = seen.assume(np.array([int(seen.scores().argmax())]))
        assert sum(read) == len(after.cover.nearer(seen.cover)) < 60
        seen = after
        read.clear()
    seen.absorb(np.array([3]), one_hot(np.array([1]), CLASSES)).scores()
    assert sum(read) == 120  # u and the radius are others: all of them anew


def test_of_duplicates_in_float32_nothing_is_left(rng):
    features = random_features(20 + 300, 6, rng)
    values = np.asarray(features.values, np.float32)
    values[20 + 50 : 20 + 300 : 7] = values[20 + 50]
    given = Features(values, "float32")
    problem = random_problem(20, 300, CLASSES, rng)
    result = posterior(given, *problem, keep=False, ridge=0.3)
    seen = acquisition_state("max_herding", given, result, targets=problem[0])
    for place in (3, 50, 4):
        seen.scores()
        seen = seen.assume(np.array([place]))
    same = np.arange(50, 300, 7)
    scale = seen.scores().max()
    assert scale > 0
    assert (seen.scores()[same] <= 1e-5 * scale).all()
