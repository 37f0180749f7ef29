"""The measurement from its settings to what it found: networks, their kernels, R over training.

Everything that takes long is on disk as soon as it is done, so that the same command goes on where
it was stopped and ends with the same numbers.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bridge.mirror import Mirror
from experiments.dynamics.config import OF_KERNEL, TheoryConfig
from experiments.dynamics.gammas import Gammas, gammas
from experiments.dynamics.of_kernel import Queries, envelope_rows, mmd_rows, tau_rows
from experiments.dynamics.of_training import ratio_rows
from experiments.dynamics.state import State, check_memory
from experiments.dynamics.subject import Subject, subject
from experiments.dynamics.training import at_epoch, trained
from kernel.dynamics import cotangents
from pipelines import json_io
from pipelines.progress import Stages, generator, keep_compiled
from pipelines.record import only_writer
from pipelines.run import Bridge
from pipelines.strategies.base import PROBE
from trainer.fit import keep_freed_blocks

INITIAL, TRAINED = "initial", "trained"
STATES = (INITIAL, TRAINED)
G_MSE, G = "G_MSE", "G"


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        config: the settings.
        subject: the network, its labelled set and candidates; None where only runs were read.
        notes: how its training ended; None where it was not trained.
        states: by figure of the kernel, then by state of the network, rows of numbers.
        epochs: R by epoch.
        gammas: what the runs say of γ; None without runs.
        seconds: wall seconds by stage, in this process.
    """

    config: TheoryConfig
    subject: Subject | None
    notes: dict[str, Any] | None
    states: dict[str, dict[str, list[dict[str, Any]]]]
    epochs: dict[int, dict[str, Any]]
    gammas: Gammas | None
    seconds: dict[str, float]


def find(config: TheoryConfig, console: Console | None = None) -> Found:
    """Carry out a measurement, or the rest of it.

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
    # runs are read first: what is wrong with them is told before anything is trained
    read = gammas(config.runs) if config.runs else None
    if not config.measured:
        with only_writer(config.run_folder):
            return Found(config, None, None, {}, {}, read, dict(stages.seconds))
    whole = subject(config, console)
    with console.status("mirroring the network"):
        mirror = mirrored(whole)
    with only_writer(config.run_folder):
        notes, states = _of_kernels(whole, mirror, stages)
        epochs = _of_training(whole, mirror, stages) if "ratio" in config.figures else {}
    return Found(config, whole, notes, states, epochs, read, dict(stages.seconds))


def mirrored(whole: Subject) -> Mirror:
    """The mirror of the untrained network, once it is sure that what is asked for fits.

    Raises:
        BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        KernelError: the kernel does not fit in the memory.
    """
    config = whole.config
    mirror = Bridge(whole.network, config.twin).prepare(whole.images[-PROBE:])
    if OF_KERNEL & set(config.figures):
        shape, count = whole.dataset.image_shape, len(whole.labels)
        check_memory(mirror.model(), shape, count, config.request, config.sketch)
    return mirror


def left(whole: Subject) -> list[str]:
    """Names of the pieces that are not measured yet."""
    return [name for name in _pieces(whole.config) if json_io.get(whole.measurements, name) is None]


def _pieces(config: TheoryConfig) -> list[str]:
    names = [
        f"{figure}-{state}" for state in STATES for figure in config.figures if figure in OF_KERNEL
    ]
    return names + [f"ratio-{epoch}" for epoch in config.epochs if "ratio" in config.figures]


def _of_kernels(
    whole: Subject, mirror: Mirror, stages: Stages
) -> tuple[dict[str, Any] | None, dict[str, dict[str, list[dict[str, Any]]]]]:
    """The figures of the kernel, of the network as it is initialised and as a run trains it."""
    asked = [figure for figure in whole.config.figures if figure in OF_KERNEL]
    if not asked:
        return None, {}
    network, notes = trained(whole, stages)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {figure: {} for figure in asked}
    for name, own in ((INITIAL, whole.network), (TRAINED, network)):
        scratch = whole.measurements / f"kernel-{name}"
        state = State(whole, own, mirror, stages, scratch)
        for figure in asked:
            measure = _MEASURES[figure]
            rows = json_io.get_or_compute(
                whole.measurements,
                f"{figure}-{name}",
                lambda state=state, measure=measure: measure(state),
            )
            found[figure][name] = rows
        shutil.rmtree(scratch, ignore_errors=True)
    return notes, found


def _of_training(whole: Subject, mirror: Mirror, stages: Stages) -> dict[int, dict[str, Any]]:
    """R by epoch."""

    def measure(epoch: int) -> dict[str, Any]:
        network, notes = at_epoch(whole, epoch, stages)
        return {"training": notes, **ratio_rows(State(whole, network, mirror, stages))}

    return {
        epoch: json_io.get_or_compute(
            whole.measurements, f"ratio-{epoch}", lambda epoch=epoch: measure(epoch)
        )
        for epoch in sorted(whole.config.epochs)
    }


def _queries(state: State, count: int) -> list[Queries]:
    sizes, whole = state.subject.config.queries, state.subject
    return [Queries(size, whole.sets(size, count), state.best(size)) for size in sizes]


def _mmd(state: State) -> list[dict[str, Any]]:
    whole = state.subject
    queries = _queries(state, whole.config.repeats)
    kernel = state.kernel
    with state.stages("MMD and bound") as advance:
        return mmd_rows(kernel, whole.targets, len(whole.labelled), queries, advance)


def _tau(state: State) -> list[dict[str, Any]]:
    whole, config = state.subject, state.subject.config
    measures = {G_MSE: state.logits - whole.targets}
    if config.train.loss == "cross_entropy":
        # with the true labels of candidates too, as Y has them
        measures[G] = cotangents(state.logits, whole.labels, config.train.loss)
    queries = {size: whole.sets(size, config.draws) for size in config.queries}
    kernel = state.kernel
    with state.stages("tau"):
        rng = generator(config.seed, "dynamics bootstrap")
        return tau_rows(kernel, whole.targets, measures, len(whole.labelled), queries, rng)


def _envelope(state: State) -> list[dict[str, Any]]:
    whole = state.subject
    query = _queries(state, 1)[0]
    kernel = state.kernel
    with state.stages("envelope"):
        return envelope_rows(kernel, whole.targets, len(whole.labelled), query)


_MEASURES: dict[str, Callable[[State], list[dict[str, Any]]]] = {
    "mmd": _mmd,
    "tau": _tau,
    "envelope": _envelope,
}
