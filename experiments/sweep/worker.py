"""What one worker keeps from trial to trial; a copy of it is sent to each process that works."""

import gc
from pathlib import Path

import jax

from experiments.sweep.carry import carry_out
from experiments.sweep.shared import FirstTrainings
from experiments.sweep.task import Outcome, Task


class Worker:
    """Carries out trial after trial in one process, with data sets kept in memory between them."""

    def __init__(self, shared: Path | None = None):
        """Before it has done anything it pickles.

        Args:
            shared: folder where first trainings are kept for other trials; None shares none.
        """
        self._first = None if shared is None else FirstTrainings(shared)

    def elsewhere(self, shared: Path) -> "Worker":
        """The same for a machine that does not see the folder, which has one of its own."""
        return Worker(None if self._first is None else shared)

    def __call__(self, task: Task) -> Outcome:
        """Carry out a task, and let go of what the next has no use for."""
        try:
            return carry_out(task, self._first)
        finally:
            # programs compiled for a network go with it; an equal one finds them on disk
            jax.clear_caches()
            gc.collect()
