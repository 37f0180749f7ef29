"""Between questions: training on all labels so far, and what the next questions stand on.

From a run directory and its answers to the network as trained last and an asker that has absorbed
what was answered since; whatever was finished before an interruption is taken up.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from bridge import export
from bridge.weights import read
from pipelines import pending
from pipelines.first_training import FirstTrainings
from pipelines.pending import Pending
from pipelines.round import Bridge
from pipelines.seeds import generator
from pipelines.sequential.asker import Asker
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.grounds import Event
from pipelines.sequential.journal import Journal
from pipelines.sequential.making import Scene, grounds
from pipelines.stages import Stages
from pipelines.strategies.situation import PROBE
from pipelines.training import fit_and_save
from trainer.data import Dataset
from trainer.oracle import missing_classes
from trainer.piecewise import Piecewise
from trainer.pool import Pool
from trainer.predict import logits

KERNEL = ".kernel"  # in the run directory: finished chunks of a kernel that takes long


@dataclass(frozen=True)
class Work:
    """What stays the same from question to question.

    Attributes:
        config: of the run.
        dataset: what is labelled.
        network: trained in place.
        bridge: its mirror.
        journal: what has happened.
        start: {data-set index: class}, the labels at the start.
        tests: places of the test images on which the linearised network is evaluated.
        stages: makes what notes time and memory, and shows progress.
        first: where the first training may lie; None looks nowhere.
    """

    config: SequentialConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    journal: Journal
    start: dict[int, int]
    tests: np.ndarray
    stages: Callable[[], Stages]
    first: FirstTrainings | None = None

    def labels(self, before: int) -> dict[int, int]:
        """{data-set index: class} of all labels given before a training, in their order."""
        labels = dict(self.start)
        for line in self.journal.given:
            if line["round"] < before:
                labels[line["image"]] = line["label"]
        return labels

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the network takes them."""
        return self.dataset.normalise(self.dataset.train_images[indices])


def test_places(dataset: Dataset, subset: int | None, seed: int) -> np.ndarray:
    """Places of the test images on which the linearised network is evaluated, in order."""
    count = len(dataset.test_images)
    if subset is None or subset >= count:
        return np.arange(count)
    return np.sort(generator(seed, "tests").choice(count, subset, replace=False))


def train(work: Work, why: str, *, ask_on: bool) -> Asker | None:
    """Train on all labels so far, write it to the record, and make what is asked from it.

    Args:
        work: of the run.
        why: it is trained now, for the record.
        ask_on: whether questions follow; without, no kernel is computed.
    """
    journal, dataset = work.journal, work.dataset
    number, stages = len(journal.run.rounds), work.stages()
    labels = work.labels(number)
    pending_round = Pending(journal.run)
    trained = pending_round.trained()
    if trained is None:
        trained = _fit(work, labels, number, stages)
        pending_round.keep(trained)
    else:
        export.restore(work.network, read(journal.run.weights(number)))
        work.network.eval()
        stages.seconds["fit"] = trained["seconds"]
    whole, some = _accuracies(work, stages)
    asker = make_asker(work, number, stages) if ask_on else None
    line = {
        "round": number,
        "why": why,
        "labelled": len(labels),
        "test_accuracy": whole,
        "subset_accuracy": some,
        "linearised_accuracy": asker.standing.accuracy if asker else None,
        "train_accuracy": trained["train_accuracy"],
        "fit": trained["fit"],
        "missing_classes": list(
            missing_classes(np.array([*labels.values()], np.int64), dataset.class_names)
        ),
        "candidates": len(asker.grounds.candidates) if asker else 0,
        "tests": len(work.tests),
        "diagnostics": asker.grounds.diagnostics if asker else {},
        "seconds": stages.seconds,
        "peak_memory_mib": stages.peak_memory_mib,
    }
    if "shared" in trained:
        line["shared"] = trained["shared"]
    if number == 0:
        line["initial"] = {"indices": [*labels], "labels": [*labels.values()]}
    journal.train(line)
    pending.clear(journal.run.path)
    return asker


def take_up(work: Work) -> Asker:
    """The asker of the last training, with everything that was said since."""
    number = len(work.journal.run.rounds) - 1
    export.restore(work.network, read(work.journal.run.weights(number)))
    work.network.eval()
    return make_asker(work, number, work.stages())


def make_asker(work: Work, number: int, stages: Stages) -> Asker:
    """What questions after a training are asked by; its weights are on the disk."""
    config, dataset, run = work.config, work.dataset, work.journal.run
    labels = work.labels(number)
    aside = {
        line["image"]
        for line in work.journal.answers
        if line["label"] is None and (line["round"] is None or line["round"] < number)
    }
    taken = np.array([*labels, *(aside - labels.keys())], np.int64)
    pool = Pool.of(len(dataset.train_images), taken)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    with stages("certificate"):
        probe = work.images(np.concatenate([candidates, pool.labelled])[:PROBE])
        mirror, certificate = work.bridge.cross(run, number, probe)
    tests = dataset.normalise(dataset.test_images[work.tests]) if len(work.tests) else None
    made = grounds(
        work.network,
        mirror,
        certificate,
        Scene(
            images=work.images,
            labelled=labels,
            candidates=candidates,
            test_images=tests,
            test_labels=dataset.test_labels[work.tests],
            classes=dataset.classes,
        ),
        config.strategy,
        config.options,
        config.kernel,
        loss=config.train.loss,
        seed=config.seed,
        rng=generator(config.seed, "kernel", number),
        stages=stages,
        folder=run.path / KERNEL,
    )
    said = [Event(line["image"], line["label"]) for line in work.journal.of_round(number)]
    with stages("posterior"):
        return Asker(made, said)


def tidy(work: Work) -> None:
    """Delete what only an unfinished run needs."""
    shutil.rmtree(work.journal.run.path / KERNEL, ignore_errors=True)


def _fit(work: Work, labels: dict[int, int], number: int, stages: Stages) -> dict[str, Any]:
    """Train and save; what the record says of it."""
    config, run = work.config, work.journal.run
    if number:  # a warm start, from the last training
        export.restore(work.network, read(run.weights(number - 1)))
    images = work.images(np.array([*labels], np.int64))
    classes = np.array([*labels.values()], np.int64)
    return fit_and_save(
        work.network, images, classes, config, run, number, stages, first=work.first
    )


def _accuracies(work: Work, stages: Stages) -> tuple[float | None, float | None]:
    """The trained network's, on all test images and on those of the linearised network."""
    dataset = work.dataset
    if not len(dataset.test_images):
        return None, None
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        answers = logits(work.network, tests).argmax(axis=1)
    right = answers == dataset.test_labels
    return float(right.mean()), float(right[work.tests].mean())
