"""Networks for trials on a cluster: one that waits to be let on, one that kills its process."""

import os
import signal
import time
from pathlib import Path

from torch import nn

from tests.own_network import make

_BEFORE = 60  # training steps and predictions until it waits: in the middle of a run


class Patient(nn.Sequential):
    """Waits, once it has been used for a while, until a file is there."""

    def __init__(self, network: nn.Sequential, gate: Path):
        super().__init__(*network)
        self._gate, self._used = gate, 0

    def forward(self, input):
        self._used += 1
        while self._used > _BEFORE and not self._gate.exists():
            time.sleep(0.02)
        return super().forward(input)


def patient(input_shape, classes, gate):
    return Patient(make(input_shape, classes, hidden=8), Path(gate))


def deadly(input_shape, classes):
    os.kill(os.getpid(), signal.SIGKILL)
