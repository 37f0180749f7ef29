"""One trial carried out in its directory, and how it ended written beside its record.

From a task that can be sent to any process or machine to an outcome that can be sent back.
"""

import json
import os
import platform
import time
import traceback
from pathlib import Path
from typing import Any

from bridge.weights import replace
from experiments.studies.study import kind_of
from experiments.sweep.kinds import do
from experiments.sweep.shared import FirstTrainings
from experiments.sweep.task import Outcome, Task
from pipelines.cli import EXPECTED
from pipelines.json_io import plain
from pipelines.record import NOTE, HeldError

FORMAT = 1


def carry_out(task: Task, first: FirstTrainings | None = None) -> Outcome:
    """Do what is left of a trial, and write in its directory how it ended.

    A failure is an outcome, with its traceback in the trial's own record; only an interruption is
    raised.

    Args:
        task: what to do.
        first: where first trainings are kept for other runs that begin with them; None for none.

    Raises:
        KeyboardInterrupt: the trial goes on when it is carried out again.
        OSError: how it ended cannot be written.
    """
    began, message, trace = time.time(), "", None
    try:
        do(task.config, first)
    except HeldError as error:  # what is in the directory is the other's to write
        return Outcome(task.key, "held", time.time() - began, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other trials go on
        name = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
        message = (f"{name}{error}".strip().splitlines() or [type(error).__name__])[0]
        trace = traceback.format_exc()
    outcome = Outcome(task.key, "failed" if trace else "done", time.time() - began, message)
    note(task, outcome, trace)
    return outcome


def note(task: Task, outcome: Outcome, trace: str | None = None) -> None:
    """Add an ending to the trial's record.

    Args:
        task: what was to be done.
        outcome: how it ended.
        trace: the traceback of a failure.

    Raises:
        OSError: it cannot be written.
    """
    path = task.folder / NOTE
    before = read_note(task.folder) or {"attempts": []}
    attempt = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": outcome.seconds,
        "host": platform.node(),
        "process": os.getpid(),
        "state": outcome.state,
        "message": outcome.message,
        "traceback": trace,
    }
    content = {
        "format": FORMAT,
        "key": task.key,
        "kind": kind_of(task.config),
        "settings": task.config.record(),
        "state": outcome.state,
        "attempts": [*before["attempts"], attempt],
    }
    task.folder.mkdir(parents=True, exist_ok=True)
    replace(path, (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode())


def read_note(folder: Path) -> dict[str, Any] | None:
    """How the trial in this directory ended the last time; None where nothing is written of it.

    One that cannot be understood counts as none: it says nothing that the record does not.
    """
    try:
        found = json.loads((folder / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and found.get("format") == FORMAT and "attempts" in found
    return found if known else None
