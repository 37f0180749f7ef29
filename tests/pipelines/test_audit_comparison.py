import numpy as np
import pytest
from scipy import stats

from pipelines.audit import comparison, report
from pipelines.audit.comparison import (
    FOLLOW,
    NO,
    PARTLY,
    UNDECIDED,
    UNKNOWABLE,
    WEAK,
    Interval,
)


def scipys(one, other):
    return stats.spearmanr(one, other).statistic  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def places(rng):
    return comparison.resamples(12, rng, 300)


def test_the_size_of_a_change_is_the_sum_of_the_points():
    field = np.zeros((2, 3, 2))
    field[0, 0] = [3, 4]
    field[0, 2] = [0, -2]
    np.testing.assert_allclose(comparison.change(field), [7, 0])


def test_errors_of_known_fields(rng):
    real = rng.normal(size=(5, 4, 3))
    same, none, twice, turned = (comparison.errors(k * real, real) for k in (1, 0, 2, -1))
    for found, relative, cosine, size in (
        (same, 0, 1, 1),
        (none, 1, np.nan, 0),
        (twice, 1, 1, 2),
        (turned, 2, -1, 1),
    ):
        np.testing.assert_allclose(found.relative, np.full(5, relative), atol=1e-12)
        np.testing.assert_allclose(found.cosine, np.full(5, cosine))
        np.testing.assert_allclose(found.size, np.full(5, size))
        np.testing.assert_allclose(found.by_point, np.full(4, relative), atol=1e-12)


def test_errors_against_loops(rng):
    real, predicted = rng.normal(size=(2, 5, 4, 3))
    found = comparison.errors(predicted, real)
    for i in range(5):
        a, b = real[i].ravel(), predicted[i].ravel()
        assert found.relative[i] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert found.cosine[i] == pytest.approx(cosine)
    for x in range(4):
        a, b = real[:, x].ravel(), predicted[:, x].ravel()
        assert found.by_point[x] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_where_nothing_changed_there_is_no_error():
    real = np.zeros((2, 2, 2))
    real[1] = 1
    found = comparison.errors(np.ones((2, 2, 2)), real)
    np.testing.assert_array_equal(np.isnan(found.relative), [True, False])
    assert comparison.median(found.relative) == 0
    assert np.isnan(comparison.median(found.relative[:1]))


@pytest.mark.parametrize("values", [7, 3])
def test_spearman_is_scipys_ties_included(rng, values):
    a, b = rng.integers(0, values, size=(2, 6, 20))
    expected = [scipys(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(comparison.spearman(a, b), expected)


def test_a_constant_score_has_no_rank_correlation(rng, places):
    scores = rng.normal(size=12)
    assert np.isnan(comparison.spearman(np.ones(12), scores))
    assert np.isnan(comparison.correlation(np.ones(12), scores, places)).all()


def test_the_interval_is_of_percentiles_of_resampled_candidates(rng, places):
    a, b = rng.normal(size=(2, 12))
    drawn = [scipys(a[some], b[some]) for some in places]
    found = comparison.correlation(a, b, places)
    assert found.value == pytest.approx(scipys(a, b))
    np.testing.assert_allclose(found[1:], np.quantile(drawn, [0.025, 0.975]))
    assert comparison.correlation(a, np.exp(a), places) == (1, 1, 1)


def test_agreement_is_the_mean_over_pairs_of_repeats(rng, places):
    scores = rng.normal(size=(3, 12))
    one, two, three = scores
    expected = (scipys(one, two) + scipys(one, three) + scipys(two, three)) / 3
    assert comparison.agreement(scores, places).value == pytest.approx(expected)


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_no_predictor_of_a_noisy_signal_passes_the_ceiling(rng, repeats):
    """A signal known exactly correlates with the mean of its noisy repeats by the ceiling."""
    signal = rng.normal(size=200_000)
    noisy = signal + 1.5 * rng.normal(size=(repeats, 200_000))
    found = np.corrcoef(signal, noisy.mean(axis=0))[0, 1]
    between = 1 / (1 + 1.5**2)
    assert found == pytest.approx(comparison.ceiling(between, repeats), abs=5e-3)


def test_ceilings_at_the_ends():
    assert comparison.ceiling(1.0, 2) == 1
    assert comparison.ceiling(0.0, 2) == comparison.ceiling(-0.5, 2) == 0


def test_floor_and_likeness_of_known_outputs(rng):
    controls = np.zeros((3, 5, 2))
    controls[1, :, 0], controls[2, :, 1] = 3, 4
    assert comparison.floor(controls) == pytest.approx((5 * 3 + 5 * 4 + 5 * 5) / 3)
    field = rng.normal(size=(4, 5, 2))
    assert comparison.likeness(np.stack([field, 2 * field])) == pytest.approx(1)
    assert comparison.likeness(np.stack([field, -field])) == pytest.approx(-1)


SURE, UNTOLD = Interval(0.9, 0.8, 0.95), Interval(np.nan, np.nan, np.nan)
LEVELS = [
    ((0.9, 0.8, 0.97), SURE, 0.95, FOLLOW),
    ((0.6, 0.46, 0.7), SURE, 0.6, FOLLOW),  # little, and most of what is possible
    ((0.7, 0.4, 0.85), SURE, 0.95, PARTLY),
    ((0.25, 0.05, 0.4), SURE, 0.95, WEAK),
    ((0.3, -0.1, 0.6), SURE, 0.95, UNDECIDED),
    ((0.0, -0.3, 0.3), SURE, 0.95, NO),
    ((-0.8, -0.9, -0.7), SURE, 0.95, NO),
    ((0.0, -0.3, 0.3), Interval(0.2, -0.1, 0.5), 0.58, UNKNOWABLE),
    ((0.5, 0.2, 0.8), Interval(0.2, -0.1, 0.5), 0.58, PARTLY),
    ((np.nan,) * 3, SURE, 0.95, UNDECIDED),
    ((np.nan,) * 3, UNTOLD, 1.0, UNKNOWABLE),
    ((0.5, 0.2, 0.8), UNTOLD, 1.0, PARTLY),
    ((0.9, 0.8, 0.97), None, None, FOLLOW),
    ((0.6, 0.46, 0.7), None, None, PARTLY),
]


@pytest.mark.parametrize(("found", "agreeing", "ceiling", "level"), LEVELS)
def test_levels_of_trust(found, agreeing, ceiling, level):
    found = Interval(*found)
    ceiling = None if ceiling is None else Interval(ceiling, ceiling - 0.1, ceiling + 0.01)
    assert comparison.trust(found, agreeing, ceiling) == level
    said = report.sentence(level, "single", found, 24, agreeing, ceiling, ["it rains"])
    assert said.endswith("; it rains.")
    assert said.count(". ") == 0, "one sentence"
    assert "24 candidates" in said
    assert "nan" not in said
    assert ("is not known" in said) == (agreeing is None)
