"""One round: train, freeze, evaluate, score the candidates, query a batch, have it labelled.

From the pool and the network as the last round left them to the record of this one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bridge import export
from bridge.mirror import Mirror
from bridge.parity import certify
from bridge.trace import mirror
from bridge.twin import made_by
from bridge.weights import read
from pipelines import companion
from pipelines.config import RunConfig
from pipelines.first_training import FirstTrainings
from pipelines.pending import Pending
from pipelines.record import Run
from pipelines.seeds import generator
from pipelines.stages import Stages
from pipelines.strategies import STRATEGIES
from pipelines.strategies.situating import situate
from pipelines.training import fit_and_save
from trainer import objective
from trainer.data import Dataset
from trainer.networks.factory import load
from trainer.networks.loss_prediction import LossPrediction
from trainer.oracle import Oracle, missing_classes
from trainer.piecewise import Piecewise
from trainer.pool import Pool
from trainer.predict import logits


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
        first: where the first training may lie; None looks nowhere.
    """

    config: RunConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    oracle: Oracle
    stages: Callable[[], Stages]
    companion: LossPrediction | None = None
    first: FirstTrainings | None = None


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
        export.restore(network, read(run.weights(round_number)))
        companion.take_up(setting.companion, run, round_number)
        network.eval()
        stages.seconds["fit"] = trained["seconds"]
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        accuracy = objective.accuracy(logits(network, tests), dataset.test_labels)
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
