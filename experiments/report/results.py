"""Results of a study: tables of all that the records of its trials hold, and their statistics.

Nothing is averaged over seeds in `Results`; `statistics` makes the tables of the finished trials.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.statistics.claims import Frames, Judgement, judge
from experiments.statistics.curves import (
    REFERENCE,
    TRIAL,
    blocks,
    costs,
    finished,
    having,
    labels_saved,
    own_models,
    saving,
    summary,
)
from experiments.statistics.ranks import Friedman, friedman, post_hoc
from experiments.studies.study import Study, Trial
from experiments.sweep.records import ROOT, find_records, read_note, state
from pipelines.config import identity
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.report.curves import STAGE, TRAINING_STAGES, flat, round_row
from pipelines.sequential import journal

_RUN = ("round", "labelled", "test_accuracy", "own_accuracy", "train_accuracy", "residual_rms")
_COST = ("fitted", "queried", "fit_seconds", "query_seconds", "peak_memory_mib", "host")
CURVES = (*TRIAL, *_RUN, *_COST)
ANSWERS = (*TRIAL, "round", "labelled", "test_accuracy")
MEASURES = (*TRIAL, "quantity", "x", "value", "state", "measure", "series", "axis")
TRIALS = (*TRIAL, "kind", "strategy", "state", "rounds", "of_rounds", "path", "message")
PLACES = ("path", "host", "command")  # columns, and keys of the environment, that name a machine
INITIAL, TRAINED = "initial", "trained"  # states of a network
_AUDITED = ("spearman", "ceiling", "agreeing", "gain", "error", "cosine", "size", "point_error")


@dataclass(frozen=True)
class Results(Frames):
    """Records of a study's trials, complete or not.

    `curves` has the columns `CURVES` and a column of seconds for each stage, also of runs that are
    not done; a sequential run has a row for each training. `own_accuracy` is that of the strategy's
    own model, such as a GP; `host` is the machine that the run was last started on. `answers` has
    `ANSWERS`, `measures` has `MEASURES` (`quantity` is measure and series joined by a comma),
    `trials` has `TRIALS`.

    Attributes:
        study: the study.
        size: small or paper.
        root: where records were looked for.
    """

    study: Study
    size: str
    root: Path

    @property
    def planned(self) -> tuple[Trial, ...]:
        """All trials of the study at this size."""
        return self.study.trials(self.size)


def results(study: Study, size: str = "small", root: Path = ROOT) -> Results:
    """Read the records of a study.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth; those of other trials are passed over.

    Raises:
        UnknownNameError: no such size.
        PipelineError: the study's settings are refused.
    """
    trials = study.trials(size)
    folders = find_records(root, trials)
    read: dict[str, _Read] = {}  # trials of the same settings under two names share a record
    curves, answers, measures, rows = [], [], [], []
    for trial in trials:
        if trial.key not in read:
            read[trial.key] = _read(trial, folders.get(trial.key))
        found, names = read[trial.key], {name: getattr(trial, name) for name in TRIAL}
        curves += [row | names for row in found.curves]
        answers += [row | names for row in found.answers]
        measures += [
            names | one._asdict() | {"quantity": one.quantity}
            for one in found.measures
            if not study.shows or one.measure in study.shows
        ]
        rows.append(names | {"kind": trial.kind} | found.trial)
    stages = dict.fromkeys(name for row in curves for name in row if name.startswith(STAGE))
    return Results(
        study=study,
        size=size,
        root=root,
        curves=pd.DataFrame(curves, columns=[*CURVES, *stages]),
        answers=pd.DataFrame(answers, columns=list(ANSWERS)),
        measures=pd.DataFrame(measures, columns=list(MEASURES)),
        trials=pd.DataFrame(rows, columns=list(TRIALS)),
    )


def common(trials: Iterable[Trial]) -> dict[str, Any]:
    """Settings shared by all of some trials, nested names joined by dots, without the seed."""
    records = [flat(identity(trial.config)) for trial in trials]
    return {
        key: value
        for key, value in (records[0] if records else {}).items()
        if key != "seed" and all(key in r and r[key] == value for r in records)
    }


# Records


class _Measure(NamedTuple):
    """One number of a trial.

    Attributes:
        measure: name; figures have a panel for each.
        series: such as a kernel or a strategy; figures have a line for each.
        axis: meaning of x; may be empty.
        x: width, size of a query, epoch; NaN if there is none.
        value: the number.
        state: of the network: initial, trained, or empty where x tells.
    """

    measure: str
    series: str
    axis: str
    x: float
    value: float
    state: str

    @property
    def quantity(self) -> str:
        """The name that claims refer to."""
        return ", ".join(word for word in (self.measure, self.series) if word)


class _Read(NamedTuple):
    """Rows of one trial."""

    trial: dict[str, Any]
    curves: Sequence[dict[str, Any]] = ()
    answers: Sequence[dict[str, Any]] = ()
    measures: Sequence[_Measure] = ()


def _read(trial: Trial, path: Path | None) -> _Read:
    """Read a trial's record; a broken one is a failed trial with that message."""
    standing = state(trial, path)
    row: dict[str, Any] = {
        "strategy": getattr(trial.config, "strategy", ""),
        "state": standing,
        "rounds": 0,
        "of_rounds": None,
        "path": "" if path is None else str(path),
        "message": "",
    }
    if path is None or standing == "absent":
        return _Read(row)
    if standing == "failed":
        attempts = (read_note(path) or {}).get("attempts") or [{}]
        row["message"] = str(attempts[-1].get("message") or "its record cannot be understood")
    try:
        if trial.kind in _READERS:
            return _Read(row, measures=_measures(trial.kind, path) if standing == "done" else ())
        return _of_run(path, row) if (path / record.CONFIG).is_file() else _Read(row)
    except PipelineError as error:
        return _Read(row | {"state": "failed", "message": str(error).splitlines()[0]})


def _of_run(path: Path, row: dict[str, Any]) -> _Read:
    found = journal.read(path)
    run, host = found.run, _host(found.run.environment)
    curves: list[dict[str, Any]] = []
    for number, entry in enumerate(run.rounds):
        one = round_row(run, entry) | {"host": host}
        # a sequential run's round is a training, followed by single queries
        one["queried"] = one["queried"] or len(found.of_round(number))
        one["own_accuracy"] = entry["diagnostics"].get("test_accuracy", math.nan)
        one["fit_seconds"] = one.get(f"{STAGE}fit", math.nan)
        stages = {n.removeprefix(STAGE): own for n, own in one.items() if n.startswith(STAGE)}
        query = sum(float(own) for n, own in stages.items() if n not in TRAINING_STAGES)
        one["query_seconds"] = query if one["queried"] else math.nan
        curves.append(one)
    answers = [
        {"round": line["round"], "labelled": line["labelled"], "test_accuracy": line["accuracy"]}
        for line in found.answers
        if line.get("label") is not None and line.get("accuracy") is not None
    ]
    counts = {"rounds": len(curves), "of_rounds": run.config["cycles"] + 1}
    return _Read(row | counts, curves, answers)


def _host(environment: Sequence[Mapping[str, Any]]) -> str:
    """The machine that a run was last started on."""
    last = next(reversed(environment), {})
    words = [str(last[name]) for name in ("platform", "device") if last.get(name)]
    words = [" ".join(dict.fromkeys(word.split())) for word in words]  # JAX's CPU is a "cpu cpu"
    return ", ".join([*words, *([f"{last['cpus']} CPUs"] if last.get("cpus") else [])])


def _measures(kind: str, folder: Path) -> list[_Measure]:
    """The finite numbers of a measurement, averaged over what was redrawn within a trial.

    Raises:
        PipelineError: a table is broken or lacks a column.
    """
    try:
        found = list(_READERS[kind](folder))
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(
            f"the tables of the {kind} in {folder} cannot be understood "
            f"({type(error).__name__}: {error}); carry it out again in a new directory."
        ) from error
    return [one for one in found if math.isfinite(one.value)]


def _audit(folder: Path) -> Iterator[_Measure]:
    """Quantities such as "spearman, sum, network": measure, kernel, reference."""
    for row in _rows(pd.read_csv(folder / "table.csv")):
        words = [row["kind"], row["reference"]]
        if pd.notna(row["sketch"]):
            words.append(f"sketch {row['sketch']:g}")
        width, steps = float(row["width"]), float(row["steps"])
        axis, x = "width", width
        if math.isnan(width) and not math.isnan(steps):
            axis, x = "training steps", steps
        elif not math.isnan(steps):
            words.append(f"{steps:g} steps")
        axis = "" if math.isnan(x) else axis
        for name in _AUDITED:
            yield _Measure(name, ", ".join(words), axis, x, float(row[name]), TRAINED)


def _dynamics(folder: Path) -> Iterator[_Measure]:
    """Quantities such as "MMD, random", "tau, G_MSE" and "ratio, dynamical, 50"."""
    axis = "query size"
    for row in _averaged(folder, "mmd", ("network", "queries", "chosen")):
        for name, column in (("MMD", "mmd"), ("bound", "bound"), ("MMD over bound", "share")):
            yield _Measure(name, row["chosen"], axis, row["queries"], row[column], row["network"])
    for row in _averaged(folder, "tau", ("network", "queries", "measure")):
        yield _Measure("tau", row["measure"], axis, row["queries"], row["tau"], row["network"])
    for row in _averaged(folder, "ratio", ("epoch", "queries", "chosen")):
        series = f"{row['chosen']}, {row['queries']:g}"
        yield _Measure("ratio", series, "epoch", row["epoch"], row["ratio_of_means"], "")
        yield _Measure("median ratio", series, "epoch", row["epoch"], row["median"], "")
    for row in _averaged(folder, "ratio", ("epoch",)):
        yield _Measure("training accuracy", "", "epoch", row["epoch"], row["train_accuracy"], "")


def _approximation(folder: Path) -> Iterator[_Measure]:
    """Quantities such as "frobenius error, sum" and "regression error, sum, ridge 0, zero"."""
    for row in _rows(pd.read_csv(folder / "rows.csv", keep_default_na=False, na_values=[""])):
        series = "" if pd.isna(row["series"]) else row["series"]
        x = float(row["width"])
        axis = "" if math.isnan(x) else "width"
        yield _Measure(row["measure"], series, axis, x, float(row["value"]), row["state"])


def _averaged(folder: Path, name: str, keys: Iterable[str]) -> list[Mapping[str, Any]]:
    """Means of a table by some of its columns; no rows where the table was not asked for."""
    file = folder / f"{name}.csv"
    if not file.is_file():
        return []
    grouped = pd.read_csv(file).groupby(list(keys), sort=False, as_index=False)
    return _rows(pd.DataFrame(grouped.mean(numeric_only=True)))


def _rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


_READERS: dict[str, Callable[[Path], Iterator[_Measure]]] = {
    "audit": _audit,
    "dynamics": _dynamics,
    "approximation": _approximation,
}


# Statistics


class Ranking(NamedTuple):
    """Several methods compared at once, over the tasks that have all of them.

    Attributes:
        tasks: whose runs are compared.
        methods: the methods compared.
        friedman: the test; None where there are too few complete blocks.
        why: the reason for that; empty otherwise.
        pairs: of `ranks.post_hoc`, of the same runs.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    friedman: Friedman | None
    why: str
    pairs: pd.DataFrame


class Statistics(NamedTuple):
    """Statistics of the finished trials of a study.

    Attributes:
        judgements: of the study's claims.
        curves: rounds of the finished runs.
        paired: the same as `paired` names them.
        summary: of `curves.summary`, of `paired`.
        rankings: one for each set of tasks with the same methods, three or more.
        saving: of `curves.saving`.
        costs: of `curves.costs`.
        models: of `curves.own_models`.
    """

    judgements: tuple[Judgement, ...]
    curves: pd.DataFrame
    paired: pd.DataFrame
    summary: pd.DataFrame
    rankings: tuple[Ranking, ...]
    saving: pd.DataFrame
    costs: pd.DataFrame
    models: pd.DataFrame


def statistics(found: Results) -> Statistics:
    """All statistics of a study.

    Raises:
        PipelineError: a claim names an unknown measure, or a round occurs twice.
    """
    curves = finished(found.curves, found.trials)
    named = paired(curves)
    together: dict[frozenset[str], list[str]] = {}
    for task in dict.fromkeys(curves["task"]):
        methods = frozenset(having(curves, task=[task])["method"])
        together.setdefault(methods, []).append(task)
    return Statistics(
        judgements=judge(found.study.claims_of(found.size), found),
        curves=curves,
        paired=named,
        summary=summary(named),
        rankings=tuple(_ranking(curves, s) for methods, s in together.items() if len(methods) > 2),
        saving=saving(labels_saved(named)),
        costs=costs(named),
        models=own_models(named),
    )


def paired(curves: pd.DataFrame) -> pd.DataFrame:
    """Name each method so that its reference is the random choice with the same settings.

    Where a task has the methods "dynamical, R = 4" and "random, R = 4" they become "dynamical" and
    "random" of the task "…, R = 4": differences from random are then between runs that differ in
    the strategy alone. Other methods stay, to be compared with the method `random`.
    """
    methods = curves.groupby("task")["method"].agg(set).to_dict()
    rows = []
    for task, method in zip(curves["task"], curves["method"], strict=True):
        name, comma, suffix = str(method).partition(", ")
        apart = comma and f"{REFERENCE}, {suffix}" in methods[task]
        rows.append((f"{task}, {suffix}", name) if apart else (task, method))
    made = pd.DataFrame(rows, columns=["task", "method"], index=curves.index)
    return curves.assign(task=made["task"], method=made["method"])


def _ranking(curves: pd.DataFrame, tasks: Sequence[str]) -> Ranking:
    methods = tuple(dict.fromkeys(having(curves, task=[tasks[0]])["method"]))
    table = blocks(curves, methods=methods, tasks=tasks)
    found, why = None, ""
    try:
        found = friedman(table)
    except PipelineError as error:
        why = str(error)
    return Ranking(tuple(tasks), methods, found, why, post_hoc(table))
