"""The network of a run's first round, trained once and cached, to be measured.

Data, initial weights, labelled set and random streams are those of a run with the same settings.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from bridge.module import copy_module, restore, save_module
from bridge.weights import read
from pipelines.config import MeasurementSettings, RunConfig, identity
from pipelines.core import json_io
from pipelines.core.entries import digest
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Advance, Stages, generator
from pipelines.run import describe, prepared, start_training, with_network
from pipelines.strategies.base import PROBE
from pipelines.strategies.frontier import FrontierRows
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.fit import fit
from trainer.oracle import DatasetOracle
from trainer.pool import Pool

_NOTES, _WEIGHTS = "network", "weights.safetensors"


def noted_fit(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    rng: np.random.Generator,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """`trainer.fit.fit`, with its outcome JSON-able.

    Returns:
        `steps`, `train_accuracy`, `residual_rms`, `fitted`, `stopped` and `seconds`.
    """
    began = time.perf_counter()
    result = fit(network, images, labels, train, rng, advance)
    names = ("steps", "train_accuracy", "residual_rms", "fitted", "stopped")
    seconds = round(time.perf_counter() - began, 3)
    return {name: getattr(result, name) for name in names} | {"seconds": seconds}


def schedule_seconds(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    steps: int = 20,
) -> float:
    """Seconds of one schedule of training here, extrapolated from a few steps on a copy."""
    network = copy_module(network, device=None)
    if train.recipe == "finetune":
        began = time.perf_counter()
        fit(network, images, labels, train, np.random.default_rng(0))
        return time.perf_counter() - began
    batches, epochs = train.plan(len(labels))
    few = math.ceil(steps / batches)
    short = dataclasses.replace(train, epochs=few, min_steps=few * batches, extensions=0)
    fit(network, images, labels, short, np.random.default_rng(0))  # the first steps warm up
    began = time.perf_counter()
    done = fit(network, images, labels, short, np.random.default_rng(0))
    return (time.perf_counter() - began) / done.steps * batches * epochs


@dataclass(frozen=True)
class NetworkTask:
    """An untrained network with its labelled set.

    Attributes:
        run: the run whose first round has this network.
        dataset: its data.
        network: with its initial weights, in eval mode; copies of it are trained.
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,), the class of each.
        rows: of the network's frozen prefix, where its tail is measured in its place.
    """

    run: RunConfig
    dataset: Dataset
    network: nn.Module
    labelled: np.ndarray
    labels: np.ndarray
    rows: FrontierRows | None = field(default=None, kw_only=True)

    def images_of(self, indices: np.ndarray) -> np.ndarray:
        """Training images by data-set index, as the network takes them, or their rows, float32."""
        if self.rows is not None:
            return self.rows(indices)
        return self.dataset.normalise(self.dataset.train_images[indices])

    @cached_property
    def labelled_images(self) -> np.ndarray:
        """As the network takes them, float32."""
        return self.images_of(self.labelled)

    @property
    def targets(self) -> np.ndarray:
        """Y, one-hot float64 (labelled, classes)."""
        return np.eye(self.dataset.classes)[self.labels]

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Everything that the trained weights depend on, JSON-able."""
        return {
            "data": describe(self.dataset),
            "network": [self.run.network, self.run.network_arguments],
            **self._origin_of_weights,
            "train": identity(self.run)["train"],
            "seed": self.run.seed,
            "labelled": [self.labelled.tolist(), self.labels.tolist()],
        }

    @property
    def _origin_of_weights(self) -> dict[str, Any]:
        """Pretrained weights and what is trained of them; nothing where neither was said."""
        settings = identity(self.run)
        said = {name: settings[name] for name in ("weights", "trainable")}
        return {name: value for name, value in said.items() if value is not None}

    def fit(self, train: TrainConfig, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
        """A copy trained with the randomness of a run's first round, and how its training ended."""
        network = copy_module(self.network, device=None)
        start_training(network, train, self.labelled_images[:PROBE])
        with stages("train") as advance:
            rng = generator(self.run.seed, "fit")
            notes = noted_fit(network, self.labelled_images, self.labels, train, rng, advance)
        return network, notes

    def trained(self, folder: Path, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
        """The network after the first round's training, cached in the folder, named by `origin`.

        Returns:
            A copy in eval mode, and how its training ended, JSON-able.
        """
        notes, weights = json_io.get(folder, _NOTES), folder / _WEIGHTS
        if notes is not None:
            found = digest(weights.read_bytes()) if weights.is_file() else "missing"
            if found != notes["weights"]:
                raise PipelineError(
                    f"{weights} is {found} and {json_io.path_of(folder, _NOTES)} was written with "
                    f"{notes['weights']} (SHA-256): delete the folder {folder}, and give the same "
                    "command again."
                )
            network = copy_module(self.network, device=None)
            restore(network, read(weights))
            return network.eval(), notes
        network, notes = self.fit(self.run.train, stages)
        folder.mkdir(parents=True, exist_ok=True)
        save_module(network, weights, {"stage": "first round"})
        notes["weights"] = digest(weights.read_bytes())
        return network, json_io.put(folder, _NOTES, notes)


def is_trained(folder: Path) -> bool:
    """Whether `NetworkTask.trained` would find its network in the folder."""
    return json_io.path_of(folder, _NOTES).is_file()


def build_networks(runs: Sequence[RunConfig], console: Console) -> tuple[Dataset, list[nn.Module]]:
    """The data set, and the untrained network of each run, in eval mode.

    The runs differ in arguments of the network and in training only.

    Raises:
        TrainerError: data or networks that cannot be had.
        PipelineError: settings that do not fit the data.
    """
    dataset, first = prepared(runs[0], console)
    networks = [first]
    for run in runs[1:]:
        networks.append(with_network(run, dataset, console)[1])
    return dataset, networks


def initial_pool(config: MeasurementSettings, dataset: Dataset) -> tuple[Pool, np.ndarray]:
    """The labelled set that a run with this seed draws, and its labels, int64 (labelled,)."""
    rng = generator(config.seed, "initial")
    pool = Pool.initial(len(dataset.train_images), config.initial, rng)
    return pool, DatasetOracle(dataset.train_labels)(pool.labelled)


def draw_subset(pool: Pool, dataset: Dataset, count: int, seed: int, what: str) -> np.ndarray:
    """Unlabelled images, drawn as the first query of a run draws its candidates.

    Raises:
        PipelineError: there are fewer than `count`; the message calls them `what`.
    """
    if count > len(pool.unlabelled):
        raise PipelineError(
            f"{count} {what} were asked for and {len(pool.unlabelled)} images of {dataset.name} "
            f"are not labelled: give --subset {len(pool.unlabelled)} or less."
        )
    return pool.candidates(count, generator(seed, "subset"))


def duration(seconds: float) -> str:
    """Seconds or minutes, rounded."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
