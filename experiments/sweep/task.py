"""What is given to a worker and what it gives back; importing this imports nothing that computes.

A process that does as it is told starts in a moment, and loads what its work needs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from experiments.studies.study import Config

State = Literal["done", "failed", "held"]


@dataclass(frozen=True)
class Task:
    """A trial and where it is carried out; it pickles.

    Attributes:
        key: of the trial.
        config: its settings, with its own directory, data directory and device in them.
    """

    key: str
    config: "Config"

    @property
    def folder(self) -> Path:
        """The directory of the trial's record."""
        return self.config.run_folder


class Outcome(NamedTuple):
    """How a trial ended.

    Attributes:
        key: of the trial.
        state: done, failed, or held: nothing was done, for another process is at it.
        seconds: wall seconds, of this attempt.
        message: of a failure, or of who holds it, in one line; else empty.
        noted: whether it stands in the trial's own record already.
    """

    key: str
    state: State
    seconds: float
    message: str = ""
    noted: bool = True
