"""Every criterion against the slowest obvious form, in float64, and what they have in common."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import MonteCarloEER
from sklearn.base import BaseEstimator, ClassifierMixin

from kernel.covariance import Kernel
from kernel.criteria import label_probabilities, one_hot
from kernel.errors import KernelError
from kernel.lookahead import acquisition_state
from kernel.options import CRITERIA, LABEL_RULES, REFERENCES, Options
from kernel.posterior import posterior
from tests.kernel.literal_lookahead import expected_change, expected_entropy, flips, random_literal
from tests.kernel_cases import all_forms, full_kernel, random_features, random_problem

POINTWISE = ("mlmoc", "emoc", "eer", "flip", "ev_gp", "loss_change")
SIZES = (st.integers(1, 6), st.integers(1, 7), st.integers(2, 4), st.floats(0, 2))
FORMS = ("dense", "features kept", "features streamed", "cross", "dense streamed", "cross streamed")


def look(criterion, problem, **options):
    """Scores of a literal problem."""
    result = posterior(*problem.given, ridge=problem.ridge)
    given = (problem.kernel, result, Options(**options))
    return acquisition_state(criterion, *given, targets=problem.targets).scores()


@pytest.mark.parametrize("labels", LABEL_RULES)
@pytest.mark.parametrize("reference", REFERENCES)
@settings(max_examples=8, deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_emoc(reference, labels, labelled, candidates, classes, ridge, seed):
    problem = random_literal(labelled, candidates, classes, ridge, seed)
    p = label_probabilities(problem.f_u, Options(labels=labels, beta=2.0))
    scores = look("emoc", problem, reference=reference, labels=labels, beta=2.0)
    np.testing.assert_allclose(scores, expected_change(problem, p, reference), rtol=1e-7)


@pytest.mark.parametrize("beta", [0.3, 10.0, 400.0])
@pytest.mark.parametrize("labels", LABEL_RULES)
@settings(max_examples=8, deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_eer(labels, beta, labelled, candidates, classes, ridge, seed):
    problem = random_literal(labelled, candidates, classes, ridge, seed)
    p = label_probabilities(problem.f_u, Options(labels=labels, beta=beta))
    expected = -expected_entropy(problem, p, beta)
    scores = look("eer", problem, labels=labels, beta=beta)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reference", REFERENCES)
@settings(max_examples=8, deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_flip(reference, labelled, candidates, classes, ridge, seed):
    problem = random_literal(labelled, candidates, classes, ridge, seed)
    scores = look("flip", problem, reference=reference)
    np.testing.assert_array_equal(scores, flips(problem, reference))


@settings(max_examples=8, deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_ev_gp_is_the_fall_of_all_variances(labelled, candidates, classes, ridge, seed):
    problem = random_literal(labelled, candidates, classes, ridge, seed)

    def variances(extra):
        rows = [*range(labelled), *extra]
        k = problem.kernel.values
        block = k[np.ix_(rows, rows)] + ridge * np.eye(len(rows))
        cross = k[labelled:, rows]
        solved = np.linalg.solve(block, cross.T)
        return (k.diagonal()[labelled:] - np.einsum("ij,ji->i", cross, solved)).sum()

    before = variances([])
    expected = [before - variances([labelled + c]) for c in range(candidates)]
    np.testing.assert_allclose(look("ev_gp", problem), expected, rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(*SIZES, st.integers(0, 99))
def test_loss_change_is_the_derivative_of_the_loss(labelled, candidates, classes, ridge, seed):
    """Of ½‖f − ŷ‖² over all candidates, on the way to what each label would make of them."""
    problem = random_literal(labelled, candidates, classes, ridge, seed)
    before, wanted = problem.before(), one_hot(problem.f_u)

    def loss(share, candidate):
        after = problem.after(candidate, problem.pseudo_label(candidate))
        return 0.5 * ((before + share * (after - before) - wanted) ** 2).sum()

    # a parabola: its central difference is its derivative
    expected = [loss(-0.5, c) - loss(0.5, c) for c in range(candidates)]
    scores = look("loss_change", problem)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)


class NtkRegression(ClassifierMixin, BaseEstimator):
    """Kernel regression with softmax(β·) for scikit-activeml; features are places."""

    def __init__(self, problem=None, beta=1.0):
        self.problem, self.beta = problem, beta

    def fit(self, X, y, sample_weight=None):
        assert self.problem is not None
        self.classes_ = np.arange(self.problem.f_u.shape[1])
        self.rows_ = X[:, 0].astype(int)
        self.labels_ = np.eye(len(self.classes_))[np.asarray(y, int)]
        return self

    def predict_proba(self, X):
        assert self.problem is not None
        k, wanted = self.problem.kernel.values, X[:, 0].astype(int)
        block = k[np.ix_(self.rows_, self.rows_)] + self.problem.ridge * np.eye(len(self.rows_))
        f = k[np.ix_(wanted, self.rows_)] @ np.linalg.solve(block, self.labels_)
        return softmax(self.beta * f, axis=1)


def test_eer_against_scikit_activeml():
    """They coincide where the label probabilities are those of the regression itself."""
    labelled, candidates, classes, beta = 5, 7, 3, 4.0
    problem = random_literal(labelled, candidates, classes, 0.4, 3)
    problem = problem._replace(f_l=0 * problem.f_l, f_u=0 * problem.f_u)
    # a network that is the linearised one already
    fitted = posterior(*problem.given, ridge=0.4)
    own = fitted._replace(logits=fitted.predictions, drift=0 * fitted.drift)
    options = Options(labels="softmax", beta=beta)
    state = acquisition_state("eer", problem.kernel, own, options, targets=problem.targets)
    scores = state.scores()
    places = np.arange(labelled + candidates)[:, None].astype(float)
    y = np.concatenate([problem.targets.argmax(1), np.full(candidates, np.nan)])
    classifier = SklearnClassifier(NtkRegression(problem, beta), classes=np.arange(classes))
    strategy = MonteCarloEER(method="log_loss", random_state=0)
    evaluated: Any = strategy.query(
        places, y, classifier.fit(places, y), X_eval=places[labelled:], return_utilities=True
    )
    utilities = evaluated[1]
    np.testing.assert_allclose(scores, utilities[0][labelled:], rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("criterion", POINTWISE)
def test_every_form_and_a_sample_of_all(criterion, form, rng):
    labelled, candidates = 5, 14
    problem = random_problem(labelled, candidates, 3, rng)
    features = random_features(labelled + candidates, 30, rng)
    features.values[labelled + 3] = features.values[1]
    every = rng.permutation(candidates)

    def scores(name, sample):
        given, keep = all_forms(features, labelled, every if sample is None else sample)[name]
        made = posterior(given, *problem, sample=sample, keep=keep)
        seen = acquisition_state(criterion, given, made, targets=problem[0])
        assert seen.posterior.determined[3]
        return seen.scores()

    expected = scores("dense", None)
    np.testing.assert_allclose(scores(form, every), expected, rtol=1e-8, atol=1e-9)
    assert expected[3] == min(0.0, expected.min())
    parts = [scores(form, part) for part in np.split(rng.permutation(candidates), 2)]
    mean = np.mean(parts, axis=0)
    np.testing.assert_allclose(np.delete(mean, 3), np.delete(expected, 3), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "ntkcpl"])
def test_permuting_candidates_permutes_scores(criterion, rng):
    problem = random_literal(4, 9, 3, 0.1, 5)
    order = rng.permutation(9)
    rows = np.concatenate([np.arange(4), 4 + order])
    kernel = Kernel(problem.kernel.values[np.ix_(rows, rows)], "float64")
    other = problem._replace(kernel=kernel, f_u=problem.f_u[order])
    np.testing.assert_allclose(look(criterion, other), look(criterion, problem)[order], atol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_duplicates_among_candidates_score_alike(criterion, rng):
    features = random_features(12, 20, rng)
    features.values[9] = features.values[6]
    targets, f_l, f_u = random_problem(4, 8, 3, rng)
    f_u[5] = f_u[2]
    result = posterior(features, targets, f_l, f_u, ridge=0.2)
    scores = acquisition_state(criterion, features, result, targets=targets).scores()
    np.testing.assert_allclose(scores[5], scores[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "mlmoc"])
def test_the_full_kernel_is_refused(criterion, rng):
    problem = random_problem(3, 4, 2, rng)
    kernel = full_kernel(7, 2, rng)
    result = posterior(kernel, *problem)
    with pytest.raises(KernelError, match=rf"{criterion} is computed on a scalar-valued kernel"):
        acquisition_state(criterion, kernel, result, targets=problem[0]).scores()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_all_determined(criterion, rng):
    features = random_features(3, 20, rng)
    features.values[2] = features.values[0]
    problem = random_problem(2, 1, 2, rng)
    result = posterior(features, *problem)
    state = acquisition_state(criterion, features, result, targets=problem[0])
    assert state.scores().tolist() == [0]


def test_unknown_names(rng, unchecked_types):
    problem = random_literal(2, 2, 2, 0.0, 0)
    with pytest.raises(KernelError, match="unknown criterion 'mlmco'; known: mlmoc, emoc"):
        look("mlmco", problem)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"reference": "netwrok"}, "unknown reference 'netwrok'"),
        ({"labels": "hard"}, "unknown rule of labels 'hard'"),
        ({"uncertainty": "bald"}, "unknown uncertainty 'bald'; known: margin, entropy"),
        ({"temperature": "ece"}, "unknown temperature 'ece'; known: calibrated, a number"),
        ({"radius": -1.0}, "radius must be a number above 0, not -1"),
        ({"beta": 0.0}, "beta must be a number above 0"),
        ({"clusters": 1}, "clusters must be 2 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
    ]
    for options, message in wrong:
        with pytest.raises(KernelError, match=message):
            Options(**options)
