"""An audit from its settings to what it found: train, retrain, predict, compare.

Everything that takes long is on disk as soon as it is done, so that the same command goes on where
it was stopped and ends with the same numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from kernel.errors import KernelError
from kernel.model import dtype_of
from kernel.ntk import Sizes, decide
from pipelines.audit import comparison, trainings
from pipelines.audit.config import AuditConfig
from pipelines.audit.given import given
from pipelines.audit.predictions import Prediction, name_of, predict
from pipelines.audit.rows import NO_KERNEL, REFERENCES, Row, Target, compared, target
from pipelines.audit.subject import Subject, subjects
from pipelines.audit.trainings import Real
from pipelines.progress import Stages, generator, keep_compiled, numbered
from pipelines.record import only_writer
from pipelines.run import Bridge
from pipelines.strategies.base import PROBE
from pipelines.strategies.options import KernelConfig
from trainer.fit import keep_freed_blocks
from trainer.predict import logits


@dataclass(frozen=True)
class Network:
    """What was found of one network.

    Attributes:
        subject: the network.
        notes: how its training ended.
        real: what retraining did.
        targets: the real change by reference.
        before: float32 (points, classes), outputs of the trained network.
        rows: of the table.
        left_out: kernels that do not fit in the memory, each with the reason.
        certificate: that the mirror is the network, JSON-able.
    """

    subject: Subject
    notes: dict[str, Any]
    real: Real
    targets: dict[str, Target]
    before: np.ndarray
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    certificate: dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        config: the settings, those of a given run in their place.
        networks: one for each width and length of training.
        seconds: wall seconds by stage, in this process.
    """

    config: AuditConfig
    networks: tuple[Network, ...]
    seconds: dict[str, float]

    @property
    def rows(self) -> list[Row]:
        """Of all networks."""
        return [row for network in self.networks for row in network.rows]

    @property
    def headline(self) -> Row:
        """The row that the sentence speaks of: first network, first kernel, the reference asked."""
        return next(
            row
            for row in self.rows
            if row.reference == self.config.reference and row.kind != NO_KERNEL
        )


def audit(config: AuditConfig, console: Console | None = None) -> Audit:
    """Carry out an audit, or the rest of it.

    Args:
        config: what to do and where its trainings are kept.
        console: where progress is shown; nothing is shown without one.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message; the
            trainings that were finished stay.
        OSError: a file cannot be written; the trainings that were finished are safe.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    taken = given(config)
    config, stages = taken.config, Stages(console)
    found = subjects(taken, console)
    # what cannot be mirrored, or has no kernel that fits, is told before anything is trained
    with console.status("mirroring the network"):
        mirrors = [_mirror(subject) for subject in found]
    fitting = [_fitting(s, m, config) for s, m in zip(found, mirrors, strict=True)]
    with only_writer(config.run_folder):
        networks = tuple(
            _network(subject, mirror, config, *kernels, stages)
            for subject, mirror, kernels in zip(found, mirrors, fitting, strict=True)
        )
    return Audit(config, networks, dict(stages.seconds))


def folder_of(config: AuditConfig, subject: Subject) -> Path:
    """Where the trainings of a network lie."""
    return config.run_folder / "trainings" / subject.folder


def _mirror(subject: Subject) -> Mirror:
    return Bridge(subject.network, subject.config.twin).prepare(
        subject.images(subject.points[:PROBE])
    )


def _fitting(
    subject: Subject, mirror: Mirror, config: AuditConfig
) -> tuple[tuple[KernelConfig, ...], tuple[str, ...]]:
    """The kernels that fit in the memory, and what was left out.

    Raises:
        KernelError: none fits.
    """
    fitting, left_out = [], []
    shape = subject.dataset.image_shape
    for settings in config.kernels:
        image = jax.ShapeDtypeStruct(shape, dtype_of(settings.precision))
        sizes = Sizes(len(subject.labelled), len(subject.points), None, settings.sketch)
        try:
            decide(mirror.model(), image, sizes, settings.request)
        except KernelError as error:
            left_out.append(f"{name_of(settings)}: {error}")
        else:
            fitting.append(settings)
    if not fitting:
        raise KernelError(left_out[0])
    return tuple(fitting), tuple(left_out)


def _network(
    subject: Subject,
    mirror: Mirror,
    config: AuditConfig,
    kernels: tuple[KernelConfig, ...],
    left_out: tuple[str, ...],
    stages: Stages,
) -> Network:
    """Train, retrain, predict and compare one network."""
    folder = folder_of(config, subject)
    folder.mkdir(parents=True, exist_ok=True)
    notes = trainings.train(subject, folder, stages)
    mirror = mirror.with_weights(weights_of(subject.network))
    probe = subject.images(subject.points[:PROBE])
    with stages("certificate"):
        certificate = certify(subject.network, mirror, probe).summary()
    both = np.concatenate([subject.labelled, subject.points])
    images = subject.images(both)
    with numbered(both):
        outputs = logits(subject.network, images)
    before = outputs[len(subject.labelled) :]
    pseudo = before.argmax(axis=1).astype(np.int64)
    real = trainings.retrain(subject, config, pseudo, folder, stages)
    predicted = []
    with stages("predict") as advance:
        for number, settings in enumerate(kernels):
            advance(number, len(kernels), name_of(settings))
            # the same stream for every kernel: their differences are not those of its draws
            rng = generator(config.seed, "audit kernel")
            arguments = (mirror.model(), images, subject.labels, outputs)
            with numbered(both):
                predicted.append((settings, predict(*arguments, subject.places, settings, rng)))
    draws = generator(config.seed, "audit bootstrap")
    places = comparison.resamples(len(subject.places), draws)
    targets = {
        reference: target(real, before.astype(np.float64), reference, places)
        for reference in REFERENCES
    }
    rows = tuple(_rows(subject, notes, predicted, targets, before, places))
    return Network(subject, notes, real, targets, before, rows, left_out, certificate)


def _rows(
    subject: Subject,
    notes: dict[str, Any],
    predicted: list[tuple[KernelConfig, Prediction]],
    targets: dict[str, Target],
    before: np.ndarray,
    places: np.ndarray,
):
    """Rows by reference, the score without a kernel last."""
    asked = before[subject.places].astype(np.float64)
    pseudo = np.eye(asked.shape[1])[asked.argmax(axis=1)]
    baseline = np.linalg.norm(pseudo - asked, axis=1)
    about = {
        "width": subject.width,
        "steps": subject.steps,
        "residual": notes["residual_rms"],
        "fitted": notes["fitted"],
    }
    for reference, real in targets.items():
        here = about | {"reference": reference}
        for settings, one in predicted:
            kernel = {"kind": name_of(settings), "sketch": settings.sketch}
            kernel |= {"jitter": one.jitter, "determined": one.determined}
            field = one.change(reference)
            scores = comparison.change(field)
            yield compared(here | kernel, field, scores, real, places, baseline)
        none = {"kind": NO_KERNEL, "sketch": None, "jitter": 0.0, "determined": 0}
        yield compared(here | none, None, baseline, real, places, None)
