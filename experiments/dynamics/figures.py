"""Figures of a network at some weights: MMD and bound, τ, envelope, R.

Everything about queries is a quadratic form of one kernel between labelled images, which come
first, and candidates. R needs no kernel: one backward pass over each query.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from experiments.dynamics.config import TheoryConfig
from experiments.dynamics.diagnostics import (
    between_images,
    bound,
    energies,
    energy_of,
    extremes,
    flow,
    interactions,
    kendall,
    normalised,
    ratios,
    residual_spectrum,
)
from experiments.dynamics.diagnostics import mmd as mmd_between
from kernel.covariance import Kernel
from kernel.dynamics import Measured, cotangents
from kernel.dynamics import measure as measure_gradients
from kernel.errors import SingularKernelError
from kernel.gradients import squared_length, total
from kernel.model import Model, Params
from kernel.ntk import empirical_ntk
from kernel.plan import cast
from kernel.scratch import Scratch, key_of
from pipelines.core.progress import Stages, generator, named_images
from pipelines.measurement import NetworkTask
from pipelines.strategies.base import PROBE
from trainer.fit import accuracy
from trainer.oracle import DatasetOracle
from trainer.predict import logits

Rows = list[dict[str, Any]]

RANDOM, DYNAMICAL = "random", "dynamical"
G_MSE, G = "G_MSE", "G"
# Times of the envelope, in units of 1/λ_max of S.
_TIMES = np.concatenate([[0.0], np.logspace(-2, 4, 61)])


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


class Queries(NamedTuple):
    """Queries of one size.

    Attributes:
        size: b.
        random: bool (draws, candidates).
        best: bool (candidates,), the one that dynamicAL makes.
    """

    size: int
    random: np.ndarray
    best: np.ndarray


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
        with named_images(self.task.both):
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
        with named_images(self.task.labelled):
            return total(self.model, self.task.images[:count], self.cotangents[:count])

    @cached_property
    def gradients(self) -> Measured:
        """‖g_u‖² and g_u·g_S of the candidates."""
        count, loss = len(self.task.labelled), self.task.run.train.loss
        with self.stages("gradients") as advance, named_images(self.task.candidates):
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
        scratch = None
        if self.scratch is not None:
            key = key_of((*self.model[1:], images), config.request)
            scratch = Scratch(self.scratch, key)
        with self.stages("kernel") as advance, named_images(self.task.both):
            kernel = empirical_ntk(
                self.model,
                images,
                config.request,
                # one stream for every state: they do not differ by its draws
                rng=generator(config.seed, "dynamics kernel"),
                progress=advance,
                scratch=scratch,
            )
            return normalised(kernel)


def with_labelled(queries: np.ndarray, labelled: int) -> np.ndarray:
    """S ∪ Q: bool (queries, labelled + candidates)."""
    return np.concatenate([np.ones((len(queries), labelled), bool), queries], axis=1)


def mmd(state: NetworkState) -> Rows:
    """MMD(S, S ∪ Q) and B(S ∪ Q) of every query, with true labels."""
    task, targets, labelled = state.task, state.task.targets, len(state.task.labelled)
    queries, kernel = state.queries(task.config.repeats), state.kernel
    rows: Rows = []
    with state.stages("MMD and bound") as advance:
        values = between_images(kernel)
        count = sum(len(one.random) + 1 for one in queries)
        for one in queries:
            sets = with_labelled(np.concatenate([one.random, one.best[None]]), labelled)
            alone = np.zeros_like(sets)
            alone[:, :labelled] = True
            distances = mmd_between(values, alone, sets)
            chosen = [RANDOM] * len(one.random) + [DYNAMICAL]
            for members, name, distance in zip(sets, chosen, distances, strict=True):
                row = {"queries": one.size, "chosen": name, "mmd": float(distance)}
                rows.append(row | bound_or_reason(kernel, targets, np.flatnonzero(members)))
                advance(len(rows), count)
    return rows


def bound_or_reason(kernel: Kernel, targets: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    """B of some images; NaN, and the reason, where their kernel has no factor."""
    own = _part(kernel, positions)
    try:
        estimate = bound(own, targets[positions], positions.tolist())
    except SingularKernelError as error:
        smallest, largest = extremes(own)
        known = {"smallest": smallest, "largest": largest}
        return {"bound": float("nan"), **known, "jitter": float("nan"), "note": str(error)}
    values = estimate._asdict()
    return {"bound": values.pop("value"), **values, "note": ""}


def _part(kernel: Kernel, positions: np.ndarray) -> Kernel:
    """The kernel between some of its images."""
    if kernel.values.ndim == 2:
        return Kernel(kernel.values[np.ix_(positions, positions)], kernel.precision)
    return Kernel(kernel.values[positions][:, :, positions], kernel.precision)


def tau(state: NetworkState) -> Rows:
    """Kendall's τ between G_MSE (and G) of S ∪ Q and its alignment, over the random queries."""
    task, config, kernel = state.task, state.task.config, state.kernel
    vectors = {G_MSE: state.logits - task.targets}
    if config.train.loss == "cross_entropy":
        # with true labels of candidates too, as Y has them
        vectors[G] = cotangents(state.logits, task.true_labels, config.train.loss)
    rows: Rows = []
    with state.stages("tau"):
        rng = generator(config.seed, "dynamics bootstrap")
        aligned = interactions(kernel, task.targets)
        matrices = {name: interactions(kernel, own) for name, own in vectors.items()}
        for size in config.queries:
            queries = task.random_queries(size, config.draws)
            sets = with_labelled(queries, len(task.labelled))
            alignment = energies(aligned, sets)
            for name, matrix in matrices.items():
                measured = energies(matrix, sets)
                estimate = kendall(measured, alignment, rng)
                row = {"queries": size, "measure": name, "draws": len(sets)}
                row |= {"tau": estimate.value, "tau_low": estimate.low, "tau_high": estimate.high}
                rows.append(row | {"measured": measured, "alignment": alignment})
    return rows


def envelope(state: NetworkState) -> Rows:
    """Squared error under gradient flow from zero: S alone, with a random query, with the best."""
    task, kernel, query = state.task, state.kernel, state.queries(1)[0]
    queries = np.stack([np.zeros_like(query.best), query.random[0], query.best])
    rows, scale = [], 0.0
    with state.stages("envelope"):
        sets = with_labelled(queries, len(task.labelled))
        for members, name in zip(sets, ("S", RANDOM, DYNAMICAL), strict=True):
            positions = np.flatnonzero(members)
            spectrum = residual_spectrum(_part(kernel, positions), task.targets[positions])
            scale = scale or float(spectrum.values[-1])
            limits = flow(spectrum, _TIMES / scale)
            rows.append(
                {
                    "set": name,
                    "images": len(positions),
                    "mean_rate": spectrum.alignment / spectrum.total,
                    "smallest": float(spectrum.values[0]),
                    "largest": float(spectrum.values[-1]),
                    "times": _TIMES,
                    **{end: values / spectrum.total for end, values in limits._asdict().items()},
                }
            )
    return rows


def ratio(state: NetworkState) -> dict[str, Any]:
    """R(Q|S) of the queries of every size.

    Returns:
        `dynamics` G(S) = ‖g_S‖², `mean_norm` of ‖g_u‖² over the candidates, `train_accuracy`,
        `certificate`, and `rows`: for each size and way of choosing the median of R, its quartiles,
        the ratio of means, and R of every query.
    """
    task, config = state.task, state.task.config
    count, gradients = len(task.labelled), state.gradients
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
            values = ratios(gradients.delta(), gradients.inner, np.array(squares), queries)
            known = values.each[np.isfinite(values.each)]
            low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (np.nan, np.nan)
            rows.append(
                {
                    "queries": size,
                    "chosen": name,
                    "draws": len(queries),
                    "median": values.median,
                    "lower_quartile": float(low),
                    "upper_quartile": float(high),
                    "ratio_of_means": values.of_means,
                    "each": values.each,
                }
            )
    return {
        "dynamics": squared_length(state.direction),
        "mean_norm": float(gradients.norms.mean()),
        "train_accuracy": accuracy(state.logits[:count], task.labels),
        "certificate": state.mirror[1],
        "rows": rows,
    }


KERNEL_FIGURES: dict[str, Callable[[NetworkState], Rows]] = {
    "mmd": mmd,
    "tau": tau,
    "envelope": envelope,
}
