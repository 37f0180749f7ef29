"""The settings of a sweep, and which trials of its study they leave to do."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from experiments.studies import find
from experiments.studies.study import SIZES, Trial
from experiments.sweep.executors import Job
from experiments.sweep.records import ROOT, SHARED, State, find_records, state
from pipelines.config import DATA_DIR_VARIABLE
from pipelines.core.errors import PipelineError
from trainer.errors import lookup


@dataclass(frozen=True)
class SweepConfig:
    """Carry out the trials of a study that are not on record yet.

    Attributes:
        study: a name of `experiments.studies.STUDIES`, or your own as module:STUDY.
        size: small, which two CPU cores answer within hours, or paper, the paper's own protocol.
        executor: inline: in this process, one trial after another; processes: several at once on
            this machine; ray: as many at once as the machines of a cluster have room for.
        workers: how many trials are carried out at once, by executors that can; by default as many
            as there are GPUs, or else half as many as there are cores, here or in the cluster.
        address: of the Ray cluster: auto for the one that this machine belongs to, HOST:PORT, or
            local for one that is made of this machine and ends with the sweep.
        cpus: cores that the ray executor gives to a trial.
        gpus: GPUs that it gives to a trial, or a share of one; by default one, if the device is not
            cpu and a machine of the cluster has any.
        runs: folder of the records; trials recorded in it at any depth are not done again.
        data_dir: folder of the data sets; by default the variable NTK_DATA_DIR, then ./data.
        download: fetch a data set into data_dir when it is not there and can be fetched.
        device: where networks are trained; auto takes a GPU if there is one.
        only: which trials, by patterns such as mnist, mlmoc, mnist/ml*, mnist/*/seed0: a task, a
            method, or task/method, perhaps with /seedN, in capitals or not; any of them will do.
            None takes all.
        retry: try trials again that failed at an earlier sweep.
        share: train the first network of a seed once, for all trials that begin with it.
        dry_run: print what there is to do, and stop.
    """

    study: Annotated[str, tyro.conf.Positional]
    size: str = "small"
    executor: str = "inline"
    workers: int | None = None
    address: str = "auto"
    cpus: float = 2.0
    gpus: float | None = None
    runs: Path = ROOT
    data_dir: Path | None = None
    download: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    only: tuple[str, ...] = ()
    retry: bool = True
    share: bool = True
    dry_run: bool = False

    def __post_init__(self):
        """Check values that are wrong whatever the study.

        Raises:
            UnknownNameError: an unknown size.
            PipelineError: a number out of range.
        """
        lookup(dict.fromkeys(SIZES), self.size, "size")
        if self.workers is not None and self.workers < 1:
            raise PipelineError(f"workers must be 1 or more, not {self.workers}.")
        if self.cpus <= 0 or (self.gpus or 0) < 0:
            raise PipelineError(
                f"a trial cannot have {self.cpus:g} cores and {self.gpus or 0:g} GPUs: give cpus a "
                "number above 0 and gpus 0 or more."
            )


class Planned(NamedTuple):
    """A trial and its record.

    Attributes:
        trial: the first of those that compute the same.
        path: absolute directory of its record; where it will be, if there is none.
        state: how far it has come.
    """

    trial: Trial
    path: Path
    state: State

    @property
    def name(self) -> str:
        """Such as `MNIST 14×14/mlmoc/seed0`."""
        return f"{self.trial.task}/{self.trial.method}/seed{self.trial.seed}"


def plan(config: SweepConfig) -> list[Planned]:
    """The trials that the settings ask for, with what is on record of each.

    Raises:
        UnknownNameError, PipelineError: a study or trial that is not there, or a setting of the
            study that is refused.
    """
    trials = find(config.study).trials(config.size)
    return locate(select(trials, config.only), config.runs)


def locate(trials: Iterable[Trial], root: Path) -> list[Planned]:
    """Each trial once, in their order, with its record; trials of equal keys are one."""
    unique: dict[str, Trial] = {}
    for trial in trials:
        unique.setdefault(trial.key, trial)
    found = find_records(root, unique.values())
    return [
        Planned(
            trial,
            (found.get(key) or root / trial.folder).absolute(),
            state(trial, found.get(key)),
        )
        for key, trial in unique.items()
    ]


def to_do(config: SweepConfig, rows: Sequence[Planned]) -> list[Planned]:
    """Trials that are neither done nor failed, or failed and may be tried again."""
    states = ("absent", "begun", "failed") if config.retry else ("absent", "begun")
    return [row for row in rows if row.state in states]


def select(trials: Sequence[Trial], patterns: Sequence[str]) -> list[Trial]:
    """Trials that match any of the patterns (see `SweepConfig.only`); all, without patterns.

    Raises:
        PipelineError: a pattern that matches none.
    """
    for pattern in patterns:
        if not any(_matches(pattern, trial) for trial in trials):
            tasks = dict.fromkeys(trial.task for trial in trials)
            methods = dict.fromkeys(trial.method for trial in trials)
            raise PipelineError(
                f"no trial is of {pattern!r}: give a task ({', '.join(tasks)}), a method "
                f"({', '.join(methods)}), or TASK/METHOD or TASK/METHOD/seedN; * stands for "
                "anything."
            )
    return [
        trial
        for trial in trials
        if not patterns or any(_matches(pattern, trial) for pattern in patterns)
    ]


def _matches(pattern: str, trial: Trial) -> bool:
    names = (trial.task, trial.method, f"{trial.task}/{trial.method}")
    return any(
        fnmatchcase(name.lower(), pattern.lower())
        for name in (*names, *(f"{name}/seed{trial.seed}" for name in names))
    )


def job_of(row: Planned, config: SweepConfig) -> Job:
    """The trial with the folders and the device that it is carried out with."""
    # absolute: a worker may have another working directory
    data = Path(config.data_dir or os.environ.get(DATA_DIR_VARIABLE) or "data").absolute()
    settings = dataclasses.replace(
        row.trial.config,
        run=row.path,
        data_dir=data / (row.trial.config.data_dir or ""),
        download=config.download,
        device=config.device,
    )
    return Job(row.trial.key, settings, (config.runs / SHARED).absolute() if config.share else None)
