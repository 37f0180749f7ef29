"""Executors: this process, or several processes with cores and GPUs of their own.

An executor is a function of jobs and of the work to do on each; it yields what happens. It carries
jobs out in about the order given, yields one `Outcome` for each whatever becomes of the process or
machine, and ends what it started when it is closed, by Ctrl-C for one. Importing this module
imports nothing that computes, so that a worker process is bound to its cores before anything
counts them.
"""

import faulthandler
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

if TYPE_CHECKING:
    from experiments.studies.study import Config

_ATTEMPTS = 2  # of a job whose process ends
_WORDS = 400  # characters of a process's last words


@dataclass(frozen=True)
class Job:
    """A trial as a worker gets it; it pickles.

    Attributes:
        key: of the trial.
        config: its settings, with its own directory, data directory and device in them.
        shared: folder of first trainings that trials share; None shares none.
    """

    key: str
    config: "Config"
    shared: Path | None = None

    @property
    def folder(self) -> Path:
        """The directory of the trial's record."""
        return self.config.run_folder


class Outcome(NamedTuple):
    """How a job ended.

    Attributes:
        key: of the trial.
        state: done, failed, or held: nothing was done, another process is at it.
        seconds: wall seconds, of this attempt.
        message: of a failure, or of who holds it, in one line; else empty.
        noted: whether it stands in the trial's own record already.
    """

    key: str
    state: Literal["done", "failed", "held"]
    seconds: float
    message: str = ""
    noted: bool = True


class Started(NamedTuple):
    """A worker, named for people, has begun with a trial, perhaps for the second time."""

    key: str
    worker: str


class Notice(NamedTuple):
    """One line for people that is no outcome, such as that a worker was lost."""

    text: str


Event = Started | Notice | Outcome
Work = Callable[[Job], Outcome]
Executor = Callable[[Sequence[Job], Work], Iterator[Event]]


def inline(jobs: Sequence[Job], work: Work) -> Iterator[Event]:
    """One job after another in this process; an interruption is raised where it happens."""
    for job in jobs:
        yield Started(job.key, "this process")
        yield work(job)


class Share(NamedTuple):
    """The part of this machine that a worker process has.

    Attributes:
        cores: numbers of its cores; none where a process cannot be bound to cores.
        environment: of its process.
    """

    cores: tuple[int, ...]
    environment: dict[str, str]


def divide(
    workers: int | None, gpus: int, environment: Mapping[str, str], cores: Sequence[int] = ()
) -> list[Share]:
    """Divide the machine: neighbouring cores for each worker, and GPUs in turn.

    Args:
        workers: how many; with more than cores, some share one. None: one for each GPU, or else
            one for two cores, and two where there are only two.
        gpus: how many this process sees; CUDA_VISIBLE_DEVICES may name them.
        environment: of this process; a number of threads in it stays as the user has set it.
        cores: their numbers; by default all that this process may use.
    """
    bound = hasattr(os, "sched_setaffinity")
    cores = cores or (sorted(os.sched_getaffinity(0)) if bound else range(os.cpu_count() or 1))
    count = workers or gpus or max(min(len(cores), 2), len(cores) // 2)
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(gpus)]
    # the modules that can be imported here can be there, a user's own too
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    found = []
    for number in range(count):
        begin, end = (len(cores) * edge // count for edge in (number, number + 1))
        own = tuple(cores[begin:end]) or (cores[number % len(cores)],)
        its = {"OMP_NUM_THREADS": str(len(own)), **environment, "PYTHONPATH": path}
        if gpus:
            its["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
            # memory is torch's too, and other workers' where they are more than GPUs
            its.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        found.append(Share(own if bound else (), its))
    return found


def processes(jobs: Sequence[Job], work: Work, shares: Sequence[Share]) -> Iterator[Event]:
    """Jobs in one process for each share, which lives from job to job.

    A process that is killed is replaced; its job is tried once more and then counts as failed. An
    exception that `work` raises is raised here.
    """
    waiting, deaths = deque(jobs), Counter[str]()
    answers: queue.Queue[tuple[_Process, Any]] = queue.Queue()
    busy: list[_Process] = []
    try:
        for number, share in enumerate(shares[: len(jobs)], start=1):
            busy.append(_Process(f"worker {number}", share, work, answers))
            yield busy[-1].start(waiting.popleft())
        while busy:
            process, content = answers.get()
            if process not in busy:  # one that had nothing more to do
                continue
            if isinstance(content, Exception):
                raise content
            busy.remove(process)
            if isinstance(content, Outcome):
                yield content
            else:
                how, job = process.end(), process.job
                deaths[job.key] += 1
                if deaths[job.key] < _ATTEMPTS:
                    waiting.appendleft(job)
                    yield Notice(f"{process.name} ended ({how}); {job.folder.name} is tried again")
                else:
                    yield _lost(job, how, time.monotonic() - process.began)
            if not waiting:
                process.end()
                continue
            if process.ended:
                process = _Process(process.name, process.share, work, answers)
            busy.append(process)
            yield process.start(waiting.popleft())
    finally:
        for process in busy:
            process.end()


def _lost(job: Job, how: str, seconds: float) -> Outcome:
    message = (
        f"its process ended {_ATTEMPTS} times ({how}); signal 9 is most often the system's, when "
        "memory runs out: give fewer workers, or trials that need less memory."
    )
    return Outcome(job.key, "failed", seconds, message, noted=False)


class _Process:
    """A worker process: pickled jobs on its standard input, pickled answers on its output.

    What it answers is put into a queue: outcomes, exceptions, and None when it has ended.
    """

    job: Job
    began: float

    def __init__(
        self, name: str, share: Share, work: Work, answers: "queue.Queue[tuple[_Process, Any]]"
    ):
        self.name, self.share, self.ended = name, share, False
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        code = "from experiments.sweep.executors import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, share.cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=share.environment,
        )
        self._send(work)
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def start(self, job: Job) -> Started:
        self.job, self.began = job, time.monotonic()
        self._send(job)
        return Started(job.key, self.name)

    def end(self) -> str:
        """End the process, whatever it does; in words, how it ended."""
        if self.ended:
            return ""
        self.ended = True
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()  # type: ignore[union-attr]
            except BrokenPipeError:  # something was not sent, and will not be
                continue
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()[-_WORDS:].splitlines()
        self._errors.close()
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return f"{how}{f', its last words: {words[-1]}' if words else ''}"

    def _send(self, content: object) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pickle.dump(content, pipe)
            pipe.flush()
        except BrokenPipeError:  # it has ended, as `_listen` will notice
            return

    def _listen(self, answers: "queue.Queue[tuple[_Process, Any]]") -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while True:
                answers.put((self, pickle.load(pipe)))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            answers.put((self, None))


def serve() -> None:
    """Be a worker process: bound to the cores in the arguments, until standard input ends."""
    if cores := {int(word) for word in sys.argv[1:]}:
        os.sched_setaffinity(0, cores)  # before XLA counts cores for its threads
    faulthandler.enable()  # to the standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its workers
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_receive, args=(sys.stdin.buffer, jobs), daemon=True).start()
    while True:
        job = jobs.get()
        try:
            answer = job if isinstance(job, Exception) else work(job)
        except Exception as error:  # noqa: BLE001 - the sweep raises it
            answer = error
        pickle.dump(answer, out)
        out.flush()


def _receive(pipe: BinaryIO, jobs: "queue.SimpleQueue[Any]") -> None:
    """Queue jobs; end the process with its sweep, even if that is killed while a job runs."""
    while True:
        try:
            jobs.put(pickle.load(pipe))
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - such as a module that is not there
            jobs.put(error)
