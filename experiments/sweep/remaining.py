"""How long trials take, from those that have ended, and how a time is written for people."""

from collections.abc import Iterable
from statistics import fmean

from experiments.studies.study import Trial
from experiments.sweep.carry import read_note
from experiments.sweep.plan import Planned


class Durations:
    """Seconds of trials that have ended, by what they have in common with those that have not."""

    def __init__(self):
        """Of none."""
        self._seconds: dict[tuple[str | None, str | None], list[float]] = {}

    @classmethod
    def on_record(cls, rows: Iterable[Planned]) -> "Durations":
        """Of the trials that are complete, all attempts together."""
        found = cls()
        for row in rows:
            note = read_note(row.path) if row.state == "done" else None
            if note is not None:
                found.add(row.trial, sum(attempt["seconds"] for attempt in note["attempts"]))
        return found

    def add(self, trial: Trial, seconds: float) -> None:
        """One more has ended."""
        for key in _keys(trial):
            self._seconds.setdefault(key, []).append(seconds)

    def of(self, trial: Trial) -> float | None:
        """What a trial is expected to take: the mean of those that are most like it."""
        near = next((self._seconds[key] for key in _keys(trial) if key in self._seconds), None)
        return None if near is None else fmean(near)


def _keys(trial: Trial) -> tuple[tuple[str | None, str | None], ...]:
    """What it has in common with others, the most telling first."""
    return (trial.subject, trial.arm), (None, trial.arm), (trial.subject, None), (None, None)


def clock(seconds: float) -> str:
    """Such as 8 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
