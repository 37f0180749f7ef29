"""Work in several threads is handed over in order, never far ahead, and stops when it is left."""

import threading
import time

import numpy as np
import pytest

from kernel import plan as plan_module
from kernel.contract import sketches, sweep
from kernel.options import Request
from kernel.plan import Progress, in_order, plan, problem_of, shared
from tests.kernel.engine_networks import images, model
from tests.kernel.test_scratch import IMAGE


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_results_come_in_order(threads, count, rng):
    pauses = rng.uniform(0, 2e-3, count)

    def work(place: int) -> int:
        time.sleep(pauses[place])
        return place**2

    with in_order(work, range(count), threads) as results:
        assert list(results) == [(place, place**2) for place in range(count)]


def test_one_thread_is_the_caller():
    with in_order(lambda _: threading.get_ident(), range(3), 1) as results:
        assert {found for _, found in results} == {threading.get_ident()}


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_work_at_a_time_and_not_far_ahead(threads):
    meeting = threading.Barrier(threads)
    begun = []

    def work(place: int) -> int:
        begun.append(place)
        if place:
            meeting.wait(timeout=30)  # breaks unless so many are here together
        return place

    with in_order(work, range(1 + 4 * threads), threads) as results:
        for place, _ in results:
            assert len(begun) <= place + 1 + threads + 1
    assert sorted(begun) == list(range(1 + 4 * threads))


def test_the_first_is_worked_on_alone():
    begun = []

    def work(place: int) -> None:
        begun.append(place)

    with in_order(work, range(5), 3) as results:
        next(results)
        assert begun == [0]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_fails_is_raised_in_its_place(threads):
    def work(place: int) -> int:
        if place == 4:
            raise ValueError("four")
        return place

    seen = []

    def gather() -> None:
        with in_order(work, range(20), threads) as results:
            for place, _ in results:
                seen.append(place)  # noqa: PERF401 - what came before the failure is kept

    with pytest.raises(ValueError, match="four"):
        gather()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_early_begins_no_more(threads):
    begun = []

    def work(place: int) -> None:
        begun.append(place)

    with in_order(work, range(100), threads) as results:
        next(results)
        next(results)
    left = len(begun)
    assert left <= 2 + threads + 1
    time.sleep(0.01)
    assert len(begun) == left


def test_shares_of_a_chunk(monkeypatch):
    monkeypatch.setattr(plan_module, "cores", lambda: 4)
    assert [shared(chunk) for chunk in (1, 3, 4, 9, 32)] == [(1, 1), (3, 1), (4, 1), (4, 3), (4, 8)]


def test_cores_change_the_time_and_not_the_kernel(monkeypatch):
    found = {}
    request = Request("trace", precision="float64")
    for cores, chunk in ((1, 2), (2, 4), (3, 6)):  # shares of 2 all
        monkeypatch.setattr(plan_module, "cores", lambda cores=cores: cores)
        problem = problem_of(model("Words"), IMAGE, 9, 5, request)
        made = plan(problem, 1.0, chunk)
        told = Progress(problem, made, None)
        rng = np.random.default_rng(0)
        found[cores] = (
            *sweep(model("Words"), images(9), problem, made, told),
            *sketches(model("Words"), images(9), problem, 5, chunk, rng),
        )
    for cores in (2, 3):
        for ours, alone in zip(found[cores], found[1], strict=True):
            np.testing.assert_array_equal(ours, alone)
