"""Coreset: golden values of scikit-activeml, brute force, covering radius, memory."""

import tracemalloc

import numpy as np
import pytest
from skactiveml.pool import k_greedy_center

from pipelines.query import query
from pipelines.strategies.coreset import farthest
from trainer.networks import build
from trainer.predict import find_head, predictions

POINTS = np.array([[0, 0], [1, 0], [5, 0], [0, 4], [9, 9]], float)


def literal(labelled, candidates, batch):
    """Distances to all centres, formed anew for every pick, in float64."""
    centres, picks, scores = list(labelled), [], []
    for _ in range(batch):
        gaps = np.linalg.norm(candidates[:, None] - np.array(centres)[None], axis=2).min(1)
        gaps[picks] = -1
        picks.append(int(gaps.argmax()))
        scores.append(gaps.max())
        centres.append(candidates[picks[-1]])
    return picks, scores


def test_golden():
    found = farthest(POINTS[:1], POINTS[1:], 3, np.random.default_rng(0))
    assert (found.positions + 1).tolist() == [4, 2, 3]


@pytest.mark.parametrize(
    ("labelled", "candidates", "width", "batch"),
    [(1, 5, 2, 5), (3, 30, 4, 10), (150, 40, 7, 12)],
)
def test_against_brute_force_and_scikit_activeml(labelled, candidates, width, batch, rng):
    known = rng.normal(size=(labelled, width)).astype(np.float32)
    open_ = rng.normal(size=(candidates, width)).astype(np.float32)
    found = farthest(known, open_, batch, rng)
    picks, scores = literal(known.astype(float), open_.astype(float), batch)
    assert found.positions.tolist() == picks
    np.testing.assert_allclose(np.sqrt(found.distances[picks]), scores, rtol=1e-9)
    given = np.concatenate([known, open_]).astype(float)
    answers = np.where(np.arange(len(given)) < labelled, 0.0, np.nan)
    theirs, _ = k_greedy_center(given, answers, batch_size=batch, random_state=0)
    assert (theirs - labelled).tolist() == picks


def test_ties_are_broken_by_the_generator_and_none_is_taken_twice():
    alike = np.ones((6, 3))
    found = [farthest(alike[:2], alike, 6, np.random.default_rng(seed)) for seed in range(6)]
    orders = {tuple(one.positions) for one in found}
    assert len(orders) > 1
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert all(one.distances.tolist() == [0] * 6 for one in found)


def test_a_query_covers_and_says_how_well(rng):
    images = rng.normal(size=(25, 1, 6, 6)).astype(np.float32)
    network = build("cnn", (1, 6, 6), 3, np.random.default_rng(1))
    labelled = {0: 0, 9: 1, 17: 2}
    result = query(network, images, labelled, 5, "coreset")
    features = predictions(network, images, find_head(network, images)).features.astype(float)
    centres = features[[*labelled, *result.indices]]
    gaps = np.linalg.norm(features[:, None] - centres[None], axis=2).min(1)
    np.testing.assert_allclose(result.diagnostics["radius"], gaps.max(), rtol=1e-4)
    assert (np.diff(result.scores) <= 0).all()
    everything = query(network, images, labelled, 22, "coreset")
    assert everything.diagnostics["radius"] == 0


def test_memory_is_that_of_the_features(rng):
    labelled, candidates = rng.normal(size=(3000, 16)), rng.normal(size=(2000, 16))
    tracemalloc.start()
    farthest(labelled, candidates, 5, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 64 * 8 * 6  # all distances at once would be 48 MB, and several of them
