"""A study's trials and a folder of records → tables of all that was found, and of what is missing.

Nothing is averaged over seeds here: that is for `experiments.statistics`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.report.measures import Measure, measures
from experiments.studies.study import Study, Trial
from experiments.sweep.carry import read_note
from experiments.sweep.recorded import ROOT, recorded, state
from pipelines import record
from pipelines.errors import PipelineError
from pipelines.report.curves import STAGE, TRAINING_STAGES, round_row
from pipelines.sequential import config

WHO = ("subject", "arm", "seed")
CURVES = (
    *WHO,
    "round",
    "labelled",
    "test_accuracy",
    "own_accuracy",
    "train_accuracy",
    "residual_rms",
    "fitted",
    "queried",
    "fit_seconds",
    "query_seconds",
    "peak_memory_mib",
    "host",
)
ANSWERS = (*WHO, "round", "labelled", "test_accuracy")
MEASURES = (*WHO, "quantity", "x", "value", "state", "measure", "series", "axis")
PLACES = ("path", "host", "command")  # what says where: columns, and of the environment
TRIALS = (*WHO, "kind", "strategy", "state", "rounds", "of_rounds", "path", "message")


@dataclass(frozen=True)
class Results:
    """What the records say of a study's trials, complete or not.

    Attributes:
        study: the study.
        size: which of its sizes.
        root: where records were looked for.
        curves: a row for each completed round of each run, also of runs that are not done:
            `CURVES`, and a column of seconds for each stage. A sequential run has a row for each
            training. Accuracies are fractions; `own_accuracy` is that of the strategy's own model
            where it has one, as a GP; `query_seconds` is NaN where nothing was queried; `host`
            says what machine the run was last started on.
        answers: a row for each answer of each sequential run, with the accuracy of the linearised
            network after it: `ANSWERS`.
        measures: a row for each number that an audit or another measurement ended with:
            `MEASURES`; `quantity` is measure and series joined by a comma.
        trials: a row for each trial: `TRIALS`; `state` is done, failed, begun or absent.
    """

    study: Study
    size: str
    root: Path
    curves: pd.DataFrame
    answers: pd.DataFrame
    measures: pd.DataFrame
    trials: pd.DataFrame


def results(study: Study, size: str = "small", root: Path = ROOT) -> Results:
    """Read what there is of a study.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth; those of other trials are passed over.

    Raises:
        UnknownNameError: no such size.
        PipelineError: the study's settings are refused.
    """
    trials = study.trials(size)
    places = recorded(root, trials)
    # One record may answer for several trials: the same settings under two names.
    kept: dict[str, _Read] = {}
    curves, answers, measured, rows = [], [], [], []
    for trial in trials:
        if trial.key not in kept:
            kept[trial.key] = _read(trial, places.get(trial.key))
        found, who = kept[trial.key], dict(zip(WHO, _who(trial), strict=True))
        curves += [row | who for row in found.curves]
        answers += [row | who for row in found.answers]
        measured += [
            who | one._asdict() | {"quantity": one.quantity}
            for one in found.measures
            if not study.shows or one.measure in study.shows
        ]
        rows.append(who | {"kind": trial.kind} | found.trial)
    stages = dict.fromkeys(name for row in curves for name in row if name.startswith(STAGE))
    return Results(
        study=study,
        size=size,
        root=root,
        curves=pd.DataFrame(curves, columns=[*CURVES, *stages]),
        answers=pd.DataFrame(answers, columns=list(ANSWERS)),
        measures=pd.DataFrame(measured, columns=list(MEASURES)),
        trials=pd.DataFrame(rows, columns=list(TRIALS)),
    )


def _who(trial: Trial) -> tuple[str, str, int]:
    return trial.subject, trial.arm, trial.seed


@dataclass(frozen=True)
class _Read:
    """What one directory says of one trial."""

    trial: dict[str, Any]
    curves: tuple[dict[str, Any], ...] = ()
    answers: tuple[dict[str, Any], ...] = ()
    measures: tuple[Measure, ...] = ()


def _read(trial: Trial, path: Path | None) -> _Read:
    """A trial's record; one that cannot be understood is a failed trial with that message."""
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
        if trial.kind not in ("run", "sequential"):
            done = standing == "done"
            return _Read(row, measures=tuple(measures(trial.kind, path)) if done else ())
        if not (path / record.CONFIG).is_file():
            return _Read(row)
        return _of_run(path, row)
    except PipelineError as error:
        return _Read(row | {"state": "failed", "message": str(error).splitlines()[0]})


def _of_run(path: Path, row: dict[str, Any]) -> _Read:
    found = config.read(path)
    run = found.run
    host = _host(run.environment)
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(run.rounds):
        one = round_row(run, entry) | {"host": host}
        rows.append(one)
        # a sequential run's round is a training, and what is asked after it are its queries
        one["queried"] = one["queried"] or len(found.of_round(number))
        one["own_accuracy"] = entry["diagnostics"].get("test_accuracy", math.nan)
        one["fit_seconds"] = one.get(f"{STAGE}fit", math.nan)
        one["query_seconds"] = _query_seconds(one) if one["queried"] else math.nan
    counts = {"rounds": len(rows), "of_rounds": run.config["cycles"] + 1}
    return _Read(row | counts, tuple(rows), tuple(_answers(found.answers)))


def _query_seconds(row: Mapping[str, Any]) -> float:
    names = [name for name in row if name.startswith(STAGE)]
    return sum(row[name] for name in names if name.removeprefix(STAGE) not in TRAINING_STAGES)


def _answers(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.get("label") is not None and line.get("accuracy") is not None:
            yield {name: line[name] for name in ("round", "labelled")} | {
                "test_accuracy": line["accuracy"]
            }


def _host(environment: Sequence[Mapping[str, Any]]) -> str:
    """What machine a run was last started on, in words."""
    last = next(reversed(environment), {})
    words = [str(last[name]) for name in ("platform", "device") if last.get(name)]
    words = [" ".join(dict.fromkeys(word.split())) for word in words]  # JAX's CPU is a "cpu cpu"
    return ", ".join([*words, *([f"{last['cpus']} CPUs"] if last.get("cpus") else [])])
