"""Batches against explicit refactorisation: conditioned, hybrid with an oracle, and by hand."""

import numpy as np
import pytest

from kernel.covariance import Features
from kernel.lookahead import acquisition_state
from kernel.options import CRITERIA, Options
from kernel.posterior import posterior
from pipelines.core.errors import PipelineError
from pipelines.strategies.lookahead import pick
from pipelines.strategies.options import KernelConfig, LookAheadConfig
from tests.kernel.literal_lookahead import expected_change, expected_entropy, flips, random_literal
from tests.kernel_cases import one_hot, random_features, random_problem

LABELLED, CANDIDATES, CLASSES, RIDGE = 5, 12, 3, 0.2
INDICES = np.arange(100, 100 + CANDIDATES)
POSTERIOR = ("mlmoc", "emoc", "eer", "flip", "ev_gp", "loss_change")


def chosen(criterion, config, batch_size, problem, given, ask=None, seed=0):
    result = posterior(given, *problem, ridge=RIDGE)
    options = config.criterion_options("network", 0)
    seen = acquisition_state(criterion, given, result, options, targets=problem[0])
    told = []
    found = pick(
        seen,
        criterion,
        batch_size,
        config,
        np.random.default_rng(seed),
        INDICES,
        ask,
        lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (batch_size, batch_size)
    return found


def made(rng):
    features = random_features(LABELLED + CANDIDATES, 30, rng)
    return random_problem(LABELLED, CANDIDATES, CLASSES, rng), features


def moved(problem, features, picks, labels):
    """The problem with picks in the labelled set; they stay candidates."""
    targets, f_l, f_u = problem
    rows = [
        *range(LABELLED),
        *(LABELLED + p for p in picks),
        *range(LABELLED, len(features.values)),
    ]
    given = Features(np.asarray(features.values)[rows], "float64")
    return (np.concatenate([targets, labels]), np.concatenate([f_l, f_u[picks]]), f_u), given


@pytest.mark.parametrize("criterion", CRITERIA)
def test_top_is_the_highest_scores(criterion, rng):
    problem, features = made(rng)
    found = chosen(criterion, LookAheadConfig(batch="top"), 4, problem, features)
    result = posterior(features, *problem, ridge=RIDGE)
    scores = acquisition_state(criterion, features, result, targets=problem[0]).scores()
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(np.sort(scores[found.positions]), np.sort(scores)[-4:])
    assert found.diagnostics == {"batch": "top"}


@pytest.mark.parametrize("criterion", POSTERIOR)
def test_conditioning_is_refactorising_after_each_pick(criterion, rng):
    problem, features = made(rng)
    found = chosen(criterion, LookAheadConfig(batch="conditioned"), 4, problem, features)
    expected_labels = one_hot(problem[2].argmax(1), CLASSES)
    order = np.random.default_rng(0).permutation(CANDIDATES)  # of ties
    picks: list[int] = []
    scores = np.zeros(CANDIDATES)
    for _ in range(4):
        now, given = moved(problem, features, picks, expected_labels[picks])
        result = posterior(given, *now, ridge=RIDGE)
        scores = acquisition_state(criterion, given, result, targets=now[0]).scores()
        scores[picks] = -np.inf
        picks.append(int(np.lexsort((order, -scores))[0]))
        np.testing.assert_allclose(found.scores[picks[-1]], scores[picks[-1]], rtol=1e-6)
    assert found.positions.tolist() == picks
    rest = np.setdiff1d(np.arange(CANDIDATES), picks)
    np.testing.assert_allclose(found.scores[rest], scores[rest], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("interval", [1, 2])
def test_hybrid_is_absorbing_by_hand(criterion, interval, rng):
    """A batch of 5 with an oracle is what one does with an outlook and the same labels."""
    problem, features = made(rng)
    truth = rng.integers(CLASSES, size=CANDIDATES)
    asked = []

    def ask(indices):
        asked.append(indices.tolist())
        return truth[indices - 100]

    config = LookAheadConfig(batch="hybrid", interval=interval)
    found = chosen(criterion, config, 5, problem, features, ask)
    result = posterior(features, *problem, ridge=RIDGE)
    seen = acquisition_state(criterion, features, result, Options(), targets=problem[0])
    order = np.random.default_rng(0).permutation(CANDIDATES)
    places: list[int] = []
    while len(places) < 5:
        ahead, own = seen, []
        for _ in range(min(interval, 5 - len(places))):
            scores = np.where(np.isin(np.arange(CANDIDATES), places + own), -np.inf, ahead.scores())
            own.append(int(np.lexsort((order, -scores))[0]))
            if criterion in ("max_det", "max_herding", "uherding"):
                ahead = ahead.assume(np.array(own[-1:]))
        places += own
        if len(places) < 5:
            seen = seen.absorb(np.array(own), one_hot(truth[own], CLASSES))
    assert found.positions.tolist() == places
    known = places[:4]
    assert [i for part in asked for i in part] == [100 + p for p in known]
    assert found.diagnostics["answers"] == truth[known].tolist()
    assert {len(part) for part in asked} == {interval}


@pytest.mark.parametrize("criterion", POSTERIOR)
def test_after_true_labels_changes_are_those_of_the_linearised_network(criterion, rng):
    """Literal look-ahead from a network that already predicts G."""
    problem = random_literal(LABELLED, CANDIDATES, CLASSES, RIDGE, 7)
    result = posterior(*problem.given, ridge=RIDGE)
    seen = acquisition_state(criterion, problem.kernel, result, targets=problem.targets)
    picks, labels = np.array([3, 8]), one_hot(np.array([1, 2]), CLASSES)
    seen = seen.absorb(picks, labels)
    rows = [*range(LABELLED), *(LABELLED + picks), *range(LABELLED, LABELLED + CANDIDATES)]
    g = problem.after(picks.tolist(), labels)
    np.testing.assert_allclose(seen.posterior.predictions, g, rtol=1e-8)
    g_l = np.zeros((LABELLED + 2, CLASSES))  # of the labelled images it reproduces all labels
    again = problem._replace(
        kernel=problem.kernel._replace(values=problem.kernel.values[np.ix_(rows, rows)]),
        targets=g_l,
        f_l=g_l,
        f_u=g,
    )
    if criterion == "emoc":
        p = np.array([_nearest_on_the_simplex(row) for row in g])
        np.testing.assert_allclose(seen.scores(), expected_change(again, p, "network"), rtol=1e-6)
    elif criterion == "flip":
        np.testing.assert_array_equal(seen.scores(), flips(again, "network"))
    elif criterion == "eer":
        p = np.array([_nearest_on_the_simplex(row) for row in g])
        expected = -expected_entropy(again, p, 10.0)
        np.testing.assert_allclose(seen.scores(), expected, rtol=1e-6, atol=1e-9)
    else:
        fresh = posterior(*again.given, ridge=RIDGE)
        expected = acquisition_state(criterion, again.kernel, fresh, targets=g_l).scores()
        np.testing.assert_allclose(seen.scores(), expected, rtol=1e-6)


def _nearest_on_the_simplex(row: np.ndarray) -> np.ndarray:
    """By bisection on the shift."""
    low, high = row.min() - 1, row.max()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(row - high, 0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_label_equal_to_the_prediction_moves_no_prediction(criterion, rng):
    problem, features = made(rng)
    result = posterior(features, *problem, ridge=RIDGE)
    seen = acquisition_state(criterion, features, result, targets=problem[0])
    before = seen.posterior.predictions.copy()
    after = seen.absorb(np.array([4]), before[[4]])
    np.testing.assert_allclose(after.posterior.predictions, before, atol=1e-12)
    assert after.posterior.variance[4] < seen.posterior.variance[4]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_contradictory_labels_of_duplicates(criterion, ridge, rng):
    """Without a ridge the first label stands; with one they are weighed against each other."""
    problem, features = made(rng)
    features.values[LABELLED + 6] = features.values[LABELLED + 2]
    problem[2][6] = problem[2][2]
    result = posterior(features, *problem, ridge=ridge)
    seen = acquisition_state(criterion, features, result, targets=problem[0])
    labels = np.eye(CLASSES)[:2]
    after = seen.absorb(np.array([2, 6]), labels)
    assert np.isfinite(after.scores()).all()
    np.testing.assert_allclose(
        after.posterior.predictions[2], after.posterior.predictions[6], atol=1e-9
    )
    if ridge == 0:
        np.testing.assert_allclose(after.posterior.predictions[2], labels[0], atol=1e-9)
        assert after.posterior.determined[[2, 6]].all()
        return
    now, given = moved(problem, features, [2, 6], labels)
    expected = posterior(given, *now, ridge=ridge)
    np.testing.assert_allclose(
        after.posterior.predictions, expected.predictions, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_label_for_what_is_labelled_already(criterion, rng):
    problem, features = made(rng)
    features.values[LABELLED + 6] = features.values[1]
    result = posterior(features, *problem)
    seen = acquisition_state(criterion, features, result, targets=problem[0])
    before = seen.posterior.predictions.copy()
    after = seen.absorb(np.array([6]), np.eye(CLASSES)[[0]])
    np.testing.assert_array_equal(after.posterior.predictions, before)
    again = after.absorb(np.array([3]), np.eye(CLASSES)[[1]])
    twice = again.posterior.predictions.copy()
    np.testing.assert_array_equal(
        again.absorb(np.array([3]), np.eye(CLASSES)[[2]]).posterior.predictions, twice
    )


def test_ties_are_broken_by_the_seed(rng):
    problem, features = made(rng)
    features.values[LABELLED:] = features.values[LABELLED]
    problem[2][:] = problem[2][0]
    picks = {
        tuple(chosen("mlmoc", LookAheadConfig(), 2, problem, features, seed=s).positions)
        for s in range(6)
    }
    assert len(picks) > 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (np.array([3]), r"is labelled 3; labels are whole numbers from 0 to 2"),
        (np.array([0.5]), r"is labelled 0.5; labels"),
        (np.array([1, 1]), r"answered \[1 1\]; one class for each of 1"),
    ],
)
def test_answers_that_are_none(answers, message, rng):
    problem, features = made(rng)
    config = LookAheadConfig(batch="hybrid")
    with pytest.raises(PipelineError, match=message):
        chosen("mlmoc", config, 2, problem, features, lambda indices: answers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "best"}, "unknown batch mode 'best'"),
        ({"interval": 0}, "lookahead.interval must be 1 or more"),
        ({"labels": "hard"}, "^unknown rule of labels 'hard'"),
        ({"beta": 0}, "^beta must be a number above 0"),
        ({"temperature": "ece"}, "^unknown temperature 'ece'"),
        ({"radius": -2.0}, "^radius must be a number above 0"),
        ({"clusters": 1}, "^clusters must be 2 or more"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(Exception, match=message):
        LookAheadConfig(**options)


@pytest.mark.parametrize(
    ("criterion", "batch", "kernel", "message"),
    [
        ("emoc", None, {"kind": "full"}, "emoc is computed on a scalar-valued kernel"),
        ("mlmoc", "conditioned", {"sample": 5}, "mlmoc with batch mode conditioned needs to know"),
        ("max_det", None, {"sample": 5}, "max_det with batch mode conditioned needs"),
        ("uherding", "hybrid", {"sample": 5}, "uherding with batch mode hybrid needs"),
    ],
)
def test_settings_that_do_not_go_together(criterion, batch, kernel, message):
    with pytest.raises(PipelineError, match=message):
        LookAheadConfig(batch=batch).check(criterion, KernelConfig(**kernel))
    LookAheadConfig(batch="top").check("mlmoc", KernelConfig(**kernel))
    if "sample" in kernel:
        LookAheadConfig(batch=batch).check(criterion, KernelConfig(sketch=9, **kernel))
        LookAheadConfig().check("uherding", KernelConfig(**kernel))
