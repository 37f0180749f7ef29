"""The named stages of a round: how long each took, how much memory it peaked at, how far it is.

One object notes all three, so that the code of a round says only `with stages("kernel")`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
_TEXT = 24  # characters of a stage's own words that leave the bar its place
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Stages:
    """Seconds and peak memory by stage, and a progress bar while one runs.

    Attributes:
        seconds: wall seconds of each stage so far, in the order of their first start.
        peak_memory_mib: the largest resident memory of the process during each stage, in MiB
            (empty where the system does not tell).
    """

    def __init__(self, console: Console | None = None):
        """Start with no stage; without a console nothing is shown."""
        self.seconds: dict[str, float] = {}
        self.peak_memory_mib: dict[str, float] = {}
        self._console = console

    @contextmanager
    def __call__(self, name: str) -> Iterator[Advance]:
        """Run a stage; yields `advance(done, total, text="")` for its progress."""
        started = time.perf_counter()
        _reset_peak()
        try:
            with self._bar(name) as advance:
                yield advance
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            peak = _peak_mib()
            if peak is not None:
                self.peak_memory_mib[name] = max(self.peak_memory_mib.get(name, 0.0), peak)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        if self._console is None or not self._console.is_terminal:
            yield lambda done, total, text="": None
            return
        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task: TaskID = progress.add_task(name, total=None, text="")

            def advance(done: float, total: float, text: str = "") -> None:
                progress.update(task, completed=done, total=total, text=text[:_TEXT])

            yield advance


def _reset_peak() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        _RESET.write_text("5")  # 5: forget the peak of resident memory, see proc(5)
    except OSError:  # not allowed here: the peak is then that of the whole process
        return


def _peak_mib() -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
