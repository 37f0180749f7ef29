import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from skactiveml.pool import uncertainty_scores
from torch import nn

from kernel.simplex import simplex_projection
from pipelines.core.errors import PipelineError
from pipelines.strategies import STRATEGIES
from pipelines.strategies.base import QueryContext, probabilities, top
from trainer.config import TrainConfig

# Golden values of scikit-activeml 1.0.1
P = np.array([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.9, 0.05, 0.05], [1.0, 0.0, 0.0]])
GOLDEN = {
    "least_confident": [0.5, 0.66, 0.1, 0.0],
    "margin": [-0.2, -0.01, -0.85, -1.0],  # theirs is 1 more
    "entropy": [1.029653, 1.098513, 0.394398, 0.0],
}


def context(p: np.ndarray, candidates: np.ndarray | None = None) -> QueryContext:
    return QueryContext(
        labelled=np.array([0]),
        labels=np.array([0]),
        candidates=np.arange(10, 10 + len(p)) if candidates is None else candidates,
        images=lambda indices: np.zeros((len(indices), 1, 2, 2), np.float32),
        network=nn.Identity(),
        train=TrainConfig(),
        known_logits=(np.zeros((1, p.shape[1]), np.float32), p),
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name, rng):
    query = STRATEGIES[name](context(P), 4, rng)
    np.testing.assert_allclose(query.candidate_scores, GOLDEN[name], atol=1e-6)
    assert query.indices.tolist() == [11, 10, 12, 13]
    np.testing.assert_array_equal(query.scores, np.sort(query.candidate_scores)[::-1])


@pytest.mark.parametrize(
    ("name", "theirs", "shift"),
    [
        ("least_confident", "least_confident", 0),
        ("margin", "margin_sampling", 1),
        ("entropy", "entropy", 0),
    ],
)
def test_against_scikit_activeml(name, theirs, shift, rng):
    p = rng.dirichlet(np.ones(7), size=50)
    ours = STRATEGIES[name](context(p), 1, rng).candidate_scores
    np.testing.assert_allclose(ours + shift, uncertainty_scores(p, method=theirs), rtol=1e-12)


def test_random_depends_on_the_generator_alone():
    draw = lambda seed: STRATEGIES["random"](context(P), 2, np.random.default_rng(seed)).indices  # noqa: E731
    assert draw(3).tolist() == draw(3).tolist()
    seen = {index for seed in range(40) for index in draw(seed)}
    assert seen == {10, 11, 12, 13}


def test_ties_are_broken_by_the_seed_and_not_by_place():
    tied = context(np.full((30, 2), 0.5))
    picks = {
        tuple(STRATEGIES["entropy"](tied, 3, np.random.default_rng(s)).indices) for s in range(5)
    }
    assert len(picks) > 1


def test_more_than_there_are_and_scores_that_are_no_numbers_are_refused(rng):
    with pytest.raises(PipelineError, match="query of 5 images was asked for and there are 4"):
        STRATEGIES["margin"](context(P), 5, rng)
    with pytest.raises(PipelineError, match=r"scores of images \[12\] are not numbers"):
        top(context(P), np.array([0, 1, np.nan, 2]), 2, rng)


def test_l2_probabilities_are_the_nearest_point_of_the_simplex(rng):
    for logits in rng.normal(size=(5, 4)):
        nearest = minimize(
            lambda p, f=logits: ((p - f) ** 2).sum(),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            tol=1e-12,
        ).x
        np.testing.assert_allclose(simplex_projection(logits[None])[0], nearest, atol=1e-5)


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-50, 50)))
def test_probabilities_are_probabilities(logits):
    for loss in ("l2", "cross_entropy"):
        p = probabilities(logits, loss)
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(
        simplex_projection(simplex_projection(logits)), simplex_projection(logits), atol=1e-9
    )
