"""The rows of each figure: MMD and bound, τ, envelope, R, and accuracy by γ.

Everything about queries is a quadratic form of one kernel between labelled images, which come
first, and candidates; accuracy by γ is read from recorded runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kernel.covariance import Kernel
from kernel.diagnostics import (
    Ratios,
    between_images,
    bound,
    energies,
    extremes,
    flow,
    interactions,
    kendall,
    mmd,
    residual_spectrum,
)
from kernel.errors import SingularKernelError
from pipelines import record
from pipelines.errors import PipelineError
from pipelines.json_io import plain
from pipelines.progress import Advance
from pipelines.record import Run
from pipelines.report.curves import field, interval

Rows = list[dict[str, Any]]

RANDOM, DYNAMICAL = "random", "dynamical"
# Times of the envelope, in units of 1/λ_max of S.
_TIMES = np.concatenate([[0.0], np.logspace(-2, 4, 61)])
# Settings in which runs of the γ figure may differ.
_APART = ("strategy", "seed", "cycles", "format")
_SHARED = ("train", "data", "network_args")


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


def with_labelled(sets: np.ndarray, labelled: int) -> np.ndarray:
    """S ∪ Q: bool (sets, labelled + candidates)."""
    return np.concatenate([np.ones((len(sets), labelled), bool), sets], axis=1)


def mmd_rows(
    kernel: Kernel,
    targets: np.ndarray,
    labelled: int,
    queries: Sequence[Queries],
    advance: Advance,
) -> Rows:
    """MMD(S, S ∪ Q) and B(S ∪ Q) of every query, with true labels.

    Args:
        kernel: normalised to a mean diagonal of 1.
        targets: Y of all images, one-hot.
        labelled: |S|; its images come first.
        queries: with as many random ones of each size as are measured.
        advance: called with how many are done.
    """
    values = between_images(kernel)
    total = sum(len(one.random) + 1 for one in queries)
    rows = []
    for one in queries:
        sets = with_labelled(np.concatenate([one.random, one.best[None]]), labelled)
        alone = np.zeros_like(sets)
        alone[:, :labelled] = True
        distances = mmd(values, alone, sets)
        chosen = [RANDOM] * len(one.random) + [DYNAMICAL]
        for number, (members, name) in enumerate(zip(sets, chosen, strict=True)):
            rows.append({"queries": one.size, "chosen": name, "mmd": float(distances[number])})
            rows[-1] |= bounded(kernel, targets, np.flatnonzero(members))
            advance(len(rows), total)
    return rows


def bounded(kernel: Kernel, targets: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    """B of some images; NaN, and the reason, where their kernel has no factor."""
    own = part(kernel, positions)
    try:
        estimate = bound(own, targets[positions], positions.tolist())
    except SingularKernelError as error:
        smallest, largest = extremes(own)
        known = {"smallest": smallest, "largest": largest}
        return {"bound": float("nan"), **known, "jitter": float("nan"), "note": str(error)}
    values = estimate._asdict()
    return {"bound": values.pop("value"), **values, "note": ""}


def part(kernel: Kernel, positions: np.ndarray) -> Kernel:
    """The kernel between some of its images."""
    if kernel.values.ndim == 2:
        return Kernel(kernel.values[np.ix_(positions, positions)], kernel.precision)
    return Kernel(kernel.values[positions][:, :, positions], kernel.precision)


def tau_rows(
    kernel: Kernel,
    targets: np.ndarray,
    measures: dict[str, np.ndarray],
    labelled: int,
    queries: Mapping[int, np.ndarray],
    rng: np.random.Generator,
) -> Rows:
    """Kendall's τ between measures of S ∪ Q and its alignment, over the random queries.

    Args:
        kernel: between all images.
        targets: Y of all images, one-hot, true labels.
        measures: names, and the vectors of all images whose energy they are: f − Y for G_MSE.
        labelled: |S|.
        queries: by size, bool (draws, candidates), random ones.
        rng: of the bootstrap.
    """
    aligned = interactions(kernel, targets)
    matrices = {name: interactions(kernel, vectors) for name, vectors in measures.items()}
    rows = []
    for size, random in queries.items():
        sets = with_labelled(random, labelled)
        alignment = energies(aligned, sets)
        for name, matrix in matrices.items():
            measured = energies(matrix, sets)
            estimate = kendall(measured, alignment, rng)
            row = {"queries": size, "measure": name, "draws": len(sets)}
            row |= {"tau": estimate.value, "tau_low": estimate.low, "tau_high": estimate.high}
            rows.append(row | {"measured": measured, "alignment": alignment})
    return rows


def envelope_rows(kernel: Kernel, targets: np.ndarray, labelled: int, query: Queries) -> Rows:
    """Squared error under gradient flow from zero: S alone, and with a random and the best query.

    Args:
        kernel: between all images.
        targets: Y of all images, one-hot.
        labelled: |S|.
        query: of which the first random one is taken.
    """
    sets = with_labelled(
        np.stack([np.zeros_like(query.best), query.random[0], query.best]), labelled
    )
    rows, scale = [], 0.0
    for members, name in zip(sets, ("S", RANDOM, DYNAMICAL), strict=True):
        positions = np.flatnonzero(members)
        spectrum = residual_spectrum(part(kernel, positions), targets[positions])
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


def ratio_summary(values: Ratios) -> dict[str, Any]:
    """Median, quartiles and ratio of means of R over queries of one size, and R of each."""
    known = values.each[np.isfinite(values.each)]
    low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (np.nan, np.nan)
    return {
        "median": values.median,
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        "ratio_of_means": values.of_means,
        "each": values.each,
    }


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
    tables: dict[str, list[list[float]]] = {}
    for (gamma, _), run in sorted(named.items(), key=lambda item: (_order(item[0][0]), item[0][1])):
        accuracies = [field(line, "test_accuracy", f"{run.path}") for line in run.rounds[:shared]]
        tables.setdefault(gamma, []).append(accuracies)
    labelled = [line["labelled"] for line in runs[0].rounds[:shared]]
    curves = [
        {"gamma": gamma, "labelled": count, **interval(column)._asdict()}
        for gamma, rows in tables.items()
        for count, column in zip(labelled, zip(*rows, strict=True), strict=True)
    ]
    averages = [
        {"gamma": gamma, **interval(sum(row[1:]) / len(row[1:]) for row in rows)._asdict()}
        for gamma, rows in tables.items()
        if shared > 1
    ]
    config = runs[0].config
    about = f"{config['dataset']}, {config['network']}, {config['query']} a query"
    return Gammas(about, plain(curves), plain(averages))


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
    """What must be the same in all of them; of dynamics only where both have it."""
    # settings of other strategies are groups that neither of the two reads
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
