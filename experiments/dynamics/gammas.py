"""Accuracy by γ, from recorded runs of the strategy `dynamical`.

From run directories to a table: a mean and an interval over seeds for each γ and number of labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import record
from pipelines.errors import PipelineError
from pipelines.json_io import plain
from pipelines.record import Run
from pipelines.report.curves import field, interval

STRATEGY, RANDOM = "dynamical", "random"
# What runs of one figure may differ in.
_APART = ("strategy", "seed", "cycles", "format")
_SHARED = ("train", "data", "network_args")


class Gammas(NamedTuple):
    """What runs say of γ.

    Attributes:
        about: data set, network and size of a query, in words.
        curves: rows of gamma, labelled, n, mean, low, high; gamma in words, `random` for runs
            without one.
        averages: rows of gamma, n, mean, low, high: of a run's accuracy averaged over the rounds
            after its first query.
    """

    about: str
    curves: list[dict[str, Any]]
    averages: list[dict[str, Any]]


def gammas(paths: Sequence[Path]) -> Gammas:
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
        raise PipelineError(f"none of the runs given is of the strategy {STRATEGY}: add some.")
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
    if strategy not in (STRATEGY, RANDOM):
        raise PipelineError(
            f"{run.path} is a run of {strategy}, which has no gamma: give runs of {STRATEGY}, and "
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
