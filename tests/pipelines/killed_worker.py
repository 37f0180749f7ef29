"""Starts a sequential run again and again, and kills it at random moments, without asking.

Everything is imported once; each start is a fork of this process, made before any thread is. The
mirror is written by hand, so that no start waits for one.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.weights import read
from pipelines.run import Bridge
from pipelines.sequential import run
from tests.sequential_cases import config


class ByHand(Bridge):
    """Of the network of `tests.own_network`."""

    def prepare(self, probe):
        params = {name: jnp.asarray(p) for name, p in weights_of(self._network).params.items()}
        self._mirror = Mirror(two_layers, params, {}, route="twin")
        return self._mirror

    def cross(self, run, round_number, probe):
        return self.prepare(probe).with_weights(read(run.weights(round_number))), {}


def two_layers(params, frozen, images):
    flat = images.reshape(len(images), -1)
    hidden = jnp.tanh(flat @ params["1.weight"].T + params["1.bias"])
    return hidden @ params["3.weight"].T + params["3.bias"]


def start(folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads at a fork: none runs yet
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        run.run(config(folder))
        status = 0
    except Exception:  # noqa: BLE001 - whatever it is, the parent must not go on in the child
        traceback.print_exc()
    finally:
        os._exit(status)


def answers(folder: Path) -> int:
    file = folder / "answers.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def main(whole: Path, killed: Path, kills: int, seed: int) -> None:
    run.Bridge = ByHand
    _, status = os.waitpid(start(whole), 0)
    assert status == 0
    rng = np.random.default_rng(seed)
    moments = np.sort(rng.integers(0, answers(whole), size=kills))  # in answers, and then seconds
    for moment in moments:
        before = answers(killed)
        child = start(killed)
        while answers(killed) < max(moment, before) and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{before} {answers(killed)} {int(os.WIFSIGNALED(status))}\n")
    _, status = os.waitpid(start(killed), 0)
    assert status == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
