"""What one worker keeps from trial to trial; a copy of it is sent to each process that works."""

import gc

import jax

from pipelines.sweep.carry import Outcome, Task, carry_out


class Worker:
    """Carries out trial after trial in one process."""

    def __call__(self, task: Task) -> Outcome:
        """Carry out a task, and let go of what the next has no use for."""
        try:
            return carry_out(task)
        finally:
            # compiled programs hold memory, and those of another network serve nobody; the next
            # trial of the same finds them on disk
            jax.clear_caches()
            gc.collect()
