"""One worker on some machine: trials carried out in the sweep's folder, or in one of its own.

From a task that names places on the driver's machine to the record of the trial, in place where
this machine sees the sweep's folder, else as files that are sent back.
"""

import dataclasses
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweep.executor import Work
from experiments.sweep.installed import Installed, installed
from experiments.sweep.parcel import Files, pack, unpack
from experiments.sweep.recorded import SHARED, rounds_at
from experiments.sweep.task import Outcome, Task
from experiments.sweep.worker import Worker
from pipelines.config import DATA_DIR_VARIABLE

_PAUSE = 0.5  # seconds between two looks at a directory that another process holds


class Token(NamedTuple):
    """A file that the driver writes, by which a machine knows the sweep's folder.

    Attributes:
        path: of the file, on the driver's machine.
        text: its content, which nobody guesses.
    """

    path: Path
    text: str

    def seen(self) -> bool:
        """Whether this machine has the same file at the same path."""
        try:
            return self.path.read_text("utf-8") == self.text
        except (OSError, ValueError):
            return False


class Host(NamedTuple):
    """The machine that a worker is on.

    Attributes:
        name: for people.
        installed: what it would compute with.
        in_place: whether it sees the sweep's folder.
    """

    name: str
    installed: Installed
    in_place: bool


class Hand:
    """Carries out trial after trial in one process, with one copy of what it works with."""

    def __init__(self, work: Work, token: Token):
        """Look where this is.

        Args:
            work: what is done with a task.
            token: by which the sweep's folder is known.
        """
        self._scratch = None if token.seen() else Path(tempfile.mkdtemp(prefix="ntk-lookahead-"))
        if self._scratch is not None and isinstance(work, Worker):
            work = work.elsewhere(self._scratch / SHARED)
        self._work = work
        self._folder: Path | None = None

    def host(self) -> Host:
        """Of this worker."""
        return Host(platform.node(), installed(), self._scratch is None)

    def do(self, task: Task, so_far: Files, patience: float) -> tuple[Outcome, Files]:
        """Carry out a trial.

        Args:
            task: as the driver has it.
            so_far: the record as the driver has it; not looked at where this machine sees it.
            patience: seconds to wait for a process that holds the trial's directory, such as one
                on a machine that was lost and has not ended yet.

        Returns:
            How it ended; and the record, empty where it lies in place.
        """
        if self._scratch is None:
            return self._tried(_on_this_machine(task, task.folder), patience), {}
        self._folder = self._scratch / task.folder.name
        try:
            unpack(self._folder, so_far)
            outcome = self._tried(_on_this_machine(task, self._folder), patience)
            return outcome, pack(self._folder)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def rounds(self) -> int:
        """Completed rounds of the trial under way, of a worker that does not work in place."""
        return rounds_at(self._folder)

    def close(self) -> None:
        """Remove what this worker wrote elsewhere than in the sweep's folder."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _tried(self, task: Task, patience: float) -> Outcome:
        end = time.monotonic() + patience
        while True:
            outcome = self._work(task)
            if outcome.state != "held" or time.monotonic() >= end:
                return outcome
            time.sleep(_PAUSE)


def _on_this_machine(task: Task, folder: Path) -> Task:
    """The task with the record's directory, and the data where this machine's user has them."""
    changes: dict[str, Any] = {"run": folder}
    # a person's own images are named by their path; data sets lie in a folder of each machine
    if os.environ.get(DATA_DIR_VARIABLE) and task.config.dataset != "images":
        changes["data_dir"] = None
    return Task(task.key, dataclasses.replace(task.config, **changes))
