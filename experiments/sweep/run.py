"""Carry out the trials of a study that are not on record, and show how far they are."""

import functools
import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import jax
import torch
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from experiments.approximation import report as approximation
from experiments.approximation.run import measure as measure_approximation
from experiments.dynamics import report as dynamics
from experiments.dynamics.run import measure as measure_dynamics
from experiments.studies.study import kind_of
from experiments.sweep.cluster import on_cluster
from experiments.sweep.executors import (
    Event,
    Executor,
    Job,
    Notice,
    Outcome,
    Started,
    divide,
    inline,
    processes,
)
from experiments.sweep.plan import Planned, SweepConfig, job_of, plan, to_do
from experiments.sweep.records import is_held, rounds_at, write_note
from experiments.sweep.shared import FirstTrainings, read_dataset
from pipelines import run
from pipelines.audit import report as audit
from pipelines.audit.run import measure as measure_audit
from pipelines.config import RunConfig, identity
from pipelines.core.record import HeldError
from pipelines.core.terminal import EXPECTED
from pipelines.sequential import run as sequential
from trainer.errors import lookup

_PAUSE = 2.0  # seconds between two looks at trials that another process works on


def sweep(
    config: SweepConfig, executor: Executor | None = None, console: Console | None = None
) -> list[Planned]:
    """Carry out the trials of a study that are not on record.

    A trial that another process works on is left to it, and waited for at the end.

    Args:
        config: what to do.
        executor: what carries the trials out; by default the one that the settings name.
        console: where progress is shown; nothing is shown without one.

    Returns:
        The trials, each done or failed.

    Raises:
        UnknownNameError, PipelineError: nothing could be begun; what fails later is in the record
            of its trial.
        KeyboardInterrupt: the same sweep goes on where this one was.
    """
    executor, console = executor or executor_of(config), console or Console(quiet=True)
    rows = plan(config)
    left = to_do(config, rows)
    while left:
        jobs = {row.trial.key: job_of(row, config) for row in left}
        held = set()
        with Progress(left, console) as progress:
            for event in executor(list(jobs.values()), carry_out):
                if isinstance(event, Outcome):
                    if not event.noted:
                        write_note(jobs[event.key], event)
                    if event.state == "held":
                        held.add(event.key)
                progress.update(event)
        if held:
            console.print(f"{len(held)} trials are held by another process: waiting.")
            while all(is_held(jobs[key].folder) for key in held):
                time.sleep(_PAUSE)
        rows = plan(config)
        left = [row for row in to_do(config, rows) if row.trial.key in held]
    return rows


def _processes(config: SweepConfig) -> Executor:
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    return functools.partial(processes, shares=divide(config.workers, gpus, os.environ))


EXECUTORS: Mapping[str, Callable[[SweepConfig], Executor]] = MappingProxyType(
    {
        "inline": lambda config: inline,
        "processes": _processes,
        "ray": lambda config: functools.partial(on_cluster, config=config),
    }
)


def executor_of(config: SweepConfig) -> Executor:
    """The executor that the settings name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return lookup(EXECUTORS, config.executor, "executor")(config)


def carry_out(job: Job) -> Outcome:
    """Do what is left of a trial, and note in its directory how it ended.

    A failure is an outcome, with its traceback in the trial's own record; only an interruption is
    raised.

    Raises:
        KeyboardInterrupt: the trial goes on when it is carried out again.
        OSError: how it ended cannot be written.
    """
    began, message, trace = time.time(), "", None
    try:
        first = None if job.shared is None else FirstTrainings(job.shared)
        _CARRY_OUT[kind_of(job.config)](job.config, first)
    except HeldError as error:  # what is in the directory is the other's to write
        return Outcome(job.key, "held", time.time() - began, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other trials go on
        name = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
        message = (f"{name}{error}".strip().splitlines() or [type(error).__name__])[0]
        trace = traceback.format_exc()
    finally:
        # programs compiled for a network go with it; an equal one finds them on disk
        jax.clear_caches()
        gc.collect()
    outcome = Outcome(job.key, "failed" if trace else "done", time.time() - began, message)
    write_note(job, outcome, trace)
    return outcome


def _run(config: Any, first: FirstTrainings | None) -> None:
    run.run(config, first=first, read_dataset=lambda: read_dataset(config))


def _sequential(config: Any, first: FirstTrainings | None) -> None:
    sequential.run(config, first=first, read_dataset=lambda: read_dataset(config))


_CARRY_OUT: Mapping[str, Callable[[Any, FirstTrainings | None], None]] = MappingProxyType(
    {
        "run": _run,
        "sequential": _sequential,
        "audit": lambda config, _: audit.write(measure_audit(config)),
        "dynamics": lambda config, _: dynamics.write(measure_dynamics(config)),
        "approximation": lambda config, _: approximation.write(measure_approximation(config)),
    }
)


class Progress:
    """Trials done and under way: bars on a terminal, a line for each event elsewhere."""

    def __init__(self, rows: Sequence[Planned], console: Console):
        """Of a sweep that has begun nothing yet."""
        self._rows = {row.trial.key: row for row in rows}
        self._console = console
        self._running: dict[str, TaskID] = {}
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Rounds(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._trials = self._bars.add_task("trials", total=len(rows))

    def __enter__(self) -> "Progress":
        """Show it."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show it no more."""
        self._bars.stop()

    def update(self, event: Event) -> None:
        """Show what has happened."""
        match event:
            case Started(key, worker):
                row = self._rows[key]
                words = f"{row.name} ({worker})"
                is_run = isinstance(row.trial.config, RunConfig)
                total = identity(row.trial.config)["cycles"] + 1 if is_run else None
                self._running[key] = self._bars.add_task(words, total=total, path=row.path)
                if not self._console.is_terminal:
                    self._print(f"begun    {words}")
            case Notice(text):
                self._print(text)
            case Outcome():
                if event.key in self._running:
                    self._bars.remove_task(self._running.pop(event.key))
                self._bars.advance(self._trials)
                seconds = timedelta(seconds=round(event.seconds))
                words = f"{event.state:8} {self._rows[event.key].name}, {seconds}"
                self._print(f"{words}: {event.message}" if event.message else words)

    def _print(self, text: str) -> None:
        if not self._console.is_terminal:
            trials = self._bars.tasks[self._trials]
            text = f"{text} [{trials.completed:g}/{trials.total:g} trials]"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Rounds(ProgressColumn):
    """Completed and planned rounds of a trial under way, counted on disk; trials of the sweep."""

    def render(self, task: Task) -> Text:
        if "path" in task.fields:
            task.completed = rounds_at(task.fields["path"])
        return Text(f"{task.completed:g} of {task.total:g}" if task.total else "")
