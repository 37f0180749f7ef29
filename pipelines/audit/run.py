"""Carry out an audit: train, retrain, predict, compare.

Trainings are cached as they are finished: after a kill the same command ends with the same numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from bridge.prefix import FrozenPrefix
from kernel.errors import KernelError
from kernel.model import dtype_of
from kernel.plan import Sizes, plan_query
from pipelines.audit import comparison, retraining
from pipelines.audit.comparison import NO_KERNEL, REFERENCES, RealChange, Row
from pipelines.audit.config import AuditConfig
from pipelines.audit.retraining import AuditTask, Prediction, RealOutputs, kernel_name
from pipelines.core import json_io
from pipelines.core.progress import Stages, generator, keep_compiled, named_images
from pipelines.core.record import only_writer
from pipelines.measurement import duration, schedule_seconds
from pipelines.run import describe, mirrored
from pipelines.strategies.base import PROBE, trains_rows
from pipelines.strategies.frontier import FrontierRows, frozen_prefix
from pipelines.strategies.options import FrozenConfig, KernelConfig
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count
from trainer.predict import logits


@dataclass(frozen=True)
class AuditedNetwork:
    """One network audited.

    Attributes:
        task: the network and its data.
        notes: how its training ended.
        real: outputs after retraining.
        changes: the real change by reference.
        before: float32 (points, classes), outputs of the trained network.
        rows: of the table.
        left_out: kernels that do not fit in the memory, each with the reason.
        certificate: of the mirror, JSON-able.
    """

    task: AuditTask
    notes: dict[str, Any]
    real: RealOutputs
    changes: dict[str, RealChange]
    before: np.ndarray
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    certificate: dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    Attributes:
        config: the settings, those of a given run in their place.
        networks: one for each width and length of training.
        seconds: wall seconds by stage, in this process.
    """

    config: AuditConfig
    networks: tuple[AuditedNetwork, ...]
    seconds: dict[str, float]

    @property
    def rows(self) -> list[Row]:
        """Of all networks."""
        return [row for network in self.networks for row in network.rows]

    @property
    def headline(self) -> Row:
        """The row of the concluding sentence: first network, first kernel, the reference asked."""
        return next(
            row
            for row in self.rows
            if row.reference == self.config.reference and row.kind != NO_KERNEL
        )


def measure(config: AuditConfig, console: Console | None = None) -> Audit:
    """Carry out an audit, or the rest of it.

    Progress is shown if there is a console; finished trainings are safe whatever is raised.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message.
        OSError: a file cannot be written.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    pretrained = retraining.read_pretrained(config)
    config, stages = pretrained.config, Stages(console)
    tasks = retraining.build_tasks(pretrained, console)
    # a network that cannot be mirrored, or has no kernel that fits, is refused before training
    with console.status("mirroring the network"):
        mirrors = [
            mirrored(task.network, task.run.twin, task.images_of(task.points[:PROBE]))
            for task in tasks
        ]
    kernels = [_fitting(task, *made, config) for task, made in zip(tasks, mirrors, strict=True)]
    with only_writer(config.run_folder):
        networks = tuple(
            _audit(task, mirror, config, *fitting, stages)
            for task, (mirror, _), fitting in zip(tasks, mirrors, kernels, strict=True)
        )
    return Audit(config, networks, dict(stages.seconds))


def plan(config: AuditConfig, console: Console) -> int:
    """Print the number of trainings left and their time, extrapolated from a few steps.

    Returns:
        The number of trainings left.

    Raises:
        TrainerError, PipelineError: as the audit itself before it trains.
    """
    keep_freed_blocks()
    pretrained = retraining.read_pretrained(config)
    config, left, expected = pretrained.config, 0, 0.0
    for task in retraining.build_tasks(pretrained, console):
        count = retraining.count_missing(task, config)
        with console.status("timing a few steps"):
            each = schedule_seconds(task.network, task.labelled_images, task.labels, task.run.train)
        left, expected = left + count, expected + count * each
        batches, epochs = task.run.train.plan(len(task.labelled))
        name = task.describe(config.width_argument)
        console.print(
            f"{f'{name}: ' if name else ''}{parameter_count(task.network):,} parameters, "
            f"{len(retraining.retrainings(task, config))} retrainings ({config.controls} controls, "
            f"{config.candidates} candidates × {config.repeats}), {count} trainings left of "
            f"{batches * epochs} steps, about {each:.1f} s each",
            highlight=False,
        )
    console.print(
        f"in all {left} trainings, about {duration(expected)} here, and {len(config.kernels)} "
        f"kernels of {config.initial + config.subset} images a network. Longer where a schedule "
        "diverges or does not fit the labels and is followed by another. Nothing was trained or "
        "recorded.",
        highlight=False,
    )
    return left


def _fitting(
    task: AuditTask, mirror: Mirror, prefix: FrozenPrefix | None, config: AuditConfig
) -> tuple[tuple[KernelConfig, ...], tuple[str, ...]]:
    """The kernels that fit in the memory, and why the others were left out.

    Raises:
        KernelError: none fits.
    """
    fitting, left_out = [], []
    shape: tuple[int, ...] = task.dataset.image_shape
    if prefix is not None and trains_rows(task.run.train):
        mirror, shape = prefix.mirror, (prefix.frontier.width,)
    for settings in config.kernels:
        image = jax.ShapeDtypeStruct(shape, dtype_of(settings.precision))
        sizes = Sizes(len(task.labelled), len(task.points))
        try:
            plan_query(mirror.model(), image, sizes, settings, np.random.default_rng(0))
        except KernelError as error:
            left_out.append(f"{kernel_name(settings)}: {error}")
        else:
            fitting.append(settings)
    if not fitting:
        raise KernelError(left_out[0])
    return tuple(fitting), tuple(left_out)


def _audit(
    task: AuditTask,
    mirror: Mirror,
    config: AuditConfig,
    kernels: tuple[KernelConfig, ...],
    left_out: tuple[str, ...],
    stages: Stages,
) -> AuditedNetwork:
    """Train, retrain, predict and compare one network."""
    network, notes = retraining.trained(task, stages)
    mirror = mirror.with_weights(weights_of(network))
    probe, prefix = task.images_of(task.points[:PROBE]), None
    if task.run.twin is None and trains_rows(task.run.train):
        prefix = frozen_prefix(network, mirror, probe)
    with stages("certificate"):
        used = mirror if prefix is None else prefix.mirror
        certificate = certify(network, used, probe, prefix).summary()
    if prefix is not None:
        examples, of = len(task.dataset.train_images), json_io.digest(describe(task.dataset))
        rows = FrontierRows(prefix, task.images_of, examples, of, FrozenConfig())
        task, network, mirror = replace(task, rows=rows), prefix.tail, prefix.mirror
    both = np.concatenate([task.labelled, task.points])
    images = task.images_of(both)
    with named_images(both):
        outputs = logits(network, images)
    before = outputs[len(task.labelled) :]
    pseudo = before.argmax(axis=1).astype(np.int64)
    real = retraining.retrain(task, config, network, pseudo, stages)
    predictions = []
    with stages("predict") as advance:
        for number, settings in enumerate(kernels):
            advance(number, len(kernels), kernel_name(settings))
            # one stream for every kernel: they do not differ by its draws
            rng = generator(config.seed, "audit kernel")
            data = (mirror.model(), images, task.labels, outputs)
            with named_images(both):
                prediction = retraining.predict(*data, task.positions, settings, rng)
            predictions.append((settings, prediction))
    draws = comparison.resamples(len(task.positions), generator(config.seed, "audit bootstrap"))
    changes = {
        reference: comparison.real_change(real, before.astype(np.float64), reference, draws)
        for reference in REFERENCES
    }
    about = {"width": task.width, "steps": task.steps}
    about |= {"residual": notes["residual_rms"], "fitted": notes["fitted"]}
    candidates = before[task.positions].astype(np.float64)
    rows = tuple(_rows(about, predictions, changes, candidates, draws))
    return AuditedNetwork(task, notes, real, changes, before, rows, left_out, certificate)


def _rows(
    about: dict[str, Any],
    predictions: list[tuple[KernelConfig, Prediction]],
    changes: dict[str, RealChange],
    candidates: np.ndarray,
    draws: np.ndarray,
) -> Iterator[Row]:
    """Rows by reference; the score without a kernel, from the candidates' outputs, comes last."""
    pseudo = np.eye(candidates.shape[1])[candidates.argmax(axis=1)]
    baseline = np.linalg.norm(pseudo - candidates, axis=1)
    for reference, real in changes.items():
        here = about | {"reference": reference}
        for settings, prediction in predictions:
            kernel = {"kind": kernel_name(settings), "sketch": settings.sketch}
            kernel |= {"jitter": prediction.jitter, "determined": prediction.determined}
            field = prediction.change(reference)
            scores = comparison.change(field)
            yield comparison.compare(here | kernel, field, scores, real, draws, baseline)
        none = {"kind": NO_KERNEL, "sketch": None, "jitter": 0.0, "determined": 0}
        yield comparison.compare(here | none, None, baseline, real, draws, None)
