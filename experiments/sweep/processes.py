"""The executor of several processes on this machine, each with its own cores and GPU.

A worker lives from trial to trial. One that is killed is replaced; the trial it had is tried once
more and then counts as failed.
"""

import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from experiments.sweep.executor import Event, Said, Started, Tick, Work
from experiments.sweep.shares import Share
from experiments.sweep.task import Outcome, Task

_ATTEMPTS = 2
_LOOK = 1.0  # seconds between ticks
_WORDS = 400  # characters of what a process said last


class _Answer(NamedTuple):
    """What came of a worker: an outcome or an exception; None where its process has ended."""

    worker: "_Worker"
    content: Any


class _Worker:
    """A process, and the task that it has."""

    def __init__(self, name: str, share: Share, work: Work, answers: "queue.Queue[_Answer]"):
        self.name, self.share = name, share
        self.task: Task | None = None
        self.began = 0.0
        self._words: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep.process", *map(str, share.cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=share.environment,
        )
        self._send(work)
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def give(self, task: Task) -> None:
        self.task, self.began = task, time.monotonic()
        self._send(task)

    def end(self) -> str:
        """End the process, whatever it does; in words, how it ended."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was not sent will not be
                    continue
        self._words.seek(0)
        said = self._words.read().decode(errors="replace").strip()[-_WORDS:].splitlines()
        self._words.close()
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return f"{how}{f', its last words: {said[-1]}' if said else ''}"

    def _send(self, content: object) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pickle.dump(content, pipe)
            pipe.flush()
        except BrokenPipeError:  # it has ended, and so says the thread that listens
            return

    def _listen(self, answers: "queue.Queue[_Answer]") -> None:
        pipe = self._process.stdout
        assert pipe is not None
        while True:
            try:
                content = pickle.load(pipe)
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):
                answers.put(_Answer(self, None))
                return
            answers.put(_Answer(self, content))


class Processes:
    """Carries tasks out in processes, one for each share of this machine."""

    def __init__(self, shares: Sequence[Share]):
        """Of shares such as `experiments.sweep.shares.shares` makes."""
        self._shares = tuple(shares)

    @property
    def workers(self) -> int:
        """As many as there are shares."""
        return len(self._shares)

    def __call__(self, tasks: Sequence[Task], work: Work) -> Iterator[Event]:
        """Each task in a process; what a worker raises is raised here."""
        left, tries = deque(tasks), Counter[str]()
        answers: queue.Queue[_Answer] = queue.Queue()
        at_work: list[_Worker] = []
        try:
            for number, share in enumerate(self._shares[: len(left)]):
                worker = _Worker(f"worker {number + 1}", share, work, answers)
                at_work.append(worker)
                yield _given(worker, left)
            while at_work:
                try:
                    worker, content = answers.get(timeout=_LOOK)
                except queue.Empty:
                    yield Tick()
                    continue
                if worker not in at_work:  # one that had nothing more to do
                    continue
                if isinstance(content, BaseException):
                    raise content
                if isinstance(content, Outcome):
                    worker.task = None
                    yield content
                else:
                    at_work.remove(worker)
                    yield _lost(worker, left, tries)
                    if not left:
                        continue
                    worker = _Worker(worker.name, worker.share, work, answers)
                    at_work.append(worker)
                if left:
                    yield _given(worker, left)
                else:
                    at_work.remove(worker)
                    worker.end()
        finally:
            for worker in at_work:
                worker.end()


def _given(worker: _Worker, left: deque[Task]) -> Started:
    task = left.popleft()
    worker.give(task)
    return Started(task.key, worker.name)


def _lost(worker: _Worker, left: deque[Task], tries: Counter[str]) -> Said | Outcome:
    """A worker's process has ended: its task goes first among those that are left, or fails."""
    how, task = worker.end(), worker.task
    assert task is not None  # one without a task is not listened to
    tries[task.key] += 1
    if tries[task.key] < _ATTEMPTS:
        left.appendleft(task)
        return Said(f"{worker.name} ended ({how}); its trial is tried again: {task.folder.name}")
    message = (
        f"its process ended {_ATTEMPTS} times ({how}); signal 9 is most often the system's, when "
        "memory runs out: give fewer workers, or trials that need less memory."
    )
    return Outcome(task.key, "failed", time.monotonic() - worker.began, message, noted=False)
