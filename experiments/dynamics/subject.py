"""The network that is measured, with its labelled set and its candidates.

From settings to everything that measuring starts from; the draws are those that a run with the same
seed makes in its first round.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from experiments.dynamics.config import TheoryConfig
from pipelines.errors import PipelineError
from pipelines.progress import generator
from pipelines.run import describe, prepared
from trainer.data import Dataset
from trainer.oracle import DatasetOracle
from trainer.pool import Pool


@dataclass(frozen=True)
class Subject:
    """A network to measure on.

    Attributes:
        config: the settings.
        dataset: its data.
        network: with its initial weights; whoever trains it trains a copy.
        labelled: S, int64 (labelled,), data-set indices.
        candidates: int64 (candidates,), data-set indices.
        labels: int64 (labelled + candidates,), the true class of each: a diagnosis may know them.
        training: name of the folder of its trainings, by everything that they depend on.
        measuring: name of the folder of its measurements, likewise.
    """

    config: TheoryConfig
    dataset: Dataset
    network: nn.Module
    labelled: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray
    training: str
    measuring: str

    @property
    def both(self) -> np.ndarray:
        """Labelled images, then candidates: int64 (labelled + candidates,), data-set indices."""
        return np.concatenate([self.labelled, self.candidates])

    @cached_property
    def images(self) -> np.ndarray:
        """Those images as the network takes them, float32."""
        return self.dataset.normalise(self.dataset.train_images[self.both])

    @property
    def targets(self) -> np.ndarray:
        """Y, one-hot float64 (labelled + candidates, classes)."""
        return np.eye(self.dataset.classes)[self.labels]

    @property
    def trainings(self) -> Path:
        """Where trained weights are kept."""
        return self.config.run_folder / "trainings" / self.training

    @property
    def measurements(self) -> Path:
        """Where what is measured is kept."""
        return self.config.run_folder / "measurements" / self.measuring

    def sets(self, size: int, count: int) -> np.ndarray:
        """Random queries: bool (count, candidates), `size` drawn uniformly in each.

        The same for every network of a seed, so that what differs between networks is not chance;
        more of them are those of before and others.
        """
        rng = generator(self.config.seed, "dynamics queries", size)
        found = np.zeros((count, len(self.candidates)), bool)
        for row in found:
            row[rng.permutation(len(row))[:size]] = True
        return found


def subject(config: TheoryConfig, console: Console) -> Subject:
    """The network, built and not yet trained.

    Raises:
        TrainerError: data or a network that cannot be had.
        PipelineError: more candidates than there are images.
    """
    own = config.first_round()
    dataset, network = prepared(own, console)
    pool = Pool.initial(
        len(dataset.train_images), config.initial, generator(config.seed, "initial")
    )
    if config.subset > len(pool.unlabelled):
        raise PipelineError(
            f"{config.subset} candidates were asked for and {len(pool.unlabelled)} images of "
            f"{dataset.name} are not labelled: lower subset."
        )
    candidates = pool.candidates(config.subset, generator(config.seed, "subset"))
    trained: dict[str, Any] = {
        "data": describe(dataset),
        "network": [own.network, own.network_arguments],
        "train": own.record()["train"],
        "seed": config.seed,
        "labelled": pool.labelled.tolist(),
    }
    names = ("kind", "probes", "sketch", "precision", "queries", "draws", "repeats", "twin")
    measured = {name: getattr(config, name) for name in names}
    measured["candidates"] = candidates.tolist()
    oracle = DatasetOracle(dataset.train_labels)
    network.eval()
    return Subject(
        config=config,
        dataset=dataset,
        network=network,
        labelled=pool.labelled,
        candidates=candidates,
        labels=oracle(np.concatenate([pool.labelled, candidates])),
        training=_name(trained),
        measuring=_name(trained | measured),
    )


def _name(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
