"""Jobs in several processes: cores divided, those that are killed replaced, none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from experiments.sweep.executors import Event, Job, Notice, Outcome, Started, divide
from tests.experiments.light_work import Unreadable, carry_out, job

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


def carried_out(folder: Path, names: Iterable[str], count: int = 2) -> list[Event]:
    return list(carry_out([job(folder, name) for name in names], count))


def outcomes(events: Iterable[Event]) -> dict[str, Outcome]:
    found = [event for event in events if isinstance(event, Outcome)]
    assert len({outcome.key for outcome in found}) == len(found)
    return {outcome.key: outcome for outcome in found}


def ended(pid: int) -> bool:
    """Whether there is no such process, or only its exit status is left."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_for(condition, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.05)


def test_each_job_is_carried_out_once_by_workers_that_live_on(tmp_path):
    names = [f"tell-{number}" for number in range(6)]
    events = carried_out(tmp_path, names)
    assert set(outcomes(events)) == set(names)
    begun = [event.key for event in events if isinstance(event, Started)]
    assert begun == names
    pids = {outcome.message.split()[0] for outcome in outcomes(events).values()}
    assert 1 <= len(pids) <= 2
    assert not {str(os.getpid())} & pids
    for name in names:
        assert len(list((tmp_path / name).iterdir())) == 1
    assert all(ended(int(pid)) for pid in pids)


def test_no_more_workers_than_jobs(tmp_path):
    events = carried_out(tmp_path, ["tell-0"], count=3)
    assert [event.worker for event in events if isinstance(event, Started)] == ["worker 1"]
    assert carried_out(tmp_path, []) == []


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be bound")
def test_workers_are_bound_to_their_cores(tmp_path):
    here = sorted(os.sched_getaffinity(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        found = outcomes(carried_out(tmp_path, ["tell-0"], count=1))["tell-0"].message.split()
    assert found[1:] == [str(len(here)), ",".join(map(str, here))]


def test_a_killed_worker_is_replaced_and_its_job_tried_once_more(tmp_path):
    events = carried_out(tmp_path, ["die-0", "once-0", "tell-0", "tell-1", "tell-2"])
    found = outcomes(events)
    assert {name: one.state for name, one in found.items()} == {
        "die-0": "failed",
        "once-0": "done",
        "tell-0": "done",
        "tell-1": "done",
        "tell-2": "done",
    }
    assert not found["die-0"].noted
    assert "ended 2 times (signal 9, its last words: out of luck)" in found["die-0"].message
    tried = [event.key for event in events if isinstance(event, Started)]
    assert {name: tried.count(name) for name in found} == {
        "die-0": 2,
        "once-0": 2,
        "tell-0": 1,
        "tell-1": 1,
        "tell-2": 1,
    }
    assert sum("is tried again" in event.text for event in events if isinstance(event, Notice)) == 2


def test_the_last_job_may_be_the_one_that_kills(tmp_path):
    found = outcomes(carried_out(tmp_path, ["tell-0", "die-0"], count=1))
    assert (found["tell-0"].state, found["die-0"].state) == ("done", "failed")


def pids(folder: Path, *names: str) -> list[int]:
    return [int(file.name) for name in names for file in folder.glob(f"{name}/*")]


def test_what_a_worker_raises_is_raised_and_ends_all(tmp_path):
    with pytest.raises(OSError, match="no room"):
        carried_out(tmp_path, ["stay-0", "raise-0"])
    assert pids(tmp_path, "raise-0")
    wait_for(lambda: all(ended(pid) for pid in pids(tmp_path, "stay-0", "raise-0")))


def test_a_job_that_cannot_be_read_is_no_reason_to_wait(tmp_path):
    unreadable = Job("tell-0", Unreadable())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a number"):
        list(carry_out([unreadable], 1))


def test_to_close_it_ends_all(tmp_path):
    events = carry_out([job(tmp_path, name) for name in ("stay-0", "stay-1")], 2)
    next(events)
    next(events)
    wait_for(lambda: len(pids(tmp_path, "stay-0", "stay-1")) == 2)
    events.close()  # type: ignore[attr-defined]
    assert all(ended(pid) for pid in pids(tmp_path, "stay-0", "stay-1"))


def test_workers_end_with_a_sweep_that_is_killed(tmp_path):
    code = "import sys, pathlib; from tests.experiments.light_work import carry_out_endless\n"
    code += "carry_out_endless(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    wait_for(lambda: len(pids(tmp_path, "stay-0", "stay-1")) == 2)
    workers = pids(tmp_path, "stay-0", "stay-1")
    assert not any(ended(pid) for pid in workers)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: all(ended(pid) for pid in workers))


@pytest.mark.parametrize(
    ("workers", "cores", "expected"),
    [
        (1, (0, 1), [{0, 1}]),
        (2, (0, 1), [{0}, {1}]),
        (2, (2, 3, 8), [{2}, {3, 8}]),
        (3, (0, 1), [{0}, {0}, {1}]),
        (3, range(8), [{0, 1}, {2, 3, 4}, {5, 6, 7}]),
    ],
)
def test_cores_are_divided(workers, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    found = divide(workers, 0, {}, cores)
    assert [set(share.cores) for share in found] == expected
    threads = [share.environment["OMP_NUM_THREADS"] for share in found]
    assert threads == [str(len(own)) for own in expected]


def test_gpus_go_round_and_what_the_user_set_stays():
    given = {"OMP_NUM_THREADS": "5", "MINE": "x", "CUDA_VISIBLE_DEVICES": "4,7"}
    found = divide(3, 2, given, (0, 1, 2))
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in found] == ["4", "7", "4"]
    assert {share.environment["OMP_NUM_THREADS"] for share in found} == {"5"}
    assert {share.environment["MINE"] for share in found} == {"x"}
    assert {share.environment["XLA_PYTHON_CLIENT_PREALLOCATE"] for share in found} == {"false"}
    unnamed = divide(2, 2, {}, (0, 1))
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in unnamed] == ["0", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in divide(1, 0, {}, (0,))[0].environment


def test_how_many_workers_there_are_by_default():
    counts = [len(divide(None, 0, {}, range(cores))) for cores in (1, 2, 3, 4, 16)]
    assert counts == [1, 2, 2, 2, 8]
    assert len(divide(None, 4, {}, range(16))) == 4
