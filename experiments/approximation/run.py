"""The study from its settings to what it found: a network a width, its kernels before and after.

Every width and state is on disk as soon as it is measured, so that the same command goes on where
it was stopped and ends with the same numbers.
"""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from bridge.module import weights_of
from bridge.parity import certify
from experiments.approximation.comparison import Situation, compare
from experiments.approximation.config import FULL, INITIAL, STATES, TRAINED, ApproximationConfig
from experiments.approximation.subject import Subject, subjects
from kernel.contract import Scratch, key_of
from kernel.errors import KernelError
from kernel.ntk import empirical_ntk
from kernel.plan import GIB, cast, enough
from pipelines import json_io
from pipelines.progress import Stages, keep_compiled, numbered
from pipelines.record import only_writer
from pipelines.strategies.base import PROBE
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count
from trainer.predict import logits


@dataclass(frozen=True)
class OfWidth:
    """What was measured of the networks of one width.

    Attributes:
        subject: the network and its images.
        parameters: P.
        notes: how its training ended; None where it was not trained.
        states: by state, `kernels` and `regression` (rows of `comparison.compare`), the network's
            own `accuracy` on the test images, the mirror's `certificate`, `seconds`.
    """

    subject: Subject
    parameters: int
    notes: dict[str, Any] | None
    states: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        config: the settings.
        widths: narrowest first.
        seconds: wall seconds by stage, in this process.
    """

    config: ApproximationConfig
    widths: list[OfWidth]
    seconds: dict[str, float]


def find(config: ApproximationConfig, console: Console | None = None) -> Found:
    """Carry out the study, or the rest of it.

    Args:
        config: what to measure and where it is kept.
        console: where progress is shown; nothing is shown without one.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message; what
            was finished stays.
        OSError: a file cannot be written; what was finished is safe.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    stages = Stages(console)
    every = subjects(config, console)
    check_memory(config, every[0].dataset.classes)
    with only_writer(config.run_folder):
        found = [_of_width(subject, stages) for subject in every]
    return Found(config, found, dict(stages.seconds))


def check_memory(config: ApproximationConfig, classes: int) -> float:
    """GiB that the full kernel and what is made of it take at the least.

    Raises:
        KernelError: more than are given.
    """
    labelled, tests = config.initial * classes, config.test * classes
    # Θ; of labelled images a copy, one for its spectrum or with a ridge, its factor; K_TL
    entries = (labelled + tests) ** 2 + 4 * labelled**2 + labelled * tests
    if 8 * entries > config.memory_gib * GIB:
        raise KernelError(
            f"the full kernel of {config.initial + config.test:,} images of {classes} classes, and "
            f"what is compared with it, need {enough(float(8 * entries))} GiB and "
            f"{config.memory_gib:g} GiB are given: give as much as memory_gib, or lower initial or "
            "test."
        )
    return 8 * entries / GIB


def states_left(subject: Subject) -> list[str]:
    """States of this network that are asked for and not measured yet."""
    folder = subject.measurements
    return [state for state in _states(subject) if json_io.get(folder, state) is None]


def _states(subject: Subject) -> list[str]:
    return [state for state in STATES if state in subject.config.states]


def _of_width(subject: Subject, stages: Stages) -> OfWidth:
    network, notes = None, None
    if TRAINED in subject.config.states:
        if states_left(subject):
            _ = subject.mirror  # what cannot be mirrored is not trained first
        network, notes = subject.trained(stages)
    weights = {INITIAL: subject.network, TRAINED: network}
    found = {}
    for state in _states(subject):
        own = weights[state] or subject.network
        found[state] = json_io.get_or_compute(
            subject.measurements,
            state,
            lambda state=state, own=own: _measure(subject, state, own, network, stages),
        )
        shutil.rmtree(_scratch(subject, state), ignore_errors=True)
    return OfWidth(subject, parameter_count(subject.network), notes, found)


def _scratch(subject: Subject, state: str):
    return subject.measurements / f"kernel-{state}"


def _measure(
    subject: Subject, state: str, network: nn.Module, trained: nn.Module | None, stages: Stages
) -> dict[str, Any]:
    """Everything that is measured of a network as it is."""
    config, count = subject.config, len(subject.labelled)
    with numbered(subject.labelled, subject.tests):
        answers = logits(network, subject.images)
    already = dict(stages.seconds)
    with stages("certificate"):
        mirror = subject.mirror.with_weights(weights_of(network))
        certificate = certify(network, mirror, subject.images[-PROBE:]).summary()
    model = cast(mirror.model(), config.precision)
    key = key_of((*model[1:], subject.images), config.precision)
    with stages("kernel") as advance, numbered(subject.labelled, subject.tests):
        kernel = empirical_ntk(
            model,
            subject.images,
            FULL,
            precision=config.precision,
            memory_gib=config.memory_gib,
            progress=advance,
            scratch=Scratch(_scratch(subject, state), key),
        )
    situation = Situation(
        full=kernel.values,
        precision=config.precision,
        targets=subject.targets,
        test_labels=subject.test_labels,
        logits=answers,
        trained=None if trained is None else logits(trained, subject.images[count:]),
        names=subject.labelled,
    )
    with stages("comparison"):
        rows = compare(config, situation)
    right = answers[count:].argmax(1) == subject.test_labels
    spent = {name: s - already.get(name, 0.0) for name, s in stages.seconds.items()}
    seconds = {name: round(spent[name], 3) for name in ("kernel", "comparison")}
    return {
        **rows,
        "accuracy": float(np.mean(right)),
        "certificate": certificate,
        "seconds": seconds,
    }
