"""Work for processes that starts in a moment: what each job does is in its name."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.sweep.executors import Event, Job, Outcome, divide, processes


@dataclass(frozen=True)
class Place:
    run_folder: Path


class Unreadable:
    """Pickles, and nothing can be made of it."""

    def __reduce__(self):
        return int, ("not a number",)


def job(folder: Path, name: str) -> Job:
    return Job(name, Place(folder / name))  # type: ignore[arg-type]


def work(job: Job) -> Outcome:
    folder, does = job.folder, job.key.split("-")[0]
    folder.mkdir(parents=True, exist_ok=True)
    attempts = len(list(folder.iterdir()))
    (folder / str(os.getpid())).touch()
    if does == "die" or (does == "once" and attempts == 0):
        sys.stderr.write("out of luck\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "raise":
        raise OSError("no room")
    if does == "stay":
        time.sleep(600)
    print("this is no answer")  # noqa: T201
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0)))) if does == "tell" else ""
    told = f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {cores}"
    return Outcome(job.key, "done", 0.0, told)


def carry_out(jobs: Sequence[Job], count: int) -> Iterator[Event]:
    return processes(jobs, work, divide(count, 0, os.environ))


def carry_out_endless(folder: Path) -> None:
    for _ in carry_out([job(folder, name) for name in ("stay-0", "stay-1")], 2):
        pass
