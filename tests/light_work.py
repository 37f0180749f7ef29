"""Work for processes that starts in a moment: what each task does is in its name."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from experiments.sweep.processes import Processes
from experiments.sweep.shares import cores_here, shares
from experiments.sweep.task import Outcome, Task


@dataclass(frozen=True)
class Place:
    run_folder: Path


class Unreadable:
    """Pickles, and nothing can be made of it."""

    def __reduce__(self):
        return int, ("not a number",)


def task(folder: Path, name: str) -> Task:
    return Task(name, Place(folder / name))  # type: ignore[arg-type]


def work(task: Task) -> Outcome:
    folder, does = task.folder, task.key.split("-")[0]
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
    return Outcome(task.key, "done", 0.0, told)


def processes(count: int) -> Processes:
    return Processes(shares(count, cores_here(), (), os.environ))


def carry_out_endless(folder: Path) -> None:
    for _ in processes(2)([task(folder, name) for name in ("stay-0", "stay-1")], work):
        pass
