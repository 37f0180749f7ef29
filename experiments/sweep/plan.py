"""What a sweep has to do: each trial of a study once, where its record lies, how far it has come.

From a study and a folder of records to tasks.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from experiments.studies.study import Trial
from experiments.sweep.config import SweepConfig
from experiments.sweep.recorded import Standing, recorded, state
from experiments.sweep.task import Task
from pipelines.errors import PipelineError


class Planned(NamedTuple):
    """A trial and its record.

    Attributes:
        trial: the first of those that compute the same.
        path: directory of its record; where it will be, if there is none.
        state: how far it has come.
    """

    trial: Trial
    path: Path
    state: Standing


def planned(trials: Iterable[Trial], root: Path) -> list[Planned]:
    """Each trial once, in their order; those that compute the same are one."""
    once: dict[str, Trial] = {}
    for trial in trials:
        once.setdefault(trial.key, trial)
    found = recorded(root, once.values())
    rows = []
    for key, trial in once.items():
        path = found.get(key)
        # absolute: a worker may have another working directory
        rows.append(Planned(trial, (path or root / trial.folder).absolute(), state(trial, path)))
    return rows


def chosen(trials: Sequence[Trial], patterns: Sequence[str]) -> list[Trial]:
    """Those that one of the patterns is of (see `SweepConfig.only`); all, without patterns.

    Raises:
        PipelineError: a pattern that is of none.
    """
    for pattern in patterns:
        if not any(_is_of(pattern, trial) for trial in trials):
            subjects = dict.fromkeys(trial.subject for trial in trials)
            arms = dict.fromkeys(trial.arm for trial in trials)
            raise PipelineError(
                f"no trial is of {pattern!r}: give a subject ({', '.join(subjects)}), an arm "
                f"({', '.join(arms)}), or SUBJECT/ARM or SUBJECT/ARM/seedN; * stands for anything."
            )
    return [
        trial
        for trial in trials
        if not patterns or any(_is_of(pattern, trial) for pattern in patterns)
    ]


def task_of(one: Planned, config: SweepConfig) -> Task:
    """The trial with where it is recorded, where its data are, and what it runs on."""
    data = None if config.data_dir is None else config.data_dir.absolute()
    settings = dataclasses.replace(
        one.trial.config,
        run=one.path,
        data_dir=data,
        download=config.download,
        device=config.device,
    )
    return Task(one.trial.key, settings)


def _is_of(pattern: str, trial: Trial) -> bool:
    names = (trial.subject, trial.arm, f"{trial.subject}/{trial.arm}")
    seed = f"seed{trial.seed}"
    return any(
        fnmatchcase(name.lower(), pattern.lower())
        for name in (*names, *(f"{name}/{seed}" for name in names))
    )
