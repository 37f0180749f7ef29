"""A study carried out: what is on record is passed over, what failed does not stop the rest.

From settings to the records of all trials, and how each of them ended.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments.studies import find
from experiments.sweep.carry import note
from experiments.sweep.config import SweepConfig
from experiments.sweep.executor import Executor, Said, Started, Tick
from experiments.sweep.plan import Planned, chosen, planned, task_of
from experiments.sweep.progress import Progress
from experiments.sweep.recorded import SHARED
from experiments.sweep.remaining import Durations
from experiments.sweep.task import Outcome
from experiments.sweep.worker import Worker
from pipelines.record import HeldError, only_writer

_PAUSE = 2.0  # seconds between two looks at trials that another process works on


class Summary(NamedTuple):
    """What a sweep came to.

    Attributes:
        done: trials that are complete.
        failed: trials that failed, now or before.
    """

    done: tuple[Planned, ...]
    failed: tuple[Planned, ...]


def plan(config: SweepConfig) -> list[Planned]:
    """The trials that the settings ask for, with what is on record of each.

    Raises:
        UnknownNameError, PipelineError: a study, size or trial that is not there, or a setting of
            the study that is refused.
    """
    trials = find(config.study).trials(config.size)
    return planned(chosen(trials, config.only), config.runs)


def to_do(config: SweepConfig, rows: Sequence[Planned]) -> list[Planned]:
    """Those that a sweep carries out."""
    return [
        row
        for row in rows
        if row.state in ("absent", "begun") or (row.state == "failed" and config.retry)
    ]


def sweep(config: SweepConfig, executor: Executor, console: Console | None = None) -> Summary:
    """Carry out the trials of a study that are not on record.

    Args:
        config: what to do.
        executor: what carries the trials out.
        console: where progress is shown; nothing is shown without one.

    Raises:
        UnknownNameError, PipelineError: nothing could be begun; what fails later is in the record
            of its trial.
        KeyboardInterrupt: the same sweep goes on where this one was.
    """
    console = console or Console(quiet=True)
    rows = plan(config)
    left = to_do(config, rows)
    while left:
        durations = Durations.on_record(rows)
        with Progress(left, executor.workers, durations, console) as progress:
            held = _carried_out(config, left, executor, progress)
        if held:
            console.print(f"{len(held)} trials are in the hands of another process: waiting.")
            _wait([row for row in left if row.trial.key in held])
        rows = plan(config)
        left = [row for row in to_do(config, rows) if row.trial.key in held]
    return Summary(
        tuple(row for row in rows if row.state == "done"),
        tuple(row for row in rows if row.state == "failed"),
    )


def _carried_out(
    config: SweepConfig, rows: Sequence[Planned], executor: Executor, progress: Progress
) -> set[str]:
    """Keys of the trials that could not be carried out because another process does."""
    tasks = {row.trial.key: task_of(row, config) for row in rows}
    held = set()
    shared = (config.runs / SHARED).absolute() if config.share else None
    for event in executor(list(tasks.values()), Worker(shared)):
        match event:
            case Started(key, worker):
                progress.started(key, worker)
            case Said(text):
                progress.say(text)
            case Tick(rounds):
                progress.know(rounds)
            case Outcome():
                if not event.noted:
                    note(tasks[event.key], event)
                progress.ended(event)
                if event.state == "held":
                    held.add(event.key)
    return held


def _wait(rows: Sequence[Planned]) -> None:
    """Until another process has let go of one of them."""
    while all(_held(row.path) for row in rows):
        time.sleep(_PAUSE)


def _held(path: Path) -> bool:
    try:
        with only_writer(path):
            return False
    except HeldError:
        return True
