"""What a sequential run leaves on disk: the record of a run, and a line for every answer.

An answer is on the disk before it is absorbed and before the next question; what follows from it
(accuracy, drift) is added to its line with the next write. Every file is replaced whole.
"""

import json
from pathlib import Path
from typing import Any

from bridge.atomic import replace
from pipelines import record
from pipelines.config import completed
from pipelines.errors import PipelineError
from pipelines.record import Run
from pipelines.sequential.config import GROWING

ANSWERS = "answers.jsonl"


class Journal:
    """A run directory of the sequential mode.

    Attributes:
        run: configuration, environment, and one line for each training.
        answers: one object for each answer or image set aside, in order.
    """

    def __init__(self, run: Run, answers: list[dict[str, Any]]):
        """Of what was read; see `open_journal` and `read`."""
        self.run = run
        self.answers = answers

    def add(self, line: dict[str, Any]) -> None:
        """Write an answer to the disk.

        Raises:
            OSError: it cannot be written; it is not in the journal then.
        """
        self._write([*self.answers, line])
        self.answers.append(line)

    def follow(self, entries: dict[str, Any]) -> None:
        """Add what follows from the last answer; written with the next one, or by `flush`."""
        self.answers[-1] |= entries

    @property
    def unfollowed(self) -> bool:
        """Whether the process was ended before it knew what follows from the last answer."""
        last = self.answers[-1] if self.answers else {"round": None}
        return last["round"] is not None and "drift" not in last

    def take_back(self) -> None:
        """Remove the last answer from the disk."""
        self._write(self.answers[:-1])
        self.answers.pop()

    def flush(self) -> None:
        """Write what follows from the last answer."""
        self._write(self.answers)

    def train(self, line: dict[str, Any]) -> None:
        """Add a training, whose weights are on the disk."""
        self.flush()
        self.run = record.append(self.run, line)

    @property
    def given(self) -> list[dict[str, Any]]:
        """The answers that count against the budget: labels given since the first training."""
        return [line for line in self.answers if line["label"] is not None and _asked(line)]

    def of_round(self, number: int | None) -> list[dict[str, Any]]:
        """Answers and images set aside after a training; None: before the first."""
        return [line for line in self.answers if line["round"] == number]

    def _write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        replace(self.run.path / ANSWERS, text.encode())


def _asked(line: dict[str, Any]) -> bool:
    return line["round"] is not None


def open_journal(path: Path, config: dict[str, Any]) -> Journal:
    """Start a run in a directory, or take up the one that is there.

    Args:
        path: the directory, made if it is not there.
        config: what is asked for now; a larger budget than before goes on.

    Raises:
        PipelineError: the directory holds a run made with other settings, or other files.
    """
    if (path / record.CONFIG).is_file():
        found = read(path)
        new = {"format": record.FORMAT, **json.loads(json.dumps(config))}
        old, now = (
            {key: value for key, value in config.items() if key not in GROWING}
            for config in (completed(found.run.config), new)
        )
        differing = record.differences(old, now)
        if differing and (found.answers or found.run.rounds):
            raise PipelineError(
                f"{path} holds a run made with other settings: {'; '.join(differing)}. Go on with "
                "those that it was started with, or give --run another directory."
            )
        replace(path / record.CONFIG, (json.dumps(new, indent=1) + "\n").encode())
    return Journal(record.open_run(path, config, completed), read(path).answers)


def read(path: Path) -> Journal:
    """Read a run directory, complete or not.

    Raises:
        PipelineError: it is not one, or one of its files cannot be understood.
    """
    run = record.read(path)
    file = path / ANSWERS
    if not file.is_file():
        return Journal(run, [])
    try:
        answers = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        numbers = [line["number"] for line in answers]
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{file} cannot be understood ({error!r}). The run writes it whole or not at all, so "
            "something else changed it: restore it, or start in a new directory."
        ) from error
    if numbers != list(range(len(answers))):
        raise PipelineError(f"{file} does not hold answers 0, 1, 2, … in order; it was edited.")
    return Journal(run, answers)
