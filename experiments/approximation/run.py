"""Compare cheap kernels of a network with the full one, for each width, before and after training.

Every width and state is cached as soon as it is measured: after a kill the same command goes on and
ends with the same numbers.
"""

import shutil
from collections.abc import Mapping
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
from experiments.approximation.config import FULL, INITIAL, STATES, TRAINED, ApproximationConfig
from experiments.approximation.kernels import (
    contract,
    diagonals,
    distances,
    flat,
    regress,
    spectrum,
)
from kernel.errors import KernelError, SingularKernelError
from kernel.estimate import estimate_cost
from kernel.model import directions, dtype_of
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import GIB, cast, enough, plan_kernel
from kernel.scratch import Scratch, key_of
from pipelines.core import json_io
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, keep_compiled, named_images
from pipelines.core.record import only_writer
from pipelines.measurement import NetworkTask, build_networks, initial_pool, schedule_seconds
from pipelines.run import certified_mirror
from pipelines.strategies.base import PROBE
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count
from trainer.predict import logits

Rows = list[dict[str, Any]]

# What regression adds to: the logits of the network at hand ([P]), or nothing.
NETWORK, ZERO = "network", "zero"
STARTS = (NETWORK, ZERO)


@dataclass(frozen=True)
class ApproximationTask(NetworkTask):
    """A network to compare kernels of.

    Attributes:
        config: the settings.
        width: value of the width argument; None where network_args stand as they are.
        tests: int64 (test,), positions in the test set.
        folder: of its results, named by everything that they depend on.
        trainings: of its trained weights, likewise.
    """

    config: ApproximationConfig
    width: int | None
    tests: np.ndarray
    folder: Path
    trainings: Path

    @cached_property
    def images(self) -> np.ndarray:
        """Labelled images, then test images, as the network takes them, float32."""
        data = self.dataset
        both = data.train_images[self.labelled], data.test_images[self.tests]
        return data.normalise(np.concatenate(both))

    @property
    def test_labels(self) -> np.ndarray:
        """int64 (test,)."""
        return self.dataset.test_labels[self.tests]

    @property
    def states(self) -> list[str]:
        """States asked for, the initial one first."""
        return [state for state in STATES if state in self.config.states]

    @property
    def missing(self) -> list[str]:
        """States asked for whose results are not cached yet."""
        return [state for state in self.states if json_io.get(self.folder, state) is None]

    @cached_property
    def mirror(self) -> Mirror:
        """The mirror of the untrained network, certified on some of its images.

        Raises:
            BridgeError: it cannot be mirrored, or the mirror disagrees with it.
        """
        return certified_mirror(self.network, self.config.twin, self.images[-PROBE:])


def build_tasks(config: ApproximationConfig, console: Console) -> list[ApproximationTask]:
    """All networks, narrowest first, untrained.

    Raises:
        TrainerError: data or a network that cannot be had.
        PipelineError: more test images than there are, or data without labels for them.
    """
    runs = [config.run_config(width) for width in config.networks]
    dataset, networks = build_networks(runs, console)
    if config.test > len(dataset.test_images):
        raise PipelineError(
            f"{config.test} test images were asked for and {dataset.name} has "
            f"{len(dataset.test_images)}: lower test."
        )
    pool, labels = initial_pool(config, dataset)
    order = generator(config.seed, "approximation test").permutation(len(dataset.test_images))
    tests = np.sort(order[: config.test])
    tasks = []
    for width, run, network in zip(config.networks, runs, networks, strict=True):
        origin = NetworkTask(run, dataset, network, pool.labelled, labels).origin
        names = ("kinds", "probes", "ridges", "precision", "twin")
        measured = {name: getattr(config, name) for name in names} | {"tests": tests.tolist()}
        name = "" if width is None else f"{width}-"
        tasks.append(
            ApproximationTask(
                run=run,
                dataset=dataset,
                network=network,
                labelled=pool.labelled,
                labels=labels,
                config=config,
                width=width,
                tests=tests,
                folder=config.run_folder
                / "measurements"
                / f"{name}{json_io.digest(origin | measured)}",
                trainings=config.run_folder / "trainings" / f"{name}{json_io.digest(origin)}",
            )
        )
    return tasks


def scalar_kernels(config: ApproximationConfig, full: np.ndarray) -> dict[str, np.ndarray]:
    """Every kind asked for, between all images, by name.

    Projections of the kind rademacher are a prefix of those for more probes, and the same at every
    width and state, so that these do not differ by chance.
    """
    kernels = {}
    for kind in config.kinds:
        for probes in config.probes if kind == "rademacher" else (1,):
            rng = generator(config.seed, "approximation probes")
            name = f"{kind}({probes})" if kind == "rademacher" else kind
            kernels[name] = contract(full, directions(kind, full.shape[1], probes, rng))
    return kernels


def compare(
    task: ApproximationTask, full: np.ndarray, outputs: np.ndarray, trained: np.ndarray | None
) -> dict[str, Rows]:
    """Rows of `kernels`, one a kind, and of `regression`, one a kind, ridge and start.

    The full kernel has rows of its own, with which the others are compared.

    Args:
        task: its labelled and test images.
        full: Θ (images, classes, images, classes), labelled images first, then test images.
        outputs: (images, classes), logits of the network.
        trained: (test, classes), logits of the trained network; None without training.
    """
    kernels = scalar_kernels(task.config, full)
    return {
        "kernels": _kernels(task, full, kernels),
        "regression": _regression(task, full, kernels, outputs, trained),
    }


def _kernels(task: ApproximationTask, full: np.ndarray, kernels: Mapping[str, np.ndarray]) -> Rows:
    count, precision = len(task.labelled), task.config.precision
    labelled, cross = full[:count, :, :count], full[count:, :, :count]
    own = {name: kernel[:count, :count] for name, kernel in kernels.items()}
    near = distances(labelled, own)
    near_cross = distances(cross, {name: k[count:, :count] for name, k in kernels.items()})
    whole = spectrum(flat(labelled), precision)
    rows: Rows = [{"kind": FULL, **whole._asdict()}]
    for name, kernel in own.items():
        ends = spectrum(kernel, precision)
        diagonal, apart = diagonals(labelled, kernel)
        rows[0]["diagonal"] = diagonal
        rows.append(
            {
                "kind": name,
                "frobenius": near[name],
                "frobenius_cross": near_cross[name],
                **ends._asdict(),
                "largest_error": abs(ends.largest - whole.largest) / whole.largest,
                "condition_ratio": _ratio(ends.condition, whole.condition),
                "diagonal": float(kernel.diagonal().mean()),
                "diagonal_difference": apart,
            }
        )
    return rows


def _ratio(one: float, other: float) -> float:
    """NaN where either is not resolved."""
    return one / other if np.isfinite(one) and np.isfinite(other) else float("nan")


def _regression(
    task: ApproximationTask,
    full: np.ndarray,
    kernels: Mapping[str, np.ndarray],
    outputs: np.ndarray,
    trained: np.ndarray | None,
) -> Rows:
    config, count = task.config, len(task.labelled)
    block, rest = full[:count, :, :count], full[count:, :, :count]
    diagonal = float(np.einsum("icic->ic", block).mean())
    pairs = {FULL: (flat(block), flat(rest))}
    pairs |= {name: (k[:count, :count], k[count:, :count]) for name, k in kernels.items()}
    bases = {NETWORK: outputs.astype(np.float64), ZERO: np.zeros(outputs.shape)}
    targets = np.stack([task.targets - bases[start][:count] for start in STARTS])
    rows: Rows = []
    for ridge in config.ridges:
        reference: dict[str, np.ndarray] = {}
        for name, (labelled, cross) in pairs.items():
            known: dict[str, Any] = {"kind": name, "ridge": ridge}
            try:
                added, known["jitter"] = regress(
                    labelled,
                    cross,
                    targets,
                    ridge * diagonal,
                    config.precision,
                    task.labelled.tolist(),
                )
            except SingularKernelError as error:
                rows += [known | {"start": start, "note": str(error)} for start in STARTS]
                continue
            for start, own in zip(STARTS, added, strict=True):
                predicted = bases[start][count:] + own
                if name == FULL:
                    reference[start] = predicted
                others = {"": reference.get(start), "network_": trained}
                scores = _scores(predicted, task.test_labels, others)
                rows.append(known | {"start": start} | scores)
    return rows


def _scores(
    predicted: np.ndarray, labels: np.ndarray, others: Mapping[str, np.ndarray | None]
) -> dict[str, float]:
    """Accuracy, and by prefix the distance from other predictions, and how often classes agree."""
    values = {"accuracy": float(np.mean(predicted.argmax(1) == labels))}
    for prefix, other in others.items():
        if other is not None:
            away, size = np.linalg.norm(predicted - other), np.linalg.norm(other)
            values[f"{prefix}error"] = float(away / size) if size > 0 else float("nan")
            values[f"{prefix}agreement"] = float(np.mean(predicted.argmax(1) == other.argmax(1)))
    return values


@dataclass(frozen=True)
class WidthResult:
    """The results of one width.

    Attributes:
        task: the network and its images.
        parameters: P.
        notes: how its training ended; None where it was not trained.
        states: by state, `kernels` and `regression` (rows of `compare`), the network's own
            `accuracy` on the test images, the mirror's `certificate`, `seconds`.
    """

    task: ApproximationTask
    parameters: int
    notes: dict[str, Any] | None
    states: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ApproximationResult:
    """The results of an experiment.

    Attributes:
        config: the settings.
        widths: narrowest first.
        seconds: wall seconds by stage, in this process.
    """

    config: ApproximationConfig
    widths: list[WidthResult]
    seconds: dict[str, float]


def measure(config: ApproximationConfig, console: Console | None = None) -> ApproximationResult:
    """Carry out the experiment, or the rest of it.

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
    tasks = build_tasks(config, console)
    _full_kernel_gib(config, tasks[0].dataset.classes)
    with only_writer(config.run_folder):
        widths = [_measure_width(task, stages) for task in tasks]
    return ApproximationResult(config, widths, dict(stages.seconds))


def _full_kernel_gib(config: ApproximationConfig, classes: int) -> float:
    """Memory that the full kernel and what is computed from it take at the least.

    Raises:
        KernelError: more than the settings allow.
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


def _measure_width(task: ApproximationTask, stages: Stages) -> WidthResult:
    trained, notes = None, None
    if TRAINED in task.states:
        if task.missing:
            _ = task.mirror  # a network that cannot be mirrored is refused before training
        trained, notes = task.trained(task.trainings, stages)
    networks = {INITIAL: task.network, TRAINED: trained}
    states = {}
    for state in task.states:
        network = networks[state] or task.network
        scratch = task.folder / f"kernel-{state}"
        states[state] = json_io.get_or_compute(
            task.folder,
            state,
            lambda network=network, scratch=scratch: _measure_state(
                task, network, trained, scratch, stages
            ),
        )
        shutil.rmtree(scratch, ignore_errors=True)
    return WidthResult(task, parameter_count(task.network), notes, states)


def _measure_state(
    task: ApproximationTask,
    network: nn.Module,
    trained: nn.Module | None,
    scratch: Path,
    stages: Stages,
) -> dict[str, Any]:
    """Everything that is measured of a network at its weights."""
    config, count = task.config, len(task.labelled)
    with named_images(task.labelled, task.tests):
        outputs = logits(network, task.images)
    before = dict(stages.seconds)
    with stages("certificate"):
        mirror = task.mirror.with_weights(weights_of(network))
        certificate = certify(network, mirror, task.images[-PROBE:]).summary()
    model = cast(mirror.model(), config.precision)
    key = key_of((*model[1:], task.images), config.precision)
    with stages("kernel") as advance, named_images(task.labelled, task.tests):
        kernel = empirical_ntk(
            model,
            task.images,
            Request(FULL, precision=config.precision, memory_gib=config.memory_gib),
            progress=advance,
            scratch=Scratch(scratch, key),
        )
    answers = None if trained is None else logits(trained, task.images[count:])
    with stages("comparison"):
        rows = compare(task, kernel.values, outputs, answers)
    right = outputs[count:].argmax(1) == task.test_labels
    seconds = {
        name: round(stages.seconds[name] - before.get(name, 0.0), 3)
        for name in ("kernel", "comparison")
    }
    return {
        **rows,
        "accuracy": float(np.mean(right)),
        "certificate": certificate,
        "seconds": seconds,
    }


def plan(config: ApproximationConfig, console: Console) -> int:
    """Print what is left to measure and about how long it takes, from steps and gradients timed.

    Args:
        config: what would be done.
        console: where it is shown.

    Returns:
        How many states of networks are left to measure.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: what the experiment itself would
            stop at before it trains.
    """
    keep_freed_blocks()
    keep_compiled()
    tasks = build_tasks(config, console)
    gib = _full_kernel_gib(config, tasks[0].dataset.classes)
    images = config.initial + config.test
    console.print(
        f"a full kernel of {images:,} images: at least {gib:.2f} GiB of {config.memory_gib:g} GiB",
        highlight=False,
    )
    request = Request(FULL, precision=config.precision, memory_gib=config.memory_gib)
    for task in tasks:
        name = "" if task.width is None else f"{config.width_argument} {task.width}: "
        about = f"{name}{parameter_count(task.network):,} parameters; "
        if not task.missing:
            console.print(f"{about}all is measured", highlight=False)
            continue
        with console.status("timing a few steps and gradients"):
            model, shape = task.mirror.model(), task.images.shape[1:]
            image = jax.ShapeDtypeStruct(shape, dtype_of(config.precision))
            plan = plan_kernel(model, image, images, request)
            cost = estimate_cost(model, task.images, plan)
            training = schedule_seconds(
                task.network, task.labelled_images, task.labels, task.run.train
            )
        trained = f", a training of at most {training:.0f} s" if TRAINED in task.missing else ""
        console.print(
            f"{about}left: {', '.join(task.missing)}, about {cost.seconds:.0f} s a kernel{trained}",
            highlight=False,
        )
    console.print("Nothing was trained or recorded.", highlight=False)
    return sum(len(task.missing) for task in tasks)
