"""Measure the training dynamics of a network: figures of its kernel, and R over training.

Everything that takes long is cached as soon as it is computed: after a kill the same command goes
on and ends with the same numbers.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from torch import nn

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from experiments.dynamics.config import OF_KERNEL, TheoryConfig, of_epochs
from experiments.dynamics.figures import (
    DYNAMICAL,
    RANDOM,
    Gammas,
    Queries,
    Rows,
    envelope_rows,
    mmd_rows,
    ratio_summary,
    read_gammas,
    tau_rows,
)
from kernel.contract import Scratch, key_of, planned, sketch_bytes, sketch_chunk
from kernel.covariance import Kernel
from kernel.diagnostics import energy_of, normalised, ratios
from kernel.dynamics import Measured, cotangents
from kernel.dynamics import measure as measure_gradients
from kernel.errors import KernelError
from kernel.gradients import squared_length, total
from kernel.model import Model, Params, dtype_of
from kernel.ntk import empirical_ntk
from kernel.plan import GIB, cast, enough, problem_of
from pipelines import json_io
from pipelines.measurement import (
    NetworkTask,
    build_networks,
    draw_subset,
    duration,
    initial_pool,
)
from pipelines.progress import Stages, generator, keep_compiled, numbered
from pipelines.record import only_writer
from pipelines.run import Bridge, schedule_seconds
from pipelines.strategies.base import PROBE
from trainer.fit import accuracy, keep_freed_blocks
from trainer.networks import parameter_count
from trainer.oracle import DatasetOracle
from trainer.predict import logits

INITIAL, TRAINED = "initial", "trained"
STATES = (INITIAL, TRAINED)
G_MSE, G = "G_MSE", "G"
# Matrices of the size of the kernel between images that measuring holds beside it.
_BESIDE = 3


@dataclass(frozen=True)
class DynamicsTask(NetworkTask):
    """A network to measure on, with candidates for queries.

    Attributes:
        config: the settings.
        candidates: int64 (candidates,), data-set indices.
        folder: of its results, named by everything that they depend on.
        trainings: of its trained weights, likewise.
    """

    config: TheoryConfig
    candidates: np.ndarray
    folder: Path
    trainings: Path

    @cached_property
    def both(self) -> np.ndarray:
        """Labelled images, then candidates: int64 (labelled + candidates,), data-set indices."""
        return np.concatenate([self.labelled, self.candidates])

    @cached_property
    def images(self) -> np.ndarray:
        """Those images as the network takes them, float32."""
        return self.images_of(self.both)

    @cached_property
    def true_labels(self) -> np.ndarray:
        """int64 (labelled + candidates,), of candidates too: a diagnosis may know them."""
        return DatasetOracle(self.dataset.train_labels)(self.both)

    @property
    def targets(self) -> np.ndarray:
        """Y, one-hot float64 (labelled + candidates, classes)."""
        return np.eye(self.dataset.classes)[self.true_labels]

    def random_queries(self, size: int, count: int) -> np.ndarray:
        """Bool (count, candidates), `size` drawn uniformly in each.

        The same for every network of a seed, so that networks do not differ by chance; a prefix of
        those of a larger count.
        """
        rng = generator(self.config.seed, "dynamics queries", size)
        queries = np.zeros((count, len(self.candidates)), bool)
        for row in queries:
            row[rng.permutation(len(row))[:size]] = True
        return queries


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
class NetworkState:
    """A network at some point of its training, with what is computed of it when it is first used.

    Attributes:
        task: the images.
        network: in eval mode.
        untrained: the mirror of the network with any weights.
        stages: where time and progress are recorded.
        scratch: of an interrupted kernel; None keeps nothing.
    """

    task: DynamicsTask
    network: nn.Module
    untrained: Mirror
    stages: Stages
    scratch: Path | None = None

    @cached_property
    def mirror(self) -> tuple[Mirror, dict[str, Any]]:
        """The mirror with the network's weights, and its certificate, JSON-able."""
        with self.stages("certificate"):
            own = self.untrained.with_weights(weights_of(self.network))
            return own, certify(self.network, own, self.task.images[-PROBE:]).summary()

    @cached_property
    def model(self) -> Model:
        """The mirror as the kernel takes it."""
        return cast(self.mirror[0].model(), self.task.config.precision)

    @cached_property
    def logits(self) -> np.ndarray:
        """Float32 (labelled + candidates, classes)."""
        with numbered(self.task.both):
            return logits(self.network, self.task.images)

    @cached_property
    def cotangents(self) -> np.ndarray:
        """∂ℓ/∂f, float64 (labelled + candidates, classes); of candidates, with pseudo-labels."""
        count, loss = len(self.task.labelled), self.task.run.train.loss
        pseudo = self.logits.argmax(axis=1)
        labels = np.where(np.arange(len(pseudo)) < count, self.task.true_labels, pseudo)
        return cotangents(self.logits, labels, loss)

    @cached_property
    def direction(self) -> Params:
        """g_S, the summed loss gradient of the labelled set."""
        count = len(self.task.labelled)
        with numbered(self.task.labelled):
            return total(self.model, self.task.images[:count], self.cotangents[:count])

    @cached_property
    def gradients(self) -> Measured:
        """‖g_u‖² and g_u·g_S of the candidates."""
        count, loss = len(self.task.labelled), self.task.run.train.loss
        with self.stages("gradients") as advance, numbered(self.task.candidates):
            images, outputs = self.task.images[count:], self.logits[count:]
            return measure_gradients(
                self.model, images, outputs, self.direction, loss, progress=advance
            )

    def best_query(self, size: int) -> np.ndarray:
        """The query of dynamicAL with γ = 2, its largest Δ: bool (candidates,)."""
        deltas = self.gradients.delta()
        query = np.zeros(len(deltas), bool)
        query[np.argsort(-deltas, kind="stable")[:size]] = True
        return query

    def queries(self, count: int) -> list[Queries]:
        """Of every size, `count` random ones and the one of dynamicAL."""
        return [
            Queries(size, self.task.random_queries(size, count), self.best_query(size))
            for size in self.task.config.queries
        ]

    @cached_property
    def kernel(self) -> Kernel:
        """Between labelled images, then candidates; divided by the mean of its diagonal."""
        config, images = self.task.config, self.task.images
        scratch = Scratch()
        if self.scratch is not None:
            key = key_of((*self.model[1:], images), (config.request, config.sketch))
            scratch = Scratch(self.scratch, key)
        with self.stages("kernel") as advance, numbered(self.task.both):
            kernel = empirical_ntk(
                self.model,
                images,
                config.kind,
                probes=config.probes,
                sketch=config.sketch,
                # one stream for every state: they do not differ by its draws
                rng=generator(config.seed, "dynamics kernel"),
                precision=config.precision,
                memory_gib=config.memory_gib,
                progress=advance,
                scratch=scratch,
            )
            return normalised(kernel)


def _mmd(state: NetworkState) -> Rows:
    task = state.task
    queries, kernel = state.queries(task.config.repeats), state.kernel
    with state.stages("MMD and bound") as advance:
        return mmd_rows(kernel, task.targets, len(task.labelled), queries, advance)


def _tau(state: NetworkState) -> Rows:
    task, config = state.task, state.task.config
    measures = {G_MSE: state.logits - task.targets}
    if config.train.loss == "cross_entropy":
        # with true labels of candidates too, as Y has them
        measures[G] = cotangents(state.logits, task.true_labels, config.train.loss)
    queries = {size: task.random_queries(size, config.draws) for size in config.queries}
    kernel = state.kernel
    with state.stages("tau"):
        rng = generator(config.seed, "dynamics bootstrap")
        return tau_rows(kernel, task.targets, measures, len(task.labelled), queries, rng)


def _envelope(state: NetworkState) -> Rows:
    task = state.task
    query, kernel = state.queries(1)[0], state.kernel
    with state.stages("envelope"):
        return envelope_rows(kernel, task.targets, len(task.labelled), query)


_KERNEL_FIGURES: dict[str, Callable[[NetworkState], Rows]] = {
    "mmd": _mmd,
    "tau": _tau,
    "envelope": _envelope,
}


def _ratio(state: NetworkState) -> dict[str, Any]:
    """R(Q|S) of the queries of every size: one backward pass over each query, no kernel.

    Returns:
        `dynamics` G(S) = ‖g_S‖², `mean_norm` of ‖g_u‖² over the candidates, `train_accuracy`,
        `certificate`, and `rows` for each size and way of choosing.
    """
    task, config = state.task, state.task.config
    count, gradients = len(task.labelled), state.gradients
    deltas = gradients.delta()
    chosen = [
        (one.size, name, queries)
        for one in state.queries(config.repeats)
        for name, queries in ((RANDOM, one.random), (DYNAMICAL, one.best[None]))
    ]
    images, done = sum(int(queries.sum()) for _, _, queries in chosen), 0
    rows: Rows = []
    with state.stages("queries") as advance:
        for size, name, queries in chosen:
            squares = []
            for members in queries:
                positions = count + np.flatnonzero(members)
                own = (task.images[positions], state.cotangents[positions])
                squares.append(energy_of(state.model, *own))
                done += len(positions)
                advance(done, images, f"{name}, b = {size}")
            values = ratios(deltas, gradients.inner, np.array(squares), queries)
            about = {"queries": size, "chosen": name, "draws": len(queries)}
            rows.append(about | ratio_summary(values))
    return {
        "dynamics": squared_length(state.direction),
        "mean_norm": float(gradients.norms.mean()),
        "train_accuracy": accuracy(state.logits[:count], task.labels),
        "certificate": state.mirror[1],
        "rows": rows,
    }


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
    mirror = Bridge(task.network, task.run.twin).prepare(task.images[-PROBE:])
    if OF_KERNEL & set(task.config.figures):
        _kernel_gib(task, mirror.model())
    return mirror


def _kernel_gib(task: DynamicsTask, model: Model) -> float:
    """Peak memory of the kernel and what is computed from it.

    Raises:
        KernelError: more than the settings allow.
    """
    config, request, examples = task.config, task.config.request, len(task.both)
    one = jax.ShapeDtypeStruct(task.dataset.image_shape, dtype_of(request.precision))
    rng = np.random.default_rng(0)  # sizes do not depend on the projections drawn
    problem = problem_of(cast(model, request.precision), one, examples, examples, request, rng)
    if config.sketch is None:
        computing = planned(problem, request).peak_bytes
    else:
        chunk = sketch_chunk(problem, request, config.sketch, problem.result_bytes)
        computing = problem.result_bytes + sketch_bytes(problem, config.sketch, chunk)
    needed = max(computing, problem.result_bytes + _BESIDE * 8 * examples**2)
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
    asked = [figure for figure in task.config.figures if figure in OF_KERNEL]
    if not asked:
        return None, {}
    network, notes = task.trained(task.trainings, stages)
    rows: dict[str, dict[str, Rows]] = {figure: {} for figure in asked}
    for name, own in ((INITIAL, task.network), (TRAINED, network)):
        scratch = task.folder / f"kernel-{name}"
        state = NetworkState(task, own, mirror, stages, scratch)
        for figure in asked:
            compute = _KERNEL_FIGURES[figure]
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
        return {"training": notes, **_ratio(NetworkState(task, network, mirror, stages))}

    return {
        epoch: json_io.get_or_compute(
            task.folder, f"ratio-{epoch}", lambda epoch=epoch: compute(epoch)
        )
        for epoch in sorted(task.config.epochs)
    }


def missing(task: DynamicsTask) -> list[str]:
    """Names of the results that are not cached yet."""
    config = task.config
    names = [
        f"{figure}-{state}" for state in STATES for figure in config.figures if figure in OF_KERNEL
    ]
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
    _, schedule = config.train.plan(count)
    console.print(
        f"{parameter_count(task.network):,} parameters, {count} labels, {len(task.candidates)} "
        f"candidates; {len(left)} measurements left: {', '.join(left) or 'none'}",
        highlight=False,
    )
    if OF_KERNEL & set(config.figures):
        console.print(
            f"two kernels ({config.kind}) of {len(task.both):,} images, "
            f"{_kernel_gib(task, mirror.model()):.2f} GiB of {config.memory_gib:g} GiB; one "
            f"training, at most about {duration(each)}",
            highlight=False,
        )
    epochs = [epoch for epoch in config.epochs if f"ratio-{epoch}" in left]
    if epochs:
        trainings = [of_epochs(config.train, epoch, count) for epoch in epochs if epoch]
        steps = sum(train.plan(count)[1] for train in trainings)
        backward = len(epochs) * (config.repeats + 1) * sum(config.queries)
        console.print(
            f"R at {len(epochs)} epochs: trainings of {steps} epochs in all, about "
            f"{duration(each * steps / schedule)}, and {backward:,} backward passes of one image",
            highlight=False,
        )
    console.print("Nothing was trained or recorded.", highlight=False)
    return len(left)
