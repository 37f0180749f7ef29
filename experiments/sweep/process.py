"""A worker process: pickled tasks on standard input, pickled outcomes on standard output.

Run as python -m experiments.sweep.process CORE….
"""

import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO


def main(cores: set[int]) -> None:
    """Work until there is nothing more to be had from the pipe."""
    if cores and hasattr(os, "sched_setaffinity"):
        # before anything that counts cores is imported, so that XLA's threads are divided too
        os.sched_setaffinity(0, cores)
    faulthandler.enable()  # to the standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends its workers
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        try:
            task = tasks.get()
            answer = task if isinstance(task, Exception) else work(task)
        except Exception as error:  # noqa: BLE001 - the sweep raises it, as if it were its own
            answer = error
        pickle.dump(answer, out)
        out.flush()


def _listen(pipe: BinaryIO, tasks: "queue.SimpleQueue[Any]") -> None:
    while True:
        try:
            task = pickle.load(pipe)
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)  # the sweep is over or was killed: nobody waits for this any more
        except Exception as error:  # noqa: BLE001 - such as a module that is not there
            task = error
        tasks.put(task)


if __name__ == "__main__":
    main({int(word) for word in sys.argv[1:]})
