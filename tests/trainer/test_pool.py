"""The pool against a model of it in sets, and every message for a wrong index."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import DataError
from trainer.pool import Pool


@st.composite
def pools(draw):
    examples = draw(st.integers(2, 40))
    labelled = draw(st.integers(1, examples))
    return Pool.initial(examples, labelled, np.random.default_rng(draw(st.integers(0, 99))))


@given(pools())
def test_a_pool_is_a_partition(pool):
    together = [*pool.labelled, *pool.unlabelled]
    assert sorted(together) == list(range(pool.examples))
    assert np.all(np.diff(pool.unlabelled) > 0)
    assert pool.labelled.dtype == pool.unlabelled.dtype == np.int64


@given(pools(), st.data())
def test_acquiring_moves_exactly_what_was_queried_and_keeps_the_order(pool, data):
    query = data.draw(st.permutations(pool.unlabelled.tolist()))
    query = query[: data.draw(st.integers(0, len(query)))]
    after = pool.acquire(query)
    assert after.labelled.tolist() == pool.labelled.tolist() + query
    assert set(after.unlabelled.tolist()) == set(pool.unlabelled.tolist()) - set(query)
    assert after.examples == pool.examples


@given(pools(), st.integers(1, 50), st.integers(0, 9))
def test_candidates_are_ascending_unlabelled_and_as_many_as_asked(pool, subset, seed):
    chosen = pool.candidates(subset, np.random.default_rng(seed))
    assert len(chosen) == min(subset, len(pool.unlabelled))
    assert set(chosen.tolist()) <= set(pool.unlabelled.tolist())
    assert np.all(np.diff(chosen) > 0)
    again = pool.candidates(subset, np.random.default_rng(seed))
    assert np.array_equal(chosen, again)


@given(pools(), st.data())
def test_acquiring_one_by_one_ends_like_acquiring_at_once(pool, data):
    query = data.draw(st.permutations(pool.unlabelled.tolist()))
    stepwise = pool
    for index in query:
        stepwise = stepwise.acquire([index])
    at_once = pool.acquire(query)
    assert np.array_equal(stepwise.labelled, at_once.labelled)
    assert np.array_equal(stepwise.unlabelled, at_once.unlabelled)


def test_the_initial_draw_is_uniform():
    rng = np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(2000):
        counts[Pool.initial(10, 3, rng).labelled] += 1
    # Each index is drawn 600 times; the standard deviation is sqrt(2000 · .3 · .7) = 20.5.
    assert np.abs(counts - 600).max() < 5 * 20.5


def test_all_candidates_are_a_copy_that_may_be_written_to():
    pool = Pool.of(5, [3])
    everything = pool.candidates(None, np.random.default_rng(0))
    everything[:] = 0
    assert pool.unlabelled.tolist() == [0, 1, 2, 4]


def test_a_pool_cannot_be_written_to_and_leaves_its_input_writeable():
    labelled, unlabelled = np.array([2]), np.array([0, 1])
    pool = Pool(labelled, unlabelled)
    with pytest.raises(ValueError, match="read-only"):
        pool.labelled[0] = 1
    labelled[0] = 1
    assert pool.labelled.tolist() == [2]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([1, 7, 3], r"2 of 3 queried images are labelled already: 7, 3\..*dataset-level"),
        ([0, 1, 0], r"indices are repeated: 0\. Each image is labelled once"),
        ([0, 10, -1], r"2 of 3 indices are out of range: 10, -1; .* 10 images, 0 to 9"),
        ([0.0, 1.0], r"must be integers and are float64 \(0\.0, 1\.0\)"),
        ([True, False], r"must be integers and are bool .*np\.flatnonzero"),
        ([[0, 1]], r"shape \(1, 2\); a flat list"),
        (list(range(9)), r"9 images are to be labelled and 8 are unlabelled: .*larger than the p"),
        (["a"], r"must be integers"),
    ],
)
def test_a_wrong_query_is_refused_with_its_indices(query, message):
    pool = Pool.of(10, [7, 3])
    with pytest.raises(DataError, match=message):
        pool.acquire(query)


def test_only_the_first_offending_indices_are_shown():
    with pytest.raises(DataError, match=r"20 of 20 .*: 50, .* 59 and 10 more; the data set"):
        Pool.of(10, range(50, 70))


@pytest.mark.parametrize("labelled", [0, 11, -1])
def test_an_impossible_initial_size_is_refused(labelled):
    with pytest.raises(DataError, match=rf"{labelled} images are to .* from 1 to 10"):
        Pool.initial(10, labelled, np.random.default_rng(0))


def test_an_empty_labelled_set_is_refused():
    with pytest.raises(DataError, match="labelled set is empty; label at least one"):
        Pool.of(10, [])


def test_arrays_that_are_no_partition_are_refused():
    with pytest.raises(DataError, match="each index from 0 to 2 exactly once"):
        Pool(np.array([0, 1]), np.array([1]))


def test_a_subset_of_none_is_refused():
    with pytest.raises(DataError, match="subset is 0; at least 1 candidate"):
        Pool.of(10, [1]).candidates(0, np.random.default_rng(0))
