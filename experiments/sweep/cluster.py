"""The executor of many machines: a worker wherever a Ray cluster has room, and what is lost redone.

From tasks to their outcomes, whatever becomes of the machines on the way.
"""

import dataclasses
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from experiments.sweep.crew import Crew
from experiments.sweep.executor import Event, Work
from experiments.sweep.hand import Token
from experiments.sweep.machines import Machines, Need
from experiments.sweep.task import Task
from pipelines.config import DATA_DIR_VARIABLE


class Cluster:
    """Carries tasks out on the machines of a Ray cluster, each in a process that lasts."""

    def __init__(self, root: Path, address: str, need: Need, workers: int | None = None):
        """Connect to a cluster.

        Args:
            root: the sweep's folder; machines that see it work in it, others send records back.
            address: of the cluster, as `ray.init` takes it: auto, HOST:PORT, or local for one that
                is made of this machine and ends with this process.
            need: what a worker takes of a machine.
            workers: how many at most; None takes all that there is room for.

        Raises:
            PipelineError: Ray is not installed, there is no cluster at this address, or none of
                its machines has room for a worker.
        """
        self._root, self._limit = root.absolute(), workers
        self._machines = Machines(address, need)

    @property
    def workers(self) -> int:
        """How many tasks are carried out at once, with the machines that there are now."""
        room = sum(machine.room for machine in self._machines.now())
        return max(1, room if self._limit is None else min(room, self._limit))

    def __call__(self, tasks: Sequence[Task], work: Work) -> Iterator[Event]:
        """See `experiments.sweep.executor.Executor`.

        A machine that is lost has its trials done elsewhere; a trial whose process dies is tried
        once more. A machine with another ntk-lookahead than this one is left alone.

        Raises:
            PipelineError: no machine can be used.
            OSError: a record cannot be put in place.
        """
        sent = [_with_data(task) for task in tasks]
        with (
            _token(self._root) as token,
            closing(Crew(self._machines, work, token, sent, self._limit)) as crew,
        ):
            yield from crew.work()


@contextmanager
def _token(root: Path) -> Iterator[Token]:
    """In the sweep's folder while it is worked in."""
    root.mkdir(parents=True, exist_ok=True)
    text = secrets.token_hex(16)
    path = root / f".sweep-{text[:8]}"
    path.write_text(text, "utf-8")
    try:
        yield Token(path, text)
    finally:
        path.unlink(missing_ok=True)


def _with_data(task: Task) -> Task:
    """The task with the data's folder as this machine has it, for machines that name none."""
    data = task.config.data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or "data")
    return Task(task.key, dataclasses.replace(task.config, data_dir=data.absolute()))
