"""Work on several threads is handed over in order, never far ahead, and stops when it is left."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from kernel import plan as plan_module
from kernel.contract import contract, map_in_order, sketches
from kernel.options import Request
from kernel.plan import Progress
from tests.kernel.engine_networks import images, model
from tests.kernel.sharded_worker import plan_for


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_results_come_in_order(threads, count, rng):
    pauses = rng.uniform(0, 2e-3, count)

    def work(start: int) -> int:
        time.sleep(pauses[start])
        return start**2

    found = list(map_in_order(work, range(count), threads))
    assert found == [(start, start**2) for start in range(count)]


def test_one_thread_is_the_caller():
    found = map_in_order(lambda _: threading.get_ident(), range(3), 1)
    assert {thread for _, thread in found} == {threading.get_ident()}


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_work_at_a_time_and_not_far_ahead(threads):
    meeting = threading.Barrier(threads)
    begun = []

    def work(start: int) -> int:
        begun.append(start)
        if start:
            meeting.wait(timeout=30)  # breaks unless so many are here together
        return start

    for start, _ in map_in_order(work, range(1 + 4 * threads), threads):
        # the first, which compiles, is worked on alone
        assert len(begun) <= (start + 1 + threads + 1 if start else 1)
    assert sorted(begun) == list(range(1 + 4 * threads))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_fails_is_raised_in_its_place(threads):
    def work(start: int) -> int:
        if start == 4:
            raise ValueError("four")
        return start

    seen = []

    def gather() -> None:
        for start, _ in map_in_order(work, range(20), threads):
            seen.append(start)  # noqa: PERF401 - what came before the failure is kept

    with pytest.raises(ValueError, match="four"):
        gather()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_early_begins_no_more(threads):
    begun = []

    def work(start: int) -> None:
        begun.append(start)

    results = map_in_order(work, range(100), threads)
    next(results)
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    left = len(begun)
    assert left <= 2 + threads + 1
    time.sleep(0.01)
    assert len(begun) == left


def test_cores_change_the_time_and_not_the_kernel(monkeypatch):
    found = {}
    for cores, chunk in ((1, 2), (2, 4), (3, 6)):  # shares of 2 all
        monkeypatch.setattr(plan_module, "cores", lambda cores=cores: cores)
        request = Request("trace", precision="float64", chunk=chunk)
        whole, sketched = (
            plan_for(model("Words"), images(9), request, 5),
            plan_for(model("Words"), images(9), replace(request, sketch=5), 9),
        )
        rng, own = np.random.default_rng(0), (model("Words"), images(9))
        found[cores] = (
            *contract(*own, whole, Progress(whole, None), None),
            *sketches(*own, sketched, rng, None, None),
        )
    for cores in (2, 3):
        for ours, alone in zip(found[cores], found[1], strict=True):
            np.testing.assert_array_equal(ours, alone)
