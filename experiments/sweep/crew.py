"""The workers of one sweep on a cluster: which trial each has in hand, and what becomes of it.

From tasks, and machines that come and go, to one outcome for each task.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from experiments.sweep.away import Away
from experiments.sweep.carry import note
from experiments.sweep.executor import Event, Said, Started, Tick, Work
from experiments.sweep.hand import Token
from experiments.sweep.hired import Hired, Lost, Raised
from experiments.sweep.installed import installed
from experiments.sweep.machines import Machines
from experiments.sweep.parcel import Files
from experiments.sweep.task import Outcome, Task
from pipelines.errors import PipelineError
from pipelines.record import HeldError, only_writer

_TICK = 1.0  # seconds between two looks at the machines
_PATIENCE = 60.0  # seconds for the end of a process on a machine that was lost
_DEATHS = 2  # of its process that a trial is given
_LOSSES = 3  # of its machine: a trial may be what takes them down


class Crew:
    """Workers, and the tasks that they share."""

    def __init__(
        self, machines: Machines, work: Work, token: Token, tasks: Sequence[Task], limit: int | None
    ):
        """Of nobody yet; see `experiments.sweep.cluster.Cluster` for the arguments."""
        self._machines, self._token, self._limit = machines, token, limit
        self._work = machines.share(work)  # once for all workers
        self._waiting = deque(tasks)
        self._hired: list[Hired] = []
        self._away: dict[str, Away] = {}
        self._deaths: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._own = installed()
        self._alone = False  # whether it was said that there is no machine

    def work(self) -> Iterator[Event]:
        """Until each task has ended.

        Raises:
            PipelineError: no machine can be used.
            OSError: a record cannot be put in place.
        """
        while self._waiting or any(hired.task for hired in self._hired):
            yield from self._hire()
            for hired in self._hired:
                if hired.idle and self._waiting:
                    yield from self._give(hired, self._waiting.popleft())
            heard = self._machines.heard(self._hired, _TICK)
            if heard is None:
                away = [hired for hired in self._hired if not hired.in_place]
                yield Tick(self._machines.rounds(away))
            elif heard.host is None:
                yield from self._greet(heard)
            elif heard.task is not None:
                yield from self._hear(heard, heard.task)

    def close(self) -> None:
        """End all workers, whatever they are at."""
        self._machines.end(self._hired)
        for away in self._away.values():
            away.close()

    def _hire(self) -> Iterator[Event]:
        """As many workers as there is room and work for."""
        busy = sum(hired.task is not None for hired in self._hired)
        wanted = len(self._waiting) + busy
        wanted = wanted if self._limit is None else min(wanted, self._limit)
        if wanted <= len(self._hired):
            return
        for place in self._machines.places(self._hired, wanted - len(self._hired)):
            self._hired.append(self._machines.hire(place, self._work, self._token))
        if not self._hired and not self._alone:
            yield Said("no machine of the cluster has room for a worker; waiting for one")
        self._alone = not self._hired

    def _greet(self, hired: Hired) -> Iterator[Event]:
        """A worker says where it is; one that would compute other things is sent away.

        Raises:
            PipelineError: no machine is left that could be used.
        """
        match hired.answer:
            case Lost(machine=True):
                self._dismiss(hired)
                yield Said(f"{hired.name} was lost")
            case Lost() as lost:
                self._dismiss(hired)
                if self._machines.died(hired.node):
                    yield self._refuse(hired, f"workers end there before they begin: {lost.short}")
            case Raised(words):
                yield self._refuse(hired, f"a worker cannot begin there: {words}")
            case host if host.installed[:2] != self._own[:2]:
                yield self._refuse(hired, f"it has {host.installed.own}, here is {self._own.own}")
            case host:
                hired.host = host
                if host.installed.libraries != self._own.libraries:
                    theirs, own = (", ".join(of.libraries) for of in (host.installed, self._own))
                    yield Said(f"{hired.name} has {theirs}, here is {own}: digits may differ")

    def _refuse(self, hired: Hired, why: str) -> Said:
        """Use a machine no more.

        Raises:
            PipelineError: it was the last.
        """
        for one in [one for one in self._hired if one.node == hired.node and one.host is None]:
            self._dismiss(one)
        self._machines.refuse(hired.node)
        text = f"{hired.name} is not used: {why}"
        if not self._hired and not self._machines.now():
            raise PipelineError(
                f"no machine of the cluster can be used. {text}. Install the same ntk-lookahead "
                "on all machines, and start Ray on them again."
            )
        return Said(text)

    def _give(self, hired: Hired, task: Task) -> Iterator[Event]:
        files: Files = {}
        if not hired.in_place:
            try:
                away = self._away[task.key] = Away(task.folder)
            except HeldError as error:
                yield Outcome(task.key, "held", 0.0, str(error))
                return
            files = away.files
        lost_before = self._deaths[task.key] + self._losses[task.key]
        hired.give(task, files, _PATIENCE if lost_before else 0.0)
        yield Started(task.key, hired.name)

    def _hear(self, hired: Hired, task: Task) -> Iterator[Event]:
        """A worker says how its trial ended, or is lost."""
        match hired.answer:
            case Lost() as lost:
                yield from self._mourn(hired, task, lost)
            case Raised(words, trace):
                yield from self._fail(hired, task, words, trace)
            case outcome, files:
                if task.key in self._away:
                    self._away[task.key].put(files)
                self._let_go(hired, task)
                yield outcome

    def _mourn(self, hired: Hired, task: Task, lost: Lost) -> Iterator[Event]:
        """A trial whose worker is no more is tried again, unless it seems to be the cause."""
        count, most = (self._losses, _LOSSES) if lost.machine else (self._deaths, _DEATHS)
        what = f"{hired.name} was lost" if lost.machine else f"a process on {hired.name} died"
        count[task.key] += 1
        if count[task.key] < most:
            yield Said(f"{what}; its trial is tried again")
            self._waiting.appendleft(task)
            self._let_go(hired, task)
        else:
            message = f"{what}, and it was attempt {most} of this trial: {lost.short}"
            yield from self._fail(hired, task, message, lost.text)
        self._dismiss(hired)

    def _fail(self, hired: Hired, task: Task, message: str, trace: str) -> Iterator[Event]:
        """A trial ends without an outcome of its own."""
        line = " ".join(message.split())
        outcome = Outcome(task.key, "failed", time.monotonic() - hired.since, line)
        try:
            if task.key in self._away:
                note(task, outcome, trace)
            else:
                with only_writer(task.folder):
                    note(task, outcome, trace)
        except HeldError as error:  # what is in the directory is the other's to write
            yield Said(str(error))
        self._let_go(hired, task)
        yield outcome

    def _let_go(self, hired: Hired, task: Task) -> None:
        if task.key in self._away:
            self._away.pop(task.key).close()
        hired.rest()

    def _dismiss(self, hired: Hired) -> None:
        self._hired.remove(hired)
        self._machines.end([hired])
