"""What carries trials out, and what it tells while it does.

An executor takes tasks in the order given and a worker's function, and yields what happens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from experiments.sweep.task import Outcome, Task

Work = Callable[[Task], Outcome]
"""What a worker does with a task; it pickles, and one copy serves a worker for all of its tasks."""


class Started(NamedTuple):
    """A worker has begun with a task, perhaps for the second time.

    Attributes:
        key: of the task.
        worker: which one, for people.
    """

    key: str
    worker: str


class Said(NamedTuple):
    """Something a person should know that is no outcome, such as a worker that was lost.

    Attributes:
        text: one line.
    """

    text: str


@dataclass(frozen=True)
class Tick:
    """A moment in which nothing ended.

    Attributes:
        rounds: completed rounds by key, of tasks whose records do not lie here yet; those of other
            tasks are counted on disk.
    """

    rounds: Mapping[str, int] = field(default_factory=dict)


Event = Started | Said | Outcome | Tick


class Executor(Protocol):
    """Carries out tasks, several at once or not."""

    @property
    def workers(self) -> int:
        """How many tasks are carried out at once, at most; the remaining time is told by it."""
        ...

    def __call__(self, tasks: Sequence[Task], work: Work) -> Iterator[Event]:
        """Carry out each task once, in about the order given.

        There is one `Outcome` for each task, whatever happens to the process or machine that
        carries it out, and a `Started` before it. A generator: when it is closed, by Ctrl-C for
        one, whatever it started is ended.

        Args:
            tasks: what to do; no two have the same folder.
            work: see `Work`.
        """
        ...
