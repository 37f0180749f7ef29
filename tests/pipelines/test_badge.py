"""BADGE: golden values, brute force with the embeddings formed, and what others got wrong."""

import numpy as np
import pytest
from scipy.stats import chisquare

from pipelines.query import query
from pipelines.strategies.badge import Embeddings, kmeans_plus_plus, odds
from pipelines.strategies.options import QueryOptions
from trainer.networks import build
from trainer.predict import find_head, predictions


def literal(probabilities, features):
    """(onehot ŷ − p) ⊗ h, one long row an image, in float64."""
    error = np.eye(probabilities.shape[1])[probabilities.argmax(1)] - probabilities
    return (error[:, :, None] * np.asarray(features, np.float64)[:, None]).reshape(len(error), -1)


def case(rng, images, classes, width):
    return rng.dirichlet(np.ones(classes), images), rng.normal(size=(images, width))


def test_golden_first_pick_and_odds_of_the_second():
    state = np.random.RandomState(0)  # noqa: NPY002 - the golden values are of this generator
    p, h = state.dirichlet(np.ones(3), 6), state.randn(6, 2)
    embeddings = Embeddings.of(p, h)
    assert embeddings.squares.argmax() == 3
    assert kmeans_plus_plus(embeddings, 1, np.random.default_rng(0)).positions.tolist() == [3]
    second = [0.26118, 0.14338, 0.14533, 0, 0.27679, 0.17331]
    np.testing.assert_allclose(odds(embeddings.distances_to(3)), second, atol=5e-6)


@pytest.mark.parametrize("shape", [(7, 2, 1), (12, 4, 5), (9, 30, 3), (15, 3, 40)])
def test_distances_and_draws_are_those_of_the_embeddings_themselves(shape, rng):
    p, h = case(rng, *shape)
    embeddings, formed = Embeddings.of(p, h), literal(p, h)
    np.testing.assert_allclose(embeddings.squares, (formed**2).sum(1), rtol=1e-12)
    for place in range(3):
        gaps = ((formed - formed[place]) ** 2).sum(1)
        np.testing.assert_allclose(embeddings.distances_to(place), gaps, rtol=1e-9, atol=1e-13)
    batch = 6
    found = kmeans_plus_plus(embeddings, batch, np.random.default_rng(7))
    same = np.random.default_rng(7)
    expected = [int(same.choice(np.flatnonzero((formed**2).sum(1) == (formed**2).sum(1).max())))]
    scores = {expected[0]: (formed[expected[0]] ** 2).sum()}
    for _ in range(batch - 1):
        gaps = ((formed[:, None] - formed[expected][None]) ** 2).sum(2).min(1)
        left = np.setdiff1d(np.arange(len(formed)), expected)
        pick = int(left[same.choice(len(left), p=gaps[left] / gaps[left].sum())])
        expected.append(pick)
        scores[pick] = gaps[pick]
    assert found.positions.tolist() == expected
    np.testing.assert_allclose(found.distances[expected], [scores[i] for i in expected], rtol=1e-9)


def test_the_origin_is_no_centre():
    """A pick far from the first and near the origin is as likely as its distance says."""
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    h = np.array([[10.0, 0.0], [0.1, 0.0], [10.0, 0.1]])  # the second nearly at the origin
    drawn = [
        kmeans_plus_plus(Embeddings.of(p, h), 2, np.random.default_rng(seed)).positions[1]
        for seed in range(20)
    ]
    assert drawn == [1] * 20  # the third is first, and the first is beside it


def test_draws_follow_their_odds(rng):
    p, h = case(rng, 6, 3, 4)
    embeddings = Embeddings.of(p, h)
    expected = odds(embeddings.distances_to(int(embeddings.squares.argmax())))
    seconds = [
        kmeans_plus_plus(embeddings, 2, np.random.default_rng([5, s])).positions[1]
        for s in range(2000)
    ]
    counts = np.bincount(seconds, minlength=6)
    open_ = expected > 0
    assert counts[~open_].sum() == 0
    assert chisquare(counts[open_], 2000 * expected[open_]).pvalue > 1e-3


def test_no_point_twice_even_when_all_are_alike(rng):
    p, h = case(rng, 1, 3, 4)
    alike = Embeddings.of(np.repeat(p, 5, 0), np.repeat(h, 5, 0))
    orders = {
        tuple(kmeans_plus_plus(alike, 5, np.random.default_rng(s)).positions) for s in range(8)
    }
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(orders) > 1  # the generator breaks the ties
    certain = Embeddings.of(np.eye(3)[[0, 1, 2, 0]], rng.normal(size=(4, 2)))  # every g is 0
    assert sorted(kmeans_plus_plus(certain, 4, np.random.default_rng(0)).positions) == [0, 1, 2, 3]


def test_duplicates_in_float32_are_at_no_distance(rng):
    p, h = case(rng, 4, 5, 64)
    h = (100 * h).astype(np.float32)
    twice = Embeddings.of(np.concatenate([p, p]), np.concatenate([h, np.nextafter(h, h + 1)]))
    assert all(twice.distances_to(place)[place + 4] == 0 for place in range(4))


def test_the_norm_is_that_of_scikit_activeml(rng):
    """‖g‖² = ‖q‖²‖h‖²: what its 1.0.1 gets right, as its first pick."""
    p, h = case(rng, 20, 4, 6)
    formed = literal(p, h)
    first = kmeans_plus_plus(Embeddings.of(p, h), 1, np.random.default_rng(0)).positions[0]
    assert first == (formed**2).sum(1).argmax()


@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
def test_a_query_by_the_rule_of_its_loss(loss, rng):
    images = rng.normal(size=(20, 1, 6, 6)).astype(np.float32)
    network = build("cnn", (1, 6, 6), 4, np.random.default_rng(1))
    result = query(network, images, {2: 0, 5: 1}, 4, "badge", options=QueryOptions(loss=loss))
    logits, features = predictions(network, images, find_head(network, images))
    if loss == "l2":
        from kernel.simplex import simplex_projection as rule
    else:
        from scipy.special import softmax

        rule = lambda rows: softmax(np.asarray(rows, np.float64), axis=1)
    squares = (literal(rule(logits), features) ** 2).sum(1)
    squares[[2, 5]] = -1
    assert result.indices[0] == squares.argmax()
    np.testing.assert_allclose(result.scores[0], squares.max(), rtol=1e-5)
    assert len(set(result.indices.tolist())) == 4


def test_a_hundred_classes_take_no_product_of_classes_and_width(rng):
    import tracemalloc

    p, h = case(rng, 2000, 100, 64)  # the embeddings themselves would take 100 MB
    tracemalloc.start()
    kmeans_plus_plus(Embeddings.of(p, h), 5, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
