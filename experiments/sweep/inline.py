"""The executor of one process: this one, task after task."""

from collections.abc import Iterator, Sequence

from experiments.sweep.executor import Event, Started, Work
from experiments.sweep.task import Task


class Inline:
    """Carries tasks out here, one at a time, with all cores."""

    workers = 1

    def __call__(self, tasks: Sequence[Task], work: Work) -> Iterator[Event]:
        """Each task in turn; an interruption is raised where it happens."""
        for task in tasks:
            yield Started(task.key, "this process")
            yield work(task)
