"""A worker on a machine of the cluster as the driver knows it: what it is at, what was asked of it.

From the handle of a remote object to the trial that it has in hand; Ray itself is not known here.
"""

import time
from typing import Any, NamedTuple

from experiments.sweep.hand import Host
from experiments.sweep.parcel import Files
from experiments.sweep.task import Task

_PAUSE = 1.0  # seconds between two attempts to reach a worker
_CUT = "Some common causes"  # what Ray says after this is the same every time


class Lost(NamedTuple):
    """A worker is no more.

    Attributes:
        machine: whether its machine is lost, and not its process alone.
        text: what Ray says of it.
    """

    machine: bool
    text: str

    @property
    def short(self) -> str:
        """In one line."""
        lines = [line.strip() for line in self.text.split(_CUT)[0].splitlines() if line.strip()]
        return lines[-1] if lines else "no reason is known"


class Raised(NamedTuple):
    """The code of a worker raised an exception where it should not.

    Attributes:
        words: its type and message.
        trace: its traceback, on the worker.
    """

    words: str
    trace: str


class Hired:
    """A worker.

    Attributes:
        actor: handle of the `Hand`.
        node, name: of its machine, for Ray and for people.
        host: what it said of itself; None while it has said nothing.
        task: what it has in hand.
        since: when that was given to it, by the monotonic clock.
        reference: what it was asked and has not answered.
        answer: what it said last, or `Raised`, or `Lost`.
        counting: the question after completed rounds that it has not answered.
    """

    def __init__(self, actor: Any, node: str, name: str):
        """Of a worker that is being started."""
        self.actor, self.node, self.name = actor, node, name
        self.host: Host | None = None
        self.task: Task | None = None
        self.since = time.monotonic()
        self.reference: Any = actor.host.remote()
        self.answer: Any = None
        self.counting: Any = None
        self._doubts: float | None = None  # since when it could not be reached
        self._again: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it can be given a task."""
        return self.host is not None and self.task is None

    @property
    def in_place(self) -> bool:
        """Whether it works in the sweep's folder, as far as is known."""
        return self.host is None or self.host.in_place

    @property
    def in_doubt(self) -> bool:
        """Whether it could not be reached when it was asked last."""
        return self._doubts is not None

    def give(self, task: Task, so_far: Files, patience: float) -> None:
        """Have it carry out a task (see `Hand.do`)."""
        self.task, self.since = task, time.monotonic()
        self.reference = self.actor.do.remote(task, so_far, patience)

    def rest(self) -> None:
        """It has nothing in hand any more."""
        self.task = None

    def doubted(self, most: float) -> bool:
        """It cannot be reached and is to be asked again; whether that has lasted long enough."""
        now = time.monotonic()
        self._doubts = now if self._doubts is None else self._doubts
        self._again, self.reference = now + _PAUSE, None
        return now - self._doubts > most

    def ask_again(self) -> None:
        """Ask whether it is there, if that is in doubt."""
        if self.in_doubt and self.reference is None and time.monotonic() >= self._again:
            self.reference = self.actor.rounds.remote()
