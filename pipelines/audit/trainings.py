"""Real changes: the network trained, and trained again with each candidate and with nothing new.

From a subject to outputs at the reference points. Every training is on disk before the next one
begins and is not done again; its randomness follows from the seed and its own name alone.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridge import module
from bridge.weights import read
from pipelines.audit import store
from pipelines.audit.config import AuditConfig
from pipelines.audit.store import Outputs
from pipelines.audit.subject import Subject
from pipelines.progress import Stages, generator, numbered
from pipelines.run import noted_fit
from trainer import fit
from trainer.predict import logits


class Job(NamedTuple):
    """One retraining.

    Attributes:
        name: of its file.
        place: of the candidate among the reference points; None for a control.
        seed: name and number of its stream of random numbers.
    """

    name: str
    place: int | None
    seed: tuple[str, int]


class Real(NamedTuple):
    """What training really does to the outputs.

    Attributes:
        controls: float64 (controls, points, classes), outputs after training on with nothing new.
        retrained: float64 (repeats, candidates, points, classes), after training on with each
            candidate under its pseudo-label.
        fitted: share of the retrainings that fitted their labels.
    """

    controls: np.ndarray
    retrained: np.ndarray
    fitted: float


def jobs(subject: Subject, config: AuditConfig) -> list[Job]:
    """Every retraining of a network, controls first."""
    controls = [Job(f"control-{c}", None, ("audit control", c)) for c in range(config.controls)]
    return controls + [
        Job(f"candidate-{index}-{repeat}", int(place), (f"audit candidate {index}", repeat))
        for repeat in range(config.repeats)
        for place, index in zip(subject.places, subject.candidates, strict=True)
    ]


def train(subject: Subject, folder: Path, stages: Stages) -> dict[str, Any]:
    """Train the network, or take the weights given or trained before; leaves it in eval mode.

    Args:
        subject: its network is trained in place.
        folder: of the subject's trainings.
        stages: where time is noted.

    Returns:
        How well the network fits its labels, JSON-able.
    """
    name = "network"
    done = store.get(folder, name)
    path = folder / "weights.safetensors"
    if done is not None and path.is_file():
        module.restore(subject.network, read(path))
        subject.network.eval()
        return done.notes
    images, labels, settings = subject.labelled_images, subject.labels, subject.config.train
    if subject.weights is not None:
        module.restore(subject.network, subject.weights)
        subject.network.eval()
        with numbered(subject.labelled):
            answers = logits(subject.network, images)
        accuracy = fit.accuracy(answers, labels)
        notes = {
            "steps": None,
            "train_accuracy": accuracy,
            "residual_rms": fit.residual_rms(answers, labels, settings.loss),
            "fitted": accuracy >= settings.target_accuracy,
            "stopped": "weights were given",
            "seconds": 0.0,
        }
    else:
        with stages("train") as advance:
            rng = generator(subject.config.seed, "fit")
            notes = noted_fit(subject.network, images, labels, settings, rng, advance)
    module.save_module(subject.network, path, {"stage": "audit"})
    with numbered(subject.points):
        outputs = Outputs(logits(subject.network, subject.images(subject.points)), notes)
    store.put(folder, name, outputs)
    return notes


def retrain(
    subject: Subject, config: AuditConfig, pseudo: np.ndarray, folder: Path, stages: Stages
) -> Real:
    """Train copies of the trained network on, once for each job that is not on disk yet.

    Args:
        subject: with its network trained.
        config: how many candidates, repeats and controls.
        pseudo: int64 (points,), the class that the trained network gives each.
        folder: of the subject's trainings.
        stages: where time is noted.
    """
    points = subject.images(subject.points)
    images, labels = subject.labelled_images, subject.labels
    asked = jobs(subject, config)
    finished: list[Outputs] = []
    with stages("retrain") as advance:
        for number, job in enumerate(asked):
            outputs = store.get(folder, job.name)
            if outputs is None:
                advance(number, len(asked), job.name)
                more = slice(0, 0) if job.place is None else slice(job.place, job.place + 1)
                network = copy.deepcopy(subject.network)
                rng = generator(subject.config.seed, *job.seed)
                notes = noted_fit(
                    network,
                    np.concatenate([images, points[more]]),
                    np.concatenate([labels, pseudo[more]]),
                    subject.config.train,
                    rng,
                )
                with numbered(subject.points):
                    outputs = Outputs(logits(network, points), notes)
                store.put(folder, job.name, outputs)
            finished.append(outputs)
    answers = np.array([outputs.logits for outputs in finished], np.float64)
    shape = (config.repeats, len(subject.places), *answers.shape[1:])
    return Real(
        controls=answers[: config.controls],
        retrained=answers[config.controls :].reshape(shape),
        fitted=float(np.mean([outputs.notes["fitted"] for outputs in finished])),
    )


def missing(subject: Subject, config: AuditConfig, folder: Path) -> int:
    """How many trainings of a network are not on disk yet, the first one included."""
    names = [job.name for job in jobs(subject, config)]
    if subject.weights is None:
        names.append("network")
    return sum(not store.path_of(folder, name).is_file() for name in names)
