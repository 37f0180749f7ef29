"""The trainings of a network that are measured: as a run trains it, and its first epochs.

From an untrained network to copies of it, trained; the randomness is that of a run's first round.
"""

import copy
from typing import Any

from torch import nn

from bridge import module
from bridge.weights import read
from experiments.dynamics.config import of_epochs
from experiments.dynamics.subject import Subject
from pipelines import json_io
from pipelines.progress import Stages, generator
from pipelines.run import noted_fit
from trainer.fit import TrainConfig

_NETWORK = "network"


def trained(subject: Subject, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the network as the first round of a run trains it, and how its training ended.

    Its weights are kept, and read when they are there.
    """
    folder = subject.trainings
    path = folder / "weights.safetensors"
    notes = json_io.get(folder, _NETWORK)
    if notes is not None and path.is_file():
        network = copy.deepcopy(subject.network)
        module.restore(network, read(path))
        return network.eval(), notes
    network, notes = _trained(subject, subject.config.train, stages)
    folder.mkdir(parents=True, exist_ok=True)
    module.save_module(network, path, {"stage": "dynamics"})
    return network, json_io.put(folder, _NETWORK, notes)


def at_epoch(subject: Subject, epoch: int, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
    """A copy after so many epochs, trained from the start; epoch 0 is the initial network.

    Trained from the start each time, and with the same random numbers, a shorter training is the
    beginning of a longer one, the optimiser's memory included: nothing is cut and joined.
    """
    if epoch == 0:
        return copy.deepcopy(subject.network), {"steps": 0}
    train = of_epochs(subject.config.train, epoch, len(subject.labelled))
    return _trained(subject, train, stages)


def _trained(
    subject: Subject, train: TrainConfig, stages: Stages
) -> tuple[nn.Module, dict[str, Any]]:
    network, count = copy.deepcopy(subject.network), len(subject.labelled)
    with stages("train") as advance:
        images, labels = subject.images[:count], subject.labels[:count]
        rng = generator(subject.config.seed, "fit")
        notes = noted_fit(network, images, labels, train, rng, advance)
    return network, notes
