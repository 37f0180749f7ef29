"""The networks that are compared, one for each width, with their labelled set and test images.

From settings to everything that measuring starts from; the draws are those that a run with the same
seed makes in its first round, the same for every width.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from bridge import module
from bridge.mirror import Mirror
from bridge.weights import read
from experiments.approximation.config import ApproximationConfig
from pipelines import json_io
from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from pipelines.progress import Stages, generator
from pipelines.run import Bridge, describe, noted_fit, prepared
from pipelines.strategies.base import PROBE
from trainer.data import Dataset
from trainer.networks import build
from trainer.oracle import DatasetOracle
from trainer.pool import Pool
from trainer.predict import placement

_NETWORK = "network"


@dataclass(frozen=True)
class Subject:
    """One network to measure on.

    Attributes:
        config: the settings.
        width: value of the width argument; None where network_args stand as they are.
        run: the run whose first round has this network.
        dataset: its data.
        network: with its initial weights; whoever trains it trains a copy.
        labelled: int64 (labelled,), places in the pool.
        labels: int64 (labelled,), their classes.
        tests: int64 (test,), places in the test set.
        training: name of the folder of its training, by everything that it depends on.
        measuring: name of the folder of its measurements, likewise.
    """

    config: ApproximationConfig
    width: int | None
    run: RunConfig
    dataset: Dataset
    network: nn.Module
    labelled: np.ndarray
    labels: np.ndarray
    tests: np.ndarray
    training: str
    measuring: str

    @cached_property
    def images(self) -> np.ndarray:
        """Labelled images, then test images, as the network takes them, float32."""
        data = self.dataset
        both = data.train_images[self.labelled], data.test_images[self.tests]
        return data.normalise(np.concatenate(both))

    @property
    def test_labels(self) -> np.ndarray:
        """int64 (test,), the classes of the test images."""
        return self.dataset.test_labels[self.tests]

    @property
    def targets(self) -> np.ndarray:
        """Y, one-hot float64 (labelled, classes)."""
        return np.eye(self.dataset.classes)[self.labels]

    @property
    def measurements(self) -> Path:
        """Where what is measured is kept."""
        return self.config.run_folder / "measurements" / self.measuring

    @cached_property
    def mirror(self) -> Mirror:
        """The mirror of the untrained network, certified on some of its images.

        Raises:
            BridgeError: it cannot be mirrored, or the mirror disagrees with it.
        """
        return Bridge(self.network, self.config.twin).prepare(self.images[-PROBE:])

    def trained(self, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
        """A copy as the first round of a run trains it, and how its training ended.

        Its weights are kept, and read when they are there.
        """
        folder = self.config.run_folder / "trainings" / self.training
        path = folder / "weights.safetensors"
        notes, network = json_io.get(folder, _NETWORK), copy.deepcopy(self.network)
        if notes is not None and path.is_file():
            module.restore(network, read(path))
            return network.eval(), notes
        with stages("train") as advance:
            images, rng = self.images[: len(self.labelled)], generator(self.config.seed, "fit")
            notes = noted_fit(network, images, self.labels, self.run.train, rng, advance)
        folder.mkdir(parents=True, exist_ok=True)
        module.save_module(network, path, {"stage": "approximation"})
        return network, json_io.put(folder, _NETWORK, notes)


def subjects(config: ApproximationConfig, console: Console) -> list[Subject]:
    """All networks, narrowest first, built and not yet trained.

    Raises:
        TrainerError: data or a network that cannot be had.
        PipelineError: more test images than there are, or data without labels for them.
    """
    dataset, first = prepared(config.run_config(config.networks[0]), console)
    if config.test > len(dataset.test_images):
        raise PipelineError(
            f"{config.test} test images were asked for and {dataset.name} has "
            f"{len(dataset.test_images)}: lower test."
        )
    pool = Pool.initial(
        len(dataset.train_images), config.initial, generator(config.seed, "initial")
    )
    labels = DatasetOracle(dataset.train_labels)(pool.labelled)
    order = generator(config.seed, "approximation test").permutation(len(dataset.test_images))
    tests, data = np.sort(order[: config.test]), describe(dataset)
    found: list[Subject] = []
    for width in config.networks:
        run = config.run_config(width)
        trained: dict[str, Any] = {
            "data": data,
            "network": [run.network, run.network_arguments],
            "train": run.record()["train"],
            "seed": config.seed,
            "labelled": pool.labelled.tolist(),
        }
        names = ("kinds", "probes", "ridges", "precision", "twin")
        measured = {name: getattr(config, name) for name in names} | {"tests": tests.tolist()}
        network = first if not found else _built(run, dataset, first)
        name = "" if width is None else f"{width}-"
        found.append(
            Subject(
                config=config,
                width=width,
                run=run,
                dataset=dataset,
                network=network.eval(),
                labelled=pool.labelled,
                labels=labels,
                tests=tests,
                training=name + _hashed(trained),
                measuring=name + _hashed(trained | measured),
            )
        )
    return found


def _built(run: RunConfig, dataset: Dataset, like: nn.Module) -> nn.Module:
    """A further network, where the first one is."""
    rng = generator(run.seed, "weights")
    network = build(run.network, dataset.image_shape, dataset.classes, rng, run.network_arguments)
    return network.to(placement(like)[0])


def _hashed(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
