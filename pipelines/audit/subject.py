"""The networks of an audit, each with its labelled set, reference points and candidates.

From settings to everything that training and predictions start from; the draws are those that a run
with the same seed makes in its first round.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from torch import nn

from bridge.weights import Weights
from pipelines.audit.config import AuditConfig
from pipelines.audit.given import Given
from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from pipelines.progress import generator
from pipelines.run import describe, prepared
from trainer.data import Dataset
from trainer.networks import build
from trainer.oracle import DatasetOracle
from trainer.pool import Pool
from trainer.predict import placement


@dataclass(frozen=True)
class Subject:
    """One network to audit.

    Attributes:
        width: value of the width argument; None where network_args stand as they are.
        steps: length of training; None where the training settings stand as they are.
        config: the run whose first round has this network.
        dataset: its data.
        network: with its initial weights, or the ones given.
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,).
        points: int64 (points,), data-set indices of the reference points.
        places: int64 (candidates,), which of the points are retrained with.
        weights: given in place of training; None to train.
        folder: name of the folder of its trainings, by everything that they depend on.
    """

    width: int | None
    steps: int | None
    config: RunConfig
    dataset: Dataset
    network: nn.Module
    labelled: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    places: np.ndarray
    weights: Weights | None
    folder: str

    @property
    def candidates(self) -> np.ndarray:
        """int64 (candidates,), data-set indices of what is retrained with."""
        return self.points[self.places]

    @property
    def labelled_images(self) -> np.ndarray:
        """As the network takes them."""
        return self.images(self.labelled)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Data-set indices → images as the network takes them, float32."""
        return self.dataset.normalise(self.dataset.train_images[indices])

    def describe(self, argument: str) -> str:
        """Width and steps in words; nothing where both stand as they are."""
        words = [] if self.width is None else [f"{argument} {self.width}"]
        return ", ".join(words if self.steps is None else [*words, f"{self.steps} steps"])


def subjects(given: Given, console: Console) -> list[Subject]:
    """All networks of an audit, built and not yet trained.

    Raises:
        TrainerError: data or networks that cannot be had.
        PipelineError: more points than there are images; data other than those of the run given.
    """
    config = given.config
    dataset, first = prepared(config.run_config(*config.networks[0]), console)
    data = describe(dataset)
    if given.data is not None and given.data["sha256"] != data["sha256"]:
        raise PipelineError(
            f"the run in {config.weights} was made with other data ({given.data['name']}, "
            f"{given.data['sha256']}) than these ({data['name']}, {data['sha256']}): give "
            "--data-dir the folder that it read."
        )
    pool = _pool(config, given.labelled, len(dataset.train_images))
    labels = given.labels
    if labels is None:
        labels = DatasetOracle(dataset.train_labels)(pool.labelled)
    if config.subset > len(pool.unlabelled):
        raise PipelineError(
            f"{config.subset} reference points were asked for and {len(pool.unlabelled)} images of "
            f"{dataset.name} are not labelled: give --subset {len(pool.unlabelled)} or less."
        )
    points = pool.candidates(config.subset, generator(config.seed, "subset"))
    # the first of one order, so that more candidates are those of before and others
    order = generator(config.seed, "audit").permutation(len(points))
    found = []
    for width, steps in config.networks:
        own = config.run_config(width, steps)
        network = first if not found else _built(own, dataset, first)
        key = {
            "data": data,
            "network": [own.network, own.network_arguments],
            "train": own.record()["train"],
            "seed": config.seed,
            "labelled": [pool.labelled.tolist(), labels.tolist()],
            "points": points.tolist(),
            "weights": None if given.weights is None else _digest(given.weights),
        }
        hashed = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        words = [own.network.replace(":", "."), *(f"{width}" for width in (width,) if width)]
        found.append(
            Subject(
                width=width,
                steps=steps,
                config=own,
                dataset=dataset,
                network=network,
                labelled=pool.labelled,
                labels=labels,
                points=points,
                places=order[: config.candidates],
                weights=given.weights,
                folder="-".join([*words, hashed]),
            )
        )
    return found


def _pool(config: AuditConfig, labelled: np.ndarray | None, examples: int) -> Pool:
    if labelled is None:
        return Pool.initial(examples, config.initial, generator(config.seed, "initial"))
    return Pool.of(examples, labelled)


def _built(config: RunConfig, dataset: Dataset, like: nn.Module) -> nn.Module:
    """A further network, where the first one is."""
    rng = generator(config.seed, "weights")
    shape = dataset.image_shape
    network = build(config.network, shape, dataset.classes, rng, config.network_arguments)
    return network.to(placement(like)[0])


def _digest(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name, array in sorted({**weights.params, **weights.buffers}.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
