"""Starts a sweep in this process's children again and again, and kills it at random moments.

Everything is imported once; each start is a fork of this process, made before any thread is.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

from experiments.sweep.executors import inline
from experiments.sweep.run import sweep
from tests.experiments.sweep_cases import config


def start(folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads at a fork: none runs yet
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        sweep(config(folder), inline)
        status = 0
    except Exception:  # noqa: BLE001 - whatever it is, the parent must not go on in the child
        traceback.print_exc()
    finally:
        os._exit(status)


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill a sweep so many times, then let it come to its end; tells how many kills hit."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(kills):
        begun = rounds(folder)
        child = start(folder)
        wanted = begun + rng.integers(0, 3)
        while rounds(folder) < wanted and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hits += os.WIFSIGNALED(status)
    _, status = os.waitpid(start(folder), 0)
    assert status == 0
    sys.stdout.write(f"{hits}\n")


def rounds(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*/rounds.jsonl"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
