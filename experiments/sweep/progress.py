"""How far a sweep is, for a person: a board that is kept up to date, or lines where none can be.

From what the executor tells and the rounds counted on disk to trials, rounds and remaining time.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.studies.study import Trial
from experiments.sweep.plan import Planned
from experiments.sweep.recorded import rounds_at
from experiments.sweep.remaining import Durations, clock
from experiments.sweep.task import Outcome
from pipelines.config import RunConfig

_SHOWN = 16  # trials under way that are shown one by one


@dataclass(frozen=True)
class _Running:
    row: Planned
    worker: str
    began: float


class Progress:
    """Shown while it is entered.

    Attributes:
        done: trials that ended well in this sweep.
        failed: that did not.
    """

    def __init__(
        self, rows: Sequence[Planned], workers: int, durations: Durations, console: Console
    ):
        """Of a sweep that has begun nothing yet.

        Args:
            rows: what it has to do.
            workers: how many are carried out at once.
            durations: what trials took that are on record.
            console: a terminal is shown a board, anything else a line for each event.
        """
        self.done = self.failed = 0
        self._rows = {row.trial.key: row for row in rows}
        self._workers, self._durations, self._console = workers, durations, console
        self._rounds_of = {row.trial.key: _rounds_of(row.trial) for row in rows}
        self._running: dict[str, _Running] = {}
        self._ended: set[str] = set()
        self._known: dict[str, int] = {}
        self._began = time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=self._board,
            refresh_per_second=1,
            transient=True,
            auto_refresh=console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        """Show it."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show it no more."""
        if self._console.is_terminal:
            self._live.stop()

    def started(self, key: str, worker: str) -> None:
        """A worker has begun with a trial."""
        self._running[key] = _Running(self._rows[key], worker, time.monotonic())
        if not self._console.is_terminal:
            self._tell(f"begun    {name_of(self._rows[key].trial)} ({worker})")

    def ended(self, outcome: Outcome) -> None:
        """A trial has ended."""
        row = self._rows[outcome.key]
        self._running.pop(outcome.key, None)
        self._ended.add(outcome.key)
        if outcome.state == "done":
            self.done += 1
            self._durations.add(row.trial, outcome.seconds)
        elif outcome.state == "failed":
            self.failed += 1
        words = f"{outcome.state:8} {name_of(row.trial)}, {clock(outcome.seconds)}"
        self._tell(f"{words}: {outcome.message}" if outcome.message else words)

    def say(self, text: str) -> None:
        """Something that is no trial's ending."""
        self._tell(text)

    def know(self, rounds: Mapping[str, int]) -> None:
        """Completed rounds of trials whose records lie elsewhere."""
        self._known.update(rounds)

    def seconds_left(self) -> float | None:
        """Estimated; None while nothing has ended that it could be estimated from."""
        lasts = []
        for key, row in self._rows.items():
            if key in self._ended:
                continue
            whole = self._durations.of(row.trial)
            if whole is None:
                return None
            total = self._rounds_of[key]
            lasts.append(whole * (1 - self._rounds(row) / total if total else 1))
        if not lasts:
            return 0.0
        # no shorter than the longest of them, however many workers there are
        return max(sum(lasts) / self._workers, *lasts)

    def _rounds(self, row: Planned) -> int:
        key = row.trial.key
        if key in self._ended:
            return self._known.get(key, self._rounds_of[key])
        return max(self._known.get(key, 0), rounds_at(row.path))

    def _tell(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)
            return
        left = self.seconds_left()
        rest = "" if left is None else f", about {clock(left)} left"
        counts = f"[{len(self._ended)}/{len(self._rows)} trials{rest}]"
        self._console.print(f"{text} {counts}", highlight=False, markup=False, soft_wrap=True)

    def _board(self) -> RenderableType:
        rounds = sum(self._rounds(row) for row in self._rows.values())
        total = sum(self._rounds_of.values())
        left, passed = self.seconds_left(), time.monotonic() - self._began
        rest = "" if left is None else f" · about {clock(left)} left"
        line = Text(
            f"{len(self._ended)} of {len(self._rows)} trials · {self.failed} failed · "
            f"{rounds} of {total} rounds · {clock(passed)}{rest}"
        )
        table = Table.grid(padding=(0, 2))
        running = list(self._running.values())
        for one in running[:_SHOWN]:
            its = self._rounds_of[one.row.trial.key]
            far = f"round {self._rounds(one.row)} of {its}" if its else ""
            since = clock(time.monotonic() - one.began)
            table.add_row(*map(Text, (one.worker, name_of(one.row.trial), far, since)))
        more = len(running) - _SHOWN
        rest_of_them = [Text(f"and {more} more")] if more > 0 else []
        bar = Table.grid(expand=True)  # by itself a bar does not end its line
        bar.add_row(ProgressBar(total=max(total, 1), completed=rounds))
        return Group(line, bar, table, *rest_of_them)


def name_of(trial: Trial) -> str:
    """For people."""
    return f"{trial.subject}/{trial.arm}/seed{trial.seed}"


def _rounds_of(trial: Trial) -> int:
    """How many rounds a complete run has; 0 for what has no rounds."""
    return trial.config.record()["cycles"] + 1 if isinstance(trial.config, RunConfig) else 0
