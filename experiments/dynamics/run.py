"""Measure the training dynamics of a network: figures of its kernel, R over training, γ of runs.

Everything that takes long is cached as soon as it is computed: after a kill the same command goes
on and ends with the same numbers.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from rich.console import Console
from torch import nn

from bridge.mirror import Mirror
from experiments.dynamics.config import TheoryConfig, of_epochs
from experiments.dynamics.figures import (
    DYNAMICAL,
    KERNEL_FIGURES,
    RANDOM,
    DynamicsTask,
    NetworkState,
    Rows,
    ratio,
)
from kernel.errors import KernelError
from kernel.model import Model, dtype_of
from kernel.plan import GIB, enough, plan_kernel
from pipelines.core import json_io, record
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, keep_compiled
from pipelines.core.record import Run, only_writer
from pipelines.measurement import (
    NetworkTask,
    build_networks,
    draw_subset,
    duration,
    initial_pool,
    schedule_seconds,
)
from pipelines.report.curves import by_seed, curve, field, interval, strategies
from pipelines.run import certified_mirror
from pipelines.strategies.base import PROBE
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count

INITIAL, TRAINED = "initial", "trained"
STATES = (INITIAL, TRAINED)
# Matrices of the size of the kernel between images that measuring holds beside it.
_BESIDE = 3
# Settings in which runs of the γ figure may differ.
_APART = ("strategy", "seed", "cycles", "format")
_SHARED = ("train", "data", "network_args")


class Gammas(NamedTuple):
    """Accuracy by γ, from recorded runs.

    Attributes:
        about: data set, network and size of a query, in words.
        curves: rows of gamma, labelled, n, mean, low, high; gamma in words, `random` for runs
            without one.
        averages: rows of gamma, n, mean, low, high: of a run's accuracy averaged over the rounds
            after its first query.
    """

    about: str
    curves: Rows
    averages: Rows


def read_gammas(paths: Sequence[Path]) -> Gammas:
    """Accuracies of runs that differ in γ and seed only.

    Only the numbers of labels that all runs have reached.

    Args:
        paths: of run directories; those of `random` are shown beside the gammas.

    Raises:
        PipelineError: what is not a run or has no round; runs of another strategy, of other
            settings, or twice of the same γ and seed.
    """
    runs = [record.read(path) for path in paths]
    for run in runs:
        _check(run, runs[0])
    named = {(_gamma(run), field(run.config, "seed", f"{run.path}")): run for run in runs}
    if len(named) < len(runs):
        raise PipelineError(
            "two of the runs given are of the same gamma and seed: one and the same training "
            "counts once; leave one of them out."
        )
    if all(gamma == RANDOM for gamma, _ in named):
        raise PipelineError(f"none of the runs given is of the strategy {DYNAMICAL}: add some.")
    shared = min(len(run.rounds) for run in runs)
    rounds = pd.DataFrame(
        [
            {
                "strategy": gamma,
                "seed": seed,
                "labelled": line["labelled"],
                "test_accuracy": field(line, "test_accuracy", f"{run.path}"),
            }
            for (gamma, seed), run in sorted(named.items(), key=lambda one: _order(one[0][0]))
            for line in run.rounds[:shared]
        ]
    )
    averages = [
        {"gamma": gamma, **interval(by_seed(rounds, gamma).iloc[:, 1:].mean(axis=1))._asdict()}
        for gamma in strategies(rounds)
        if shared > 1
    ]
    curves = curve(rounds).rename(columns={"strategy": "gamma"}).to_dict("records")
    config = runs[0].config
    about = f"{config['dataset']}, {config['network']}, {config['query']} a query"
    return Gammas(about, json_io.plain(curves), json_io.plain(averages))


def _check(run: Run, first: Run) -> None:
    strategy = field(run.config, "strategy", f"{run.path}")
    if strategy not in (DYNAMICAL, RANDOM):
        raise PipelineError(
            f"{run.path} is a run of {strategy}, which has no gamma: give runs of {DYNAMICAL}, and "
            f"of {RANDOM} to compare with."
        )
    if not run.rounds:
        raise PipelineError(f"{run.path} has no completed round yet: leave it out for now.")
    here, there = _settings(run), _settings(first)
    if "dynamics" not in here or "dynamics" not in there:
        for settings in (here, there):
            settings.pop("dynamics", None)
    differing = record.differences(there, here)
    if differing:
        raise PipelineError(
            f"{run.path} is not to be compared with {first.path}: {'; '.join(differing)}. Give "
            "runs that differ in gamma and seed only."
        )


def _settings(run: Run) -> dict[str, Any]:
    """Settings that must agree: not those of other strategies, which none of the runs reads."""
    known = {
        key: value
        for key, value in run.identity.items()
        if key not in _APART and (key in _SHARED or not isinstance(value, dict))
    }
    if run.config["strategy"] == RANDOM:
        return known
    own = field(run.config, "dynamics", f"{run.path}")
    return known | {"dynamics": {k: v for k, v in own.items() if k not in ("gamma", "chunk")}}


def _gamma(run: Run) -> str:
    if run.config["strategy"] == RANDOM:
        return RANDOM
    settings = field(run.config, "dynamics", f"{run.path}")
    value = field(settings, "gamma", f"the settings of dynamics in {run.path}")
    return "∞" if value == "inf" else f"{float(value):g}"


def _order(gamma: str) -> float:
    return -1.0 if gamma == RANDOM else float("inf") if gamma == "∞" else float(gamma)


def build_task(config: TheoryConfig, console: Console) -> DynamicsTask:
    """The network, untrained.

    Raises:
        TrainerError: data or a network that cannot be had.
        PipelineError: more candidates than there are images.
    """
    run = config.first_round()
    dataset, (network,) = build_networks([run], console)
    pool, labels = initial_pool(config, dataset)
    candidates = draw_subset(pool, dataset, config.subset, config.seed, "candidates")
    origin = NetworkTask(run, dataset, network, pool.labelled, labels).origin
    names = ("kind", "probes", "sketch", "precision", "queries", "draws", "repeats", "twin")
    measured = {name: getattr(config, name) for name in names}
    measured |= origin | {"candidates": candidates.tolist()}
    return DynamicsTask(
        run=run,
        dataset=dataset,
        network=network,
        labelled=pool.labelled,
        labels=labels,
        config=config,
        candidates=candidates,
        folder=config.run_folder / "measurements" / json_io.digest(measured),
        trainings=config.run_folder / "trainings" / json_io.digest(origin),
    )


@dataclass(frozen=True)
class DynamicsResult:
    """The results of a measurement.

    Attributes:
        config: the settings.
        task: the network, its labelled set and candidates; None where only runs were read.
        notes: how its training ended; None where it was not trained.
        states: by figure of the kernel, then by state of the network, rows of numbers.
        epochs: R by epoch.
        gammas: accuracy by γ; None without runs.
        seconds: wall seconds by stage, in this process.
    """

    config: TheoryConfig
    task: DynamicsTask | None
    notes: dict[str, Any] | None
    states: dict[str, dict[str, Rows]]
    epochs: dict[int, dict[str, Any]]
    gammas: Gammas | None
    seconds: dict[str, float]


def measure(config: TheoryConfig, console: Console | None = None) -> DynamicsResult:
    """Carry out a measurement, or the rest of it.

    Args:
        config: what to measure and where it is cached.
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
    by_gamma = read_gammas(config.runs) if config.runs else None
    if not config.measured:
        with only_writer(config.run_folder):
            return DynamicsResult(config, None, None, {}, {}, by_gamma, dict(stages.seconds))
    task = build_task(config, console)
    with console.status("mirroring the network"):
        mirror = mirrored(task)
    with only_writer(config.run_folder):
        notes, states = _kernel_figures(task, mirror, stages)
        epochs = _ratio_by_epoch(task, mirror, stages) if "ratio" in config.figures else {}
    return DynamicsResult(config, task, notes, states, epochs, by_gamma, dict(stages.seconds))


def mirrored(task: DynamicsTask) -> Mirror:
    """The mirror of the untrained network, once it is sure that what is asked for fits.

    Raises:
        BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        KernelError: the kernel does not fit in the memory.
    """
    mirror = certified_mirror(task.network, task.run.twin, task.images[-PROBE:])
    if KERNEL_FIGURES.keys() & set(task.config.figures):
        _kernel_gib(task, mirror.model())
    return mirror


def _kernel_gib(task: DynamicsTask, model: Model) -> float:
    """Peak memory of the kernel and what is computed from it.

    Raises:
        KernelError: more than the settings allow.
    """
    request, examples = task.config.request, len(task.both)
    one = jax.ShapeDtypeStruct(task.dataset.image_shape, dtype_of(request.precision))
    rng = np.random.default_rng(0)  # sizes do not depend on the projections drawn
    plan = plan_kernel(model, one, examples, request, rng)
    needed = max(plan.kernel_bytes, plan.problem.result_bytes + _BESIDE * 8 * examples**2)
    if needed > request.memory_gib * GIB:
        raise KernelError(
            f"the kernel of {examples:,} images, and what is measured with it, needs "
            f"{enough(float(needed))} GiB and {request.memory_gib:g} GiB are given: give as much "
            "as memory_gib, take fewer candidates (subset), or another kind than full."
        )
    return needed / GIB


def _kernel_figures(
    task: DynamicsTask, mirror: Mirror, stages: Stages
) -> tuple[dict[str, Any] | None, dict[str, dict[str, Rows]]]:
    """The figures of the kernel, of the network as initialised and as a run trains it."""
    asked = [figure for figure in task.config.figures if figure in KERNEL_FIGURES]
    if not asked:
        return None, {}
    network, notes = task.trained(task.trainings, stages)
    rows: dict[str, dict[str, Rows]] = {figure: {} for figure in asked}
    for name, own in ((INITIAL, task.network), (TRAINED, network)):
        scratch = task.folder / f"kernel-{name}"
        state = NetworkState(task, own, mirror, stages, scratch)
        for figure in asked:
            compute = KERNEL_FIGURES[figure]
            rows[figure][name] = json_io.get_or_compute(
                task.folder, f"{figure}-{name}", lambda compute=compute, own=state: compute(own)
            )
        shutil.rmtree(scratch, ignore_errors=True)
    return notes, rows


def network_at(task: DynamicsTask, epoch: int, stages: Stages) -> tuple[nn.Module, dict[str, Any]]:
    """A copy after so many epochs, trained from the start; epoch 0 is the initial network.

    With the same random numbers a shorter training is the beginning of a longer one, the
    optimiser's memory included.
    """
    if epoch == 0:
        return task.network, {"steps": 0}
    return task.fit(of_epochs(task.run.train, epoch, len(task.labelled)), stages)


def _ratio_by_epoch(
    task: DynamicsTask, mirror: Mirror, stages: Stages
) -> dict[int, dict[str, Any]]:
    def compute(epoch: int) -> dict[str, Any]:
        network, notes = network_at(task, epoch, stages)
        return {"training": notes, **ratio(NetworkState(task, network, mirror, stages))}

    return {
        epoch: json_io.get_or_compute(
            task.folder, f"ratio-{epoch}", lambda epoch=epoch: compute(epoch)
        )
        for epoch in sorted(task.config.epochs)
    }


def missing(task: DynamicsTask) -> list[str]:
    """Names of the results that are not cached yet."""
    config = task.config
    asked = [figure for figure in config.figures if figure in KERNEL_FIGURES]
    names = [f"{figure}-{state}" for state in STATES for figure in asked]
    names += [f"ratio-{epoch}" for epoch in config.epochs if "ratio" in config.figures]
    return [name for name in names if json_io.get(task.folder, name) is None]


def plan(config: TheoryConfig, console: Console) -> int:
    """Print what is left to measure and about how long it takes, from a few steps timed here.

    Args:
        config: what would be done.
        console: where it is shown.

    Returns:
        How many results are left to compute.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: what the measurement itself would
            stop at before it trains.
    """
    keep_freed_blocks()
    keep_compiled()
    if config.runs:
        read_gammas(config.runs)
        console.print(f"accuracy by γ is read from {len(config.runs)} runs", highlight=False)
    if not config.measured:
        return 0
    task = build_task(config, console)
    with console.status("mirroring the network"):
        mirror = mirrored(task)
    left, count = missing(task), len(task.labelled)
    with console.status("timing a few steps"):
        each = schedule_seconds(task.network, task.labelled_images, task.labels, config.train)
    console.print(
        f"{parameter_count(task.network):,} parameters, {count} labels, {len(task.candidates)} "
        f"candidates; {len(left)} measurements left: {', '.join(left) or 'none'}",
        highlight=False,
    )
    _, epochs = config.train.plan(count)
    trainings = [epochs] if KERNEL_FIGURES.keys() & set(config.figures) else []
    if trainings:
        console.print(
            f"two kernels ({config.kind}) of {len(task.both):,} images, "
            f"{_kernel_gib(task, mirror.model()):.2f} GiB of {config.memory_gib:g} GiB",
            highlight=False,
        )
    trainings += [
        of_epochs(config.train, epoch, count).plan(count)[1]
        for epoch in config.epochs
        if epoch and f"ratio-{epoch}" in left
    ]
    console.print(
        f"{len(trainings)} trainings of {sum(trainings)} epochs in all, at most about "
        f"{duration(each * sum(trainings) / epochs)}",
        highlight=False,
    )
    console.print("Nothing was trained or recorded.", highlight=False)
    return len(left)
