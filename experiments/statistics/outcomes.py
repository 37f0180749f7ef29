"""Curves of runs → one number a run, in blocks of runs that had the same subject and seed.

A run's number is its average, final accuracy or area under the curve, over the numbers of labels
at which all arms in the comparison were measured.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipelines.errors import PipelineError

REFERENCE = "random"
UNIT = ["subject", "seed"]
# What a block is, for whoever reads a result.
BLOCK = "a block is one subject (data set, network and settings) with one seed"
TRIAL = ["subject", "arm", "seed"]


class _Measure(NamedTuple):
    """How a run's accuracies become one number, and what that is in words."""

    of: Callable[[pd.DataFrame, float], pd.Series]
    words: str


def _average(runs: pd.DataFrame, start: float) -> pd.Series:
    return runs.loc[:, [labels > start for labels in runs.columns]].mean(axis="columns")


def _final(runs: pd.DataFrame, start: float) -> pd.Series:
    return runs.iloc[:, -1] if runs.columns[-1] > start else runs.iloc[:, -1] * np.nan


def _area(runs: pd.DataFrame, start: float) -> pd.Series:
    labels = np.asarray(runs.columns, dtype=float)
    if len(labels) < 2:
        return runs.iloc[:, -1] * np.nan
    areas = np.trapezoid(runs.to_numpy(dtype=float), labels, axis=1) / (labels[-1] - labels[0])
    return pd.Series(areas, index=runs.index)


MEASURES: Mapping[str, _Measure] = {
    "average": _Measure(_average, "test accuracy averaged over the rounds after the first query"),
    "final": _Measure(_final, "final test accuracy"),
    "area": _Measure(_area, "area under the curve of test accuracy, over the range of labels"),
}


def blocks(
    curves: pd.DataFrame,
    measure: str = "average",
    arms: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One number a run.

    Arms are compared at the numbers of labels that all of them were measured at, subject by
    subject; a run that stopped before the last of these has no number. What was measured before
    the first query is in the area, where it is one end of the curve, and in nothing else.

    Args:
        curves: a row for each round of each run: subject, arm, seed, round, labelled and
            test_accuracy (fraction).
        measure: a name of `MEASURES`.
        arms: those that are compared; all in their order without.
        subjects: likewise.

    Returns:
        (subject, seed) × arms, fractions, NaN where there is no run.

    Raises:
        PipelineError: an unknown measure, a column that is missing, or a round given twice.
    """
    if measure not in MEASURES:
        raise PipelineError(f"no measure {measure!r}: choose from {', '.join(MEASURES)}.")
    need(curves, [*TRIAL, "round", "labelled", "test_accuracy"])
    arms = list(dict.fromkeys(curves["arm"])) if arms is None else list(arms)
    subjects = list(dict.fromkeys(curves["subject"])) if subjects is None else list(subjects)
    found = [_of_subject(having(curves, subject=[name]), measure, arms) for name in subjects]
    index = pd.MultiIndex.from_arrays([[], []], names=UNIT)
    empty = pd.DataFrame(index=index, columns=arms, dtype=float)
    found = [table for table in found if len(table)]
    return pd.concat(found).reindex(columns=arms) if found else empty


def _of_subject(curves: pd.DataFrame, measure: str, arms: Sequence[str]) -> pd.DataFrame:
    own = having(curves, arm=arms)
    if own.empty:
        return own
    runs = wide(own)
    reached = pd.DataFrame(runs.notna().groupby(level="arm").any())
    runs = runs.loc[:, reached.all(axis="index").to_list()].dropna()
    if runs.empty:
        return runs
    first = pd.Series(own.groupby(TRIAL)["labelled"].min())
    values = MEASURES[measure].of(runs, float(first.max())).dropna()
    return values.unstack("arm")


def wide(curves: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """A value of every run: (subject, seed, arm) × number of labels, NaN where not measured.

    Raises:
        PipelineError: a number of labels is there twice in one run.
    """
    twice = curves[curves.duplicated([*TRIAL, "labelled"])]
    if len(twice):
        row = twice.iloc[0]
        raise PipelineError(
            f"subject {row['subject']!r}, arm {row['arm']!r}, seed {row['seed']} has "
            f"{row['labelled']} labels twice: give every run's rounds once."
        )
    return curves.pivot(index=[*UNIT, "arm"], columns="labelled", values=value).sort_index(axis=1)


def each(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The rows of each subject and arm, in the order in which they come."""
    for subject, arm in dict.fromkeys(zip(frame["subject"], frame["arm"], strict=True)):
        yield subject, arm, having(frame, subject=[subject], arm=[arm])


def means(frame: pd.DataFrame, keys: Sequence[str], column: str) -> pd.Series:
    """Mean of a column for each value of the keys."""
    return pd.Series(frame.groupby(list(keys))[column].mean())


def finished(frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of trials that are done: one that is not yet would shorten what is compared.

    Args:
        frame: with the columns subject, arm, seed.
        trials: subject, arm, seed, state.
    """
    done = having(trials, state=["done"])
    keys = set(map(tuple, done[TRIAL].to_numpy().tolist())) if len(done) else set()
    kept = [tuple(row) in keys for row in frame[TRIAL].to_numpy().tolist()]
    return pd.DataFrame(frame[np.array(kept, dtype=bool)])  # an empty list would choose columns


def having(frame: pd.DataFrame, **wanted: Iterable[object]) -> pd.DataFrame:
    """The rows whose columns have one of the values wanted."""
    for column, values in wanted.items():
        frame = pd.DataFrame(frame[frame[column].isin(list(values))])
    return frame


def need(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        PipelineError: with those that it lacks.
    """
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise PipelineError(
            f"a table of results has the columns {', '.join(map(str, frame.columns))} and lacks "
            f"{', '.join(lacking)}: build it with experiments.report.results."
        )
