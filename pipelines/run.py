"""Rounds until the budget is spent: from settings to a run directory, resumed wherever it stood.

The module that a run's strategy has trained along with the network: made, kept, taken up.

From settings, data and an untrained network to a fresh module, and between it and the run's folder.

One training outside of a run: what is noted of it, and how long one takes here.

From settings to data and an untrained network, with everything checked that can be by then.

One training of a run: from labelled images to weights on disk and what the record says of it.

One round: train, freeze, evaluate, score the candidates, query a batch, have it labelled.

From the pool and the network as the last round left them to the record of this one.
"""

import copy
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import nn

from bridge import module as bridge_module
from bridge.mirror import Mirror
from bridge.parity import certify
from bridge.trace import mirror
from bridge.twin import made_by
from bridge.weights import read
from kernel.plan import mesh
from kernel.sharded import arithmetic
from pipelines import record, table
from pipelines.config import RunConfig, completed
from pipelines.errors import PipelineError
from pipelines.progress import Advance, Stages, generator, keep_compiled
from pipelines.record import Pending, Run
from pipelines.strategies import STRATEGIES, mirrored, require
from pipelines.strategies.base import PROBE, situate
from trainer import data
from trainer import fit as fit_module
from trainer.data import Dataset
from trainer.fit import FitResult, TrainConfig, fit, keep_freed_blocks
from trainer.networks import build, load
from trainer.networks.loss_prediction import LossPrediction
from trainer.oracle import DatasetOracle, Oracle, missing_classes
from trainer.pool import Pool
from trainer.predict import Piecewise, logits


def companion_of(config: RunConfig, dataset: Dataset, network: nn.Module) -> LossPrediction | None:
    """A fresh module for an untrained network, or None for a strategy that needs none.

    Raises:
        NetworkError: the network has no feature map that it could read, or not the ones named.
    """
    if "hooks" not in config.needs or not config.cycles:
        return None
    settings = config.ll4al
    return LossPrediction.of(
        network,
        dataset.normalise(dataset.train_images[:PROBE]),
        generator(config.seed, "companion"),
        settings.taps,
        width=settings.width,
        margin=settings.margin,
        weight=settings.weight,
        detach=settings.detach,
        learning_rate=settings.learning_rate,
        felt=settings.share(config.train.loss, dataset.classes),
    )


def keep(companion: LossPrediction | None, run: Run, number: int) -> None:
    """Save what was trained along in a training of the run, if anything was.

    Raises:
        BridgeError: it cannot be written.
    """
    if companion is not None:
        bridge_module.save_module(companion, run.companion(number), {"round": str(number)})


def take_up(companion: LossPrediction | None, run: Run, number: int) -> None:
    """Put what was saved of a training back into the module, if there is one.

    Raises:
        BridgeError: it is not there, or of another module.
    """
    if companion is not None:
        bridge_module.restore(companion, read(run.companion(number)))


def noted_fit(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    rng: np.random.Generator,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Train in place, and say how it ended.

    Args:
        network: trained from the weights that it has.
        images: as the network takes them.
        labels: the class of each.
        train: how.
        rng: of everything random in it.
        advance: told how far it is.

    Returns:
        `steps`, `train_accuracy`, `residual_rms`, `fitted`, `stopped` and `seconds`, JSON-able.
    """
    began = time.perf_counter()
    result: FitResult = fit(network, images, labels, train, rng, advance)
    return {
        "steps": result.steps,
        "train_accuracy": result.train_accuracy,
        "residual_rms": result.residual_rms,
        "fitted": result.fitted,
        "stopped": result.stopped,
        "seconds": round(time.perf_counter() - began, 3),
    }


def schedule_seconds(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    steps: int = 20,
) -> float:
    """How long one schedule of training takes here, from a few steps of it on a copy."""
    network = copy.deepcopy(network)
    batches, epochs = train.plan(len(labels))
    few = math.ceil(steps / batches)
    short = dataclasses.replace(train, epochs=few, min_steps=few * batches, extensions=0)
    fit(network, images, labels, short, np.random.default_rng(0))  # the first steps warm up
    began = time.perf_counter()
    done = fit(network, images, labels, short, np.random.default_rng(0))
    return (time.perf_counter() - began) / done.steps * batches * epochs


def prepared(
    config: RunConfig, console: Console, read: Callable[[], Dataset] | None = None
) -> tuple[Dataset, nn.Module]:
    """The data set and the network of a run.

    Args:
        config: of the run.
        console: where it is said that data are being read.
        read: reads the data set, where it is not one of the table's.

    Raises:
        DataError, NetworkError: data or network that cannot be had, or a network without what
            the strategy needs of it.
        PipelineError: settings that do not fit the data, or a network without what the strategy
            needs of it.
        KernelError: a kernel that is to be computed, and cannot be on the devices here.
    """
    if "kernel" in config.needs and config.cycles:
        mesh(config.kernel.devices)
        arithmetic(config.kernel.precision)
    with console.status("reading the data"):
        dataset = read() if read else _loaded(config)
    _check_fit(config, dataset)
    network = _network(config, dataset)
    if config.cycles:
        few = dataset.normalise(dataset.train_images[:PROBE])
        require(config.needs, network, few)
    return dataset, network


def _loaded(config: RunConfig) -> Dataset:
    return data.load(
        config.dataset, config.data_folder, image_size=config.image_size, download=config.download
    )


def _check_fit(config: RunConfig, dataset: Dataset) -> None:
    known = config.dataset != "images"  # of a person's own images only that person can tell
    if known and config.train.augmentation == "flip_crop" and not dataset.flip:
        raise PipelineError(
            f"a mirror image of {dataset.name} is not of the same class, and train.augmentation is "
            "flip_crop; use crop or none."
        )
    examples = len(dataset.train_images)
    wanted = config.initial + config.cycles * config.query
    if wanted > examples:
        raise PipelineError(
            f"{config.initial} initial labels and {config.cycles} queries of {config.query} need "
            f"{wanted} images and {dataset.name} has {examples} to label: lower initial, query or "
            "cycles."
        )


def _network(config: RunConfig, dataset: Dataset) -> nn.Module:
    _, channels, height, width = dataset.train_images.shape
    network = build(
        config.network,
        (channels, height, width),
        dataset.classes,
        generator(config.seed, "weights"),
        config.network_arguments,
    )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("device is cuda and torch sees no GPU here; use --device cpu or auto.")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return network.to("cuda" if on_gpu else "cpu")


class FirstTrainingCache(Protocol):
    """First trainings of runs, kept for other runs that begin with the same one."""

    def get_or_train(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: RunConfig,
        train: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Leave the network as its first training does, by `train` or from the cache.

        Args:
            network: with its initial weights; is trained in place, or given the weights.
            images: labelled, as the network takes them.
            labels: the class of each.
            config: of the run.
            train: trains the network in place; returns `train_accuracy`, `fit` and `seconds`.

        Returns:
            What `train` returned, here or in an earlier run, and `shared`, the entry's name.
        """
        ...


def fit_and_save(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: RunConfig,
    run: Run,
    number: int,
    stages: Stages,
    companion: LossPrediction | None = None,
    first: FirstTrainingCache | None = None,
) -> dict[str, Any]:
    """Train from the network's present weights and save.

    Args:
        network: is trained in place.
        images: labelled, as the network takes them.
        labels: the class of each.
        config: of the run.
        run: where the weights go.
        number: of the training in this run, from 0.
        stages: where time and progress are noted.
        companion: a module trained along, and saved beside the network; None for none.
        first: cache of first trainings; without one each run trains its own.

    Returns:
        `train_accuracy`, `fit` and `seconds`, JSON-able; with `first` also `shared`, the name of
        the training there, of a training that can be shared.

    Raises:
        FitError: images and labels that cannot be trained on, or training that diverges.
    """

    def train() -> dict[str, Any]:
        with stages("fit") as advance:
            rng = generator(config.seed, "fit", number)
            fitted = fit(network, images, labels, config.train, rng, advance, companion)
        return _notes(fitted, stages.seconds["fit"])

    if first is None or number or companion is not None:
        trained = train()
    else:
        trained = first.get_or_train(network, images, labels, config, train)
        stages.seconds["fit"] = trained["seconds"]
    keep(companion, run, number)  # first: weights of the network end a training
    bridge_module.save_module(network, run.weights(number), {"round": str(number)})
    return trained


def _notes(fitted: FitResult, seconds: float) -> dict[str, Any]:
    return {
        "train_accuracy": fitted.train_accuracy,
        "fit": {
            "steps": fitted.steps,
            "epochs": fitted.epochs,
            "fitted": fitted.fitted,
            "stopped": fitted.stopped,
            "residual_rms": fitted.residual_rms,
        },
        "seconds": seconds,
    }


class Bridge:
    """Carries the network's weights over to one JAX mirror, which is compiled once a run."""

    def __init__(self, network: nn.Module, twin: str | None = None):
        """No mirror is made before one is asked for.

        Args:
            network: whose mirror it is.
            twin: `module:function` of a mirror of the user's own, called with the network and a
                few images.

        Raises:
            NetworkError: there is no such function.
        """
        self._network = network
        self._twin = None if twin is None else load(twin, "twin")
        self._mirror: Mirror | None = None

    def prepare(self, probe: np.ndarray) -> Mirror:
        """Make and certify the mirror now, so that what cannot be mirrored is not trained first.

        Raises:
            BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        """
        self._mirror = self._make(probe)
        certify(self._network, self._mirror, probe)
        return self._mirror

    def cross(self, run: Run, round_number: int, probe: np.ndarray):
        """The mirror with the weights that a round exported, and its certificate.

        Raises:
            BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        """
        weights = read(run.weights(round_number))
        if self._mirror is None:
            self._mirror = self._make(probe)
        self._mirror = self._mirror.with_weights(weights)
        return self._mirror, certify(self._network, self._mirror, probe).summary()

    def _make(self, probe: np.ndarray) -> Mirror:
        if self._twin is None:
            return mirror(self._network, probe)
        return made_by(self._twin, self._network, probe)


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round.

    Attributes:
        config: of the run.
        dataset: its data.
        network: trained in place.
        bridge: its mirror.
        oracle: who labels.
        stages: makes what notes time and memory, and shows progress.
        companion: trained along with the network; None for none.
        first: cache of first trainings; without one each run trains its own.
    """

    config: RunConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    oracle: Oracle
    stages: Callable[[], Stages]
    companion: LossPrediction | None = None
    first: FirstTrainingCache | None = None


def play(setting: Setting, run: Run, pool: Pool, labels: np.ndarray) -> dict[str, Any]:
    """Train on the labelled set, evaluate, and unless this is the last round query a batch.

    Args:
        setting: what stays the same.
        run: the rounds so far; this one is the next.
        pool: what is labelled and what is not.
        labels: int64 (labelled,), the answers for `pool.labelled`, in that order.

    Returns:
        The line of the record; the weights are on disk before it is returned.
    """
    config, dataset, network = setting.config, setting.dataset, setting.network
    round_number, stages = len(run.rounds), setting.stages()
    labelled_images = dataset.normalise(dataset.train_images[pool.labelled])
    pending = Pending(run)
    trained = pending.trained()
    if trained is None:
        trained = fit_and_save(
            network,
            labelled_images,
            labels,
            config,
            run,
            round_number,
            stages,
            setting.companion,
            setting.first,
        )
        pending.keep(trained)
    else:
        bridge_module.restore(network, read(run.weights(round_number)))
        take_up(setting.companion, run, round_number)
        network.eval()
        stages.seconds["fit"] = trained["seconds"]
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        accuracy = fit_module.accuracy(logits(network, tests), dataset.test_labels)
    line = {
        "round": round_number,
        "labelled": len(pool.labelled),
        "test_accuracy": accuracy,
        "train_accuracy": trained["train_accuracy"],
        "fit": trained["fit"],
        "missing_classes": list(missing_classes(labels, dataset.class_names)),
    }
    if "shared" in trained:
        line["shared"] = trained["shared"]
    if round_number == config.cycles:
        queried = {"candidates": 0, "indices": [], "scores": [], "labels": [], "diagnostics": {}}
    else:
        queried = _query(setting, run, pool, labels, stages, pending.kernel)
    return line | queried | {"seconds": stages.seconds, "peak_memory_mib": stages.peak_memory_mib}


def _query(
    setting: Setting, run: Run, pool: Pool, labels: np.ndarray, stages: Stages, folder: Path
) -> dict[str, Any]:
    config, dataset, network = setting.config, setting.dataset, setting.network
    round_number = len(run.rounds)

    def images(indices: np.ndarray) -> np.ndarray:
        return dataset.normalise(dataset.train_images[indices])

    strategy = STRATEGIES[config.strategy]
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", round_number))
    situation = situate(
        network,
        images,
        pool,
        labels,
        candidates,
        train=config.train,
        mirror=lambda probe: setting.bridge.cross(run, round_number, probe),
        kernel=config.kernel,
        stages=stages,
        needs=config.needs,
        folder=folder,
        ask=setting.oracle,
        lookahead=config.lookahead,
        baseline=config.baseline,
        dynamics=config.dynamics,
        bald=config.bald,
        albl=config.albl.within(config.cycles * config.query),
        history=run.rounds,
        companion=setting.companion,
        test=(
            lambda places: dataset.normalise(dataset.test_images[places]),
            dataset.test_labels,
        ),
    )
    query = strategy(situation, config.query, generator(config.seed, config.strategy, round_number))
    return {
        "candidates": len(candidates),
        "indices": query.indices.tolist(),
        "scores": query.scores.tolist(),
        "labels": setting.oracle(query.indices).tolist(),
        "diagnostics": query.diagnostics,
    }


def run(
    config: RunConfig,
    console: Console | None = None,
    first: FirstTrainingCache | None = None,
    read_dataset: Callable[[], Dataset] | None = None,
) -> Run:
    """Carry out a run, or the rest of it.

    Args:
        config: what to do and where to record it.
        console: where progress and a row a round are shown; nothing is shown without one.
        first: cache of first trainings, for several runs that begin with the same one.
        read_dataset: reads the data set, in place of what the settings name.

    Returns:
        The complete run, as its directory holds it.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message; what
            was recorded before stays.
        OSError: a file cannot be written; the last completed round is safe.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    dataset, network = prepared(config, console, read_dataset)
    companion = companion_of(config, dataset, network)
    with record.only_writer(config.run_folder):
        asked = config.record() | {"data": describe(dataset)}
        so_far = record.open_run(config.run_folder, asked, completed)
        oracle, bridge = DatasetOracle(dataset.train_labels), Bridge(network, config.twin)
        setting = Setting(
            config, dataset, network, bridge, oracle, lambda: Stages(console), companion, first
        )
        return _rounds(setting, so_far, console)


def _rounds(setting: Setting, run: Run, console: Console) -> Run:
    config, dataset, oracle = setting.config, setting.dataset, setting.oracle
    start = generator(config.seed, "initial")
    pool = Pool.initial(len(dataset.train_images), config.initial, start)
    labels = oracle(pool.labelled)
    for line in run.rounds:
        pool, labels = _acquire(pool, labels, line)
    table.heading(console, config, run)
    if run.rounds and not run.complete:
        bridge_module.restore(setting.network, read(run.weights(len(run.rounds) - 1)))
        take_up(setting.companion, run, len(run.rounds) - 1)
    if mirrored(config.needs) and config.cycles and not run.complete:
        with console.status("mirroring the network"):
            setting.bridge.prepare(dataset.normalise(dataset.train_images[:PROBE]))
    while not run.complete:
        line = play(setting, run, pool, labels)
        if not run.rounds:
            line["initial"] = {"indices": pool.labelled.tolist(), "labels": labels.tolist()}
        run = record.append(run, line)
        record.clear(run.path)
        table.row(console, line)
        pool, labels = _acquire(pool, labels, line)
    table.ending(console, run)
    return run


def _acquire(pool: Pool, labels: np.ndarray, line: dict[str, Any]) -> tuple[Pool, np.ndarray]:
    if not line["indices"]:
        return pool, labels
    answers = np.asarray(line["labels"], np.int64)
    return pool.acquire(np.asarray(line["indices"], np.int64)), np.concatenate([labels, answers])


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the record says of the data: enough to notice that they are not the same any more."""
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images):
        digest.update(np.ascontiguousarray(array).data)
    return {
        "name": dataset.name,
        "classes": list(dataset.class_names),
        "train": list(dataset.train_images.shape),
        "test": len(dataset.test_images),
        "sha256": digest.hexdigest()[:16],
    }
