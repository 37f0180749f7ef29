"""Real and predicted changes of a network's outputs: retrain with each candidate, or predict it.

Every retraining is cached before the next one begins, and its randomness follows from the seed and
its own name alone. The prediction is that of the NTK posterior (docs/mathematics.md, 1).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import nn

from bridge.module import copy_module, restore
from bridge.weights import Weights
from bridge.weights import read as read_weights
from kernel.model import Model
from kernel.ntk import query_kernel
from kernel.posterior import Posterior, posterior
from pipelines.audit.config import AuditConfig
from pipelines.core import json_io, record
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, named_images
from pipelines.core.record import Run
from pipelines.measurement import (
    NetworkTask,
    build_networks,
    draw_subset,
    initial_pool,
    is_trained,
    noted_fit,
)
from pipelines.strategies.options import KernelConfig
from trainer.config import RANDOM, TrainConfig
from trainer.fit import accuracy, residual_rms
from trainer.oracle import DatasetOracle
from trainer.pool import Pool
from trainer.predict import logits

# Settings of a run that an audit of it takes over.
_OF_RUN = ("dataset", "network", "network_args", "image_size", "twin", "train")
_LATER = {"trainable": None, "mean": (), "std": ()}  # settings that older records lack


class Pretrained(NamedTuple):
    """A trained network to audit, as far as the settings name one.

    Attributes:
        config: of the audit, with the settings of the run named.
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,), as the run recorded them.
        weights: of the trained network.
        data: the run's record of its data.
    """

    config: AuditConfig
    labelled: np.ndarray | None = None
    labels: np.ndarray | None = None
    weights: Weights | None = None
    data: dict[str, Any] | None = None


@dataclass(frozen=True)
class AuditTask(NetworkTask):
    """A network to audit.

    Attributes:
        width: value of the width argument; None for that of network_args.
        steps: length of training; None for that of the training settings.
        points: int64 (points,), data-set indices of the reference points.
        positions: int64 (candidates,), which of the points are retrained with.
        weights: given in place of training; None to train.
        folder: of its trainings, named by everything that they depend on.
    """

    width: int | None
    steps: int | None
    points: np.ndarray
    positions: np.ndarray
    weights: Weights | None
    folder: Path

    @property
    def candidates(self) -> np.ndarray:
        """int64 (candidates,), data-set indices."""
        return self.points[self.positions]

    def describe(self, argument: str) -> str:
        """Width and steps in words, as far as they are not None."""
        words = [] if self.width is None else [f"{argument} {self.width}"]
        return ", ".join(words if self.steps is None else [*words, f"{self.steps} steps"])

    def pretrained(self, weights: Weights) -> tuple[nn.Module, dict[str, Any]]:
        """A copy with these weights, in eval mode, and how well it fits its labels."""
        network = copy_module(self.network, device=None)
        restore(network, weights)
        network.eval()
        with named_images(self.labelled):
            outputs = logits(network, self.labelled_images)
        train = self.run.train
        fraction = accuracy(outputs, self.labels)
        return network, {
            "steps": None,
            "train_accuracy": fraction,
            "residual_rms": residual_rms(outputs, self.labels, train.loss),
            "fitted": fraction >= train.target_accuracy,
            "stopped": "weights were given",
            "seconds": 0.0,
        }


class Retraining(NamedTuple):
    """One retraining.

    Attributes:
        name: of its cached result.
        position: of the candidate among the reference points; None for a control.
        stream: name and number of its stream of random numbers.
    """

    name: str
    position: int | None
    stream: tuple[str, int]


class RealOutputs(NamedTuple):
    """Outputs at the reference points after retraining.

    Attributes:
        controls: float64 (controls, points, classes), after training on without a new label.
        retrained: float64 (repeats, candidates, points, classes), after training on with each
            candidate under its pseudo-label.
        fitted: fraction of the retrainings that fitted their labels.
    """

    controls: np.ndarray
    retrained: np.ndarray
    fitted: float


class Prediction(NamedTuple):
    """The change of the outputs that a kernel predicts.

    Attributes:
        drift: D, float64 (points, classes): the change by fitting the labels exactly.
        moves: W[:,x'] R_x', float64 (candidates, points, classes): the change by the candidate;
            zeros for one that the labelled set determines.
        jitter: that K_LL needed, as a fraction of its mean diagonal.
        determined: how many candidates the labelled set determines.
    """

    drift: np.ndarray
    moves: np.ndarray
    jitter: float
    determined: int

    def change(self, reference: str) -> np.ndarray:
        """(candidates, points, classes), from the trained network or from the fitted linearised."""
        return self.moves + self.drift if reference == "network" else self.moves


# --- tasks


def read_pretrained(config: AuditConfig) -> Pretrained:
    """Read the weights and the labelled set that the settings name.

    Raises:
        PipelineError: files that cannot be read, or settings that contradict the run.
        BridgeError: weights that cannot be read.
    """
    if config.trained is not None and config.trained.is_dir():
        if config.labelled is not None:
            raise PipelineError(
                f"{config.trained} is a run, whose record has its labelled set: leave out labelled."
            )
        return _last_round(config, record.read(config.trained))
    labelled = None if config.labelled is None else _read_indices(config.labelled)
    if labelled is not None:
        config = dataclasses.replace(config, initial=len(labelled))
    weights = None if config.trained is None else read_weights(config.trained)
    return Pretrained(config, labelled, None, weights)


def _last_round(config: AuditConfig, run: Run) -> Pretrained:
    """The last network of a run, and the labels that it was trained with."""
    if not run.rounds:
        raise PipelineError(f"{run.path} has no completed round yet: there is no trained network.")
    lines = (run.rounds[0]["initial"], *run.rounds[:-1])
    labelled, labels = (
        np.array([value for line in lines for value in line[key]], np.int64)
        for key in ("indices", "labels")
    )
    arguments = run.config["network_args"]
    own = {name: run.config[name] for name in _OF_RUN}
    own["network_args"] = tuple(f"{name}={value}" for name, value in arguments.items())
    own |= {name: run.config.get(name) or default for name, default in _LATER.items()}
    own |= {name: tuple(own[name]) for name in ("mean", "std")}
    own["train"] = TrainConfig(**run.config["train"])
    # the run's own weights follow, and retrainings go on from them
    if own["train"].init == "pretrained":
        own["train"] = dataclasses.replace(own["train"], init=None)
    defaults = AuditConfig()
    given = config
    if config.train == AuditConfig.of_dataset(config.dataset).train:  # not asked for by itself
        given = dataclasses.replace(config, train=defaults.train)
    for name, value in own.items():
        asked = getattr(given, name)
        if asked not in (getattr(defaults, name), value):
            raise PipelineError(
                f"{name} is {value!r} in {run.path} and {asked!r} here: leave it out, or leave out "
                "trained and let the audit train."
            )
    config = dataclasses.replace(config, **own, initial=len(labelled), weights=RANDOM)
    run.check_weights(len(run.rounds) - 1)
    weights = read_weights(run.weights(len(run.rounds) - 1))
    return Pretrained(config, labelled, labels, weights, run.config["data"])


def _read_indices(path: Path) -> np.ndarray:
    indices = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        text = line.strip()
        if not text:
            continue
        if not text.isdecimal():
            raise PipelineError(
                f"{path}, line {number}: {text[:40]!r} is not the index of an image; give one "
                "whole number from 0 a line."
            )
        indices.append(int(text))
    if not indices:
        raise PipelineError(f"{path} names no image: give one data-set index a line.")
    return np.array(indices, np.int64)


def build_tasks(pretrained: Pretrained, console: Console) -> list[AuditTask]:
    """All networks of an audit, untrained.

    Raises:
        TrainerError: data or networks that cannot be had.
        PipelineError: more points than there are images; data other than those of the run given.
    """
    config = pretrained.config
    runs = [config.run_config(*each) for each in config.networks]
    dataset, networks = build_networks(runs, console)
    if pretrained.labelled is None:
        pool, labels = initial_pool(config, dataset)
    else:
        pool = Pool.of(len(dataset.train_images), pretrained.labelled)
        labels = pretrained.labels
        if labels is None:
            labels = DatasetOracle(dataset.train_labels)(pool.labelled)
    points = draw_subset(pool, dataset, config.subset, config.seed, "reference points")
    # a prefix of one permutation: more candidates keep those of before
    order = generator(config.seed, "audit").permutation(len(points))
    tasks = []
    for (width, steps), run, network in zip(config.networks, runs, networks, strict=True):
        origin = NetworkTask(run, dataset, network, pool.labelled, labels).origin
        _check_data(pretrained, origin["data"])
        weights = pretrained.weights
        if weights is not None:
            weights = json_io.digest_arrays({**weights.params, **weights.buffers})
        key = json_io.digest(origin | {"points": points.tolist(), "weights": weights})
        words = [run.network.replace(":", "."), *([str(width)] if width else []), key]
        tasks.append(
            AuditTask(
                run=run,
                dataset=dataset,
                network=network,
                labelled=pool.labelled,
                labels=labels,
                width=width,
                steps=steps,
                points=points,
                positions=order[: config.candidates],
                weights=pretrained.weights,
                folder=config.run_folder / "trainings" / "-".join(words),
            )
        )
    return tasks


def _check_data(pretrained: Pretrained, data: dict[str, Any]) -> None:
    own = pretrained.data
    differing = [] if own is None else record.differences(own, data, "data.")
    if differing:
        raise PipelineError(
            f"the run in {pretrained.config.trained} was made with other data than these: "
            f"{'; '.join(differing)}. Give --data-dir the folder that it read."
        )


# --- retraining


def retrainings(task: AuditTask, config: AuditConfig) -> list[Retraining]:
    """Every retraining of a network, controls first."""
    controls = [
        Retraining(f"control-{c}", None, ("audit control", c)) for c in range(config.controls)
    ]
    return controls + [
        Retraining(
            f"candidate-{index}-{repeat}", int(position), (f"audit candidate {index}", repeat)
        )
        for repeat in range(config.repeats)
        for position, index in zip(task.positions, task.candidates, strict=True)
    ]


def trained(task: AuditTask, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the network, trained or pretrained, and how well it fits its labels."""
    if task.weights is not None:
        return task.pretrained(task.weights)
    return task.trained(task.folder, stages)


def retrain(
    task: AuditTask, config: AuditConfig, network: nn.Module, pseudo: np.ndarray, stages: Stages
) -> RealOutputs:
    """Continue training copies of the network, once for each retraining that is not cached.

    `pseudo` has the network's prediction of each point, int64 (points,).
    """
    points = task.images_of(task.points)

    def result(job: Retraining) -> dict[str, Any]:
        new = slice(0, 0) if job.position is None else slice(job.position, job.position + 1)
        own = copy_module(network, device=None)
        notes = noted_fit(
            own,
            np.concatenate([task.labelled_images, points[new]]),
            np.concatenate([task.labels, pseudo[new]]),
            task.run.train,
            generator(config.seed, *job.stream),
        )
        with named_images(task.points):
            return {"logits": logits(own, points), "notes": notes}

    jobs, results = retrainings(task, config), []
    with stages("retrain") as advance:
        for number, job in enumerate(jobs):
            advance(number, len(jobs), job.name)
            results.append(
                json_io.get_or_compute(task.folder, job.name, lambda job=job: result(job))
            )
    outputs = np.array([one["logits"] for one in results], np.float64)
    shape = (config.repeats, len(task.positions), *outputs.shape[1:])
    return RealOutputs(
        controls=outputs[: config.controls],
        retrained=outputs[config.controls :].reshape(shape),
        fitted=float(np.mean([one["notes"]["fitted"] for one in results])),
    )


def count_missing(task: AuditTask, config: AuditConfig) -> int:
    """How many trainings of a network are not cached yet, the first one included."""
    first = task.weights is None and not is_trained(task.folder)
    return first + sum(
        not json_io.path_of(task.folder, job.name).is_file() for job in retrainings(task, config)
    )


# --- prediction


def kernel_name(settings: KernelConfig) -> str:
    """Name of a kernel kind in tables."""
    return f"rademacher({settings.probes})" if settings.kind == "rademacher" else settings.kind


def predict(
    model: Model,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    positions: np.ndarray,
    settings: KernelConfig,
    rng: np.random.Generator,
) -> Prediction:
    """The change that each candidate's pseudo-label would make.

    Args:
        model: the trained network's mirror.
        images: the labelled ones, then the reference points, as the network takes them.
        labels: int64 (labelled,).
        logits: (labelled + points, classes), of the trained network.
        positions: of the candidates among the points.
        settings: of the kernel.
        rng: of projections and sketches.

    Raises:
        KernelError: a kernel that does not fit in the memory, is not finite or is singular.
    """
    labelled = len(labels)
    kernel, plan = query_kernel(model, images, labelled, settings, rng=rng)
    outputs = logits.astype(np.float64)
    fitted = posterior(
        kernel,
        np.eye(outputs.shape[1])[labels],
        outputs[:labelled],
        outputs[labelled:],
        keep=plan.keep,
        ridge=settings.ridge,
    )
    moves = predict_moves(fitted, positions)
    determined = int((~moves.any(axis=(1, 2))).sum())
    return Prediction(fitted.drift, moves, fitted.jitter, determined)


def predict_moves(fitted: Posterior, positions: np.ndarray) -> np.ndarray:
    """W[:,x'] R_x' for the pseudo-labels of some candidates, (positions, points, classes).

    For the kind `full` S[:,x'](S[x',x'] + λI)⁻¹R_x', leaving out the directions of a candidate's
    own block that have no variance left.
    """
    points, classes = fitted.logits.shape
    each = len(fitted.variance) // points
    residual = np.eye(classes)[fitted.logits.argmax(axis=1)] - fitted.predictions
    moves = np.zeros((len(positions), points, classes))
    for number, position in enumerate(positions):
        rows = position * each + np.arange(each)
        columns = fitted.covariance.columns(rows)
        own = columns[rows].copy()
        np.fill_diagonal(own, fitted.variance[rows])
        values, vectors = np.linalg.eigh(own)
        is_open = values >= fitted.floor[rows].max()
        inverse = np.where(is_open, 1.0 / np.where(is_open, values + fitted.ridge, 1.0), 0.0)
        right = residual[position].reshape(each, -1)
        moves[number] = (columns @ (vectors * inverse) @ (vectors.T @ right)).reshape(
            points, classes
        )
    return moves
