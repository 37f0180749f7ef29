"""Statistics of learning curves: a number for each run, gains, labels saved, query cost.

Tables in and out, with the columns task, method and seed: nothing here reads a record. Accuracies
are fractions, also in differences. An interval is Student's 95% interval over the seeds of one
task and method, NaN for a single seed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from experiments.statistics.significance import geometric, holm, p_against
from pipelines.core.errors import PipelineError
from pipelines.report.curves import CONFIDENCE, REFERENCE, interval

UNIT = ["task", "seed"]
TRIAL = ["task", "method", "seed"]


# Tables of runs


def having(frame: pd.DataFrame, **wanted: Iterable[object]) -> pd.DataFrame:
    """Rows whose columns have one of the values wanted."""
    for column, values in wanted.items():
        frame = pd.DataFrame(frame[frame[column].isin(list(values))])
    return frame


def each(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Task, method and rows, in order of first appearance."""
    for task, method in dict.fromkeys(zip(frame["task"], frame["method"], strict=True)):
        yield task, method, having(frame, task=[task], method=[method])


def means(frame: pd.DataFrame, keys: Sequence[str], column: str) -> pd.Series:
    """Mean of a column for each value of the keys."""
    return pd.Series(frame.groupby(list(keys))[column].mean())


def finished(frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Rows of the trials that are done: an unfinished one would shorten what is compared.

    Args:
        frame: with the columns task, method, seed.
        trials: task, method, seed, state.
    """
    done = set(map(tuple, having(trials, state=["done"])[TRIAL].to_numpy().tolist()))
    kept = [tuple(row) in done for row in frame[TRIAL].to_numpy().tolist()]
    return pd.DataFrame(frame[np.array(kept, dtype=bool)])  # an empty list would select columns


def need(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        PipelineError: names the missing ones.
    """
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise PipelineError(
            f"a table of results has the columns {', '.join(map(str, frame.columns))} and lacks "
            f"{', '.join(lacking)}: build it with experiments.report.results."
        )


def wide(curves: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """A value of every run: (task, seed, method) × number of labels, NaN where not measured.

    Raises:
        PipelineError: a column is missing, or a number of labels occurs twice in one run.
    """
    need(curves, [*TRIAL, "labelled", value])
    twice = curves[curves.duplicated([*TRIAL, "labelled"])]
    if len(twice):
        row = twice.iloc[0]
        raise PipelineError(
            f"task {row['task']!r}, method {row['method']!r}, seed {row['seed']} has "
            f"{row['labelled']} labels twice: give every run's rounds once."
        )
    return curves.pivot(index=[*UNIT, "method"], columns="labelled", values=value).sort_index(
        axis=1
    )


# One number a run


class _Measure(NamedTuple):
    """A function of runs × numbers of labels and of the first number, and its name in words."""

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
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One number a run, in blocks of the runs of one task and seed.

    Methods are compared at the numbers of labels that all of them were measured at, task by
    task; a run that stopped before the last of these has no number. The round before the first
    query counts in the area only.

    Args:
        curves: a row for each round of each run: task, method, seed, round, labelled and
            test_accuracy (fraction).
        measure: a name of `MEASURES`.
        methods: those that are compared, in this order; all by default.
        tasks: likewise.

    Returns:
        (task, seed) × methods, fractions, NaN where there is no run.

    Raises:
        PipelineError: an unknown measure, a missing column, or a round given twice.
    """
    if measure not in MEASURES:
        raise PipelineError(f"no measure {measure!r}: choose from {', '.join(MEASURES)}.")
    need(curves, [*TRIAL, "round", "labelled", "test_accuracy"])
    methods = list(dict.fromkeys(curves["method"])) if methods is None else list(methods)
    tasks = list(dict.fromkeys(curves["task"])) if tasks is None else list(tasks)
    compared = having(curves, method=methods)
    tables = [_of_task(having(compared, task=[name]), measure) for name in tasks]
    tables = [table for table in tables if len(table)]
    if not tables:
        index = pd.MultiIndex.from_arrays([[], []], names=UNIT)
        return pd.DataFrame(index=index, columns=methods, dtype=float)
    return pd.concat(tables).reindex(columns=methods)


def _of_task(curves: pd.DataFrame, measure: str) -> pd.DataFrame:
    if curves.empty:
        return curves
    runs = wide(curves)
    reached = pd.DataFrame(runs.notna().groupby(level="method").any()).all(axis="index")
    runs = runs.loc[:, reached.to_list()].dropna()
    if runs.empty:
        return runs
    start = float(pd.Series(curves.groupby(TRIAL)["labelled"].min()).max())
    return MEASURES[measure].of(runs, start).dropna().unstack("method")


# Gains over the reference


def _gained(curves: pd.DataFrame, task: str, method: str, measure: str = "average") -> pd.Series:
    """A measure minus the reference's, of the seeds of a task that both have."""
    if method == REFERENCE:
        return pd.Series(dtype=float)
    table = blocks(curves, measure, [method, REFERENCE], [task]).dropna()
    return pd.Series(table[method] - table[REFERENCE])


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each task and method, with its gains over the reference.

    Returns:
        Columns task, method, n, seeds, first and labels (the first and last number of labels that
        it was measured at); of each of `MEASURES` its mean, `…_low` and `…_high`; and of its paired
        difference from the reference `…_gained`, `…_gained_low`, `…_gained_high`, `…_gained_p` and
        `…_gained_holm`, with `pairs` and `better`: in how many of the pairs the average is higher.
        p is of a paired t-test; Holm corrects for the methods of the task. NaN without pairs.

    Raises:
        PipelineError: a column is missing, or a round occurs twice.
    """
    rows = []
    for task, method, own in each(curves):
        values = {name: blocks(own, name, [method])[method] for name in MEASURES}
        row = {
            "task": task,
            "method": method,
            "n": len(values["final"]),
            "seeds": " ".join(map(str, sorted(set(own["seed"])))),
            "first": own["labelled"].min(),
            "labels": own["labelled"].max(),
        }
        for name, measured in values.items():
            row |= _named(name, measured)
        for name in MEASURES:
            gained = _gained(curves, task, method, name)
            if name == "average":
                row |= {"pairs": len(gained), "better": int((gained.to_numpy() > 0).sum())}
            row |= _named(f"{name}_gained", gained) | {f"{name}_gained_p": p_against(gained)}
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in MEASURES if rows else ():
        grouped = table.groupby("task", sort=False)[f"{name}_gained_p"]
        table[f"{name}_gained_holm"] = grouped.transform(lambda p: holm(p.tolist()))
    return table


def own_models(curves: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the models of their own that strategies look ahead with, beside the networks'.

    Returns:
        A row for each task, method and number of labels that any run has such a model at: columns
        task, method, labelled, n, and mean, `…_low` and `…_high` of `own`, of `network`, and of
        `gained`, which is the own model's minus the network's of the same run.

    Raises:
        PipelineError: a column is missing.
    """
    need(curves, [*TRIAL, "labelled", "test_accuracy", "own_accuracy"])
    rows = []
    for task, method, runs in each(curves.dropna(subset=["own_accuracy"])):
        for labels in sorted(set(runs["labelled"])):
            here = having(runs, labelled=[labels])
            own, network = (here[name].to_numpy() for name in ("own_accuracy", "test_accuracy"))
            row = {"task": task, "method": method, "labelled": labels, "n": len(here)}
            row |= _named("own", own) | _named("network", network)
            rows.append(row | _named("gained", own - network))
    return pd.DataFrame(rows)


def _named(name: str, values: Iterable[float]) -> dict[str, float]:
    _, mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


# Labels saved and query cost


def median(values: np.ndarray) -> tuple[int, float, float, float]:
    """N, the median, and the ends of its distribution-free interval of at least 95%.

    The ends are order statistics; NaN for n < 6.

    Args:
        values: (n,), −∞ for a value known only to be below all others.
    """
    ordered, n = np.sort(values), len(values)
    if n == 0:
        return 0, math.nan, math.nan, math.nan
    middle = ordered[[(n - 1) // 2, n // 2]].mean()
    # the largest rank r with P(Binomial(n, ½) < r) ≤ 2.5%
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    low, high = (ordered[rank - 1], ordered[n - rank]) if rank else (math.nan, math.nan)
    middle, low, high = (float(x) if math.isfinite(x) else math.nan for x in (middle, low, high))
    return n, middle, low, high


def _reaches(run: pd.Series, target: float) -> float:
    """Labels at which a curve, linear between rounds, first attains an accuracy; NaN if never."""
    labels, accuracy = run.index.to_numpy(dtype=float), run.to_numpy(dtype=float)
    above = np.flatnonzero(accuracy >= target)
    if not above.size:
        return math.nan
    ends = slice(max(int(above[0]) - 1, 0), int(above[0]) + 1)
    return float(np.interp(target, accuracy[ends], labels[ends]))


def labels_saved(curves: pd.DataFrame, target: float | None = None) -> pd.DataFrame:
    """How many labels fewer than the reference each run needed, paired by task and seed.

    A curve is linear between two measurements, and an accuracy counts as reached where the curve
    first attains it, for the method and the reference alike: a rule that looks back, such as "stays
    above", would depend on how far a run went. Of two equal methods the reference is a little
    ahead, since it attains the accuracy that it ends with for certain.

    Args:
        curves: task, method, seed, labelled, test_accuracy.
        target: the accuracy, a fraction; by default the one that the reference's run of the same
            seed ends with at the last number of labels.

    Returns:
        A row for each run of another method whose reference is there: task, method, seed, target,
        labels (needed to reach it), reference_labels, saved (the difference; negative where more
        were needed) and censored: that the run never reached it, so that `labels` is the last
        number that it had and an upper bound of `saved` is given. A target that the reference does
        not reach itself gives no row.

    Raises:
        PipelineError: a column is missing, or a round occurs twice.
    """
    need(curves, [*TRIAL, "labelled", "test_accuracy"])
    table = wide(curves)
    runs = {key: table.loc[key].dropna() for key in table.index.to_list()}
    rows = []
    for (task, seed, method), run in runs.items():
        other = runs.get((task, seed, REFERENCE))
        if method == REFERENCE or other is None:
            continue
        aim = float(other.iloc[-1]) if target is None else target
        theirs, labels = _reaches(other, aim), _reaches(run, aim)
        if math.isnan(theirs):
            continue
        censored = math.isnan(labels)
        needed = float(run.index[-1]) if censored else labels
        rows.append((task, method, seed, aim, needed, theirs, theirs - needed, censored))
    columns = [*TRIAL, "target", "labels", "reference_labels", "saved", "censored"]
    return pd.DataFrame(rows, columns=columns)


def saving(saved: pd.DataFrame) -> pd.DataFrame:
    """The savings of each task and method over its seeds.

    Args:
        saved: of `labels_saved`.

    Returns:
        A row for each: task, method, n, reached (how many runs reached the accuracy), median, low
        and high (its 95% interval), reference_labels (their median) and share (of the median in
        that). A run that never reached the accuracy ranks last, so that the median is NaN where
        half of them or more did not, and an end of its interval likewise.
    """
    rows = []
    for task, method, own in each(saved):
        lost = own["censored"].to_numpy(dtype=bool)
        n, middle, low, high = median(np.where(lost, -math.inf, own["saved"].to_numpy(dtype=float)))
        theirs = float(np.median(own["reference_labels"].to_numpy(dtype=float)))
        reached = n - int(lost.sum())
        rows.append((task, method, n, reached, middle, low, high, theirs, middle / theirs))
    columns = ["task", "method", "n", "reached", "median", "low", "high"]
    columns += ["reference_labels", "share"]
    return pd.DataFrame(rows, columns=columns)


def costs(curves: pd.DataFrame) -> pd.DataFrame:
    """Seconds of a method's queries against the accuracy that they gain.

    Args:
        curves: task, method, seed, round, labelled, test_accuracy, query_seconds (NaN where
            nothing was queried).

    Returns:
        A row for each task and method: task, method, n (runs), queries, seconds, seconds_low and
        seconds_high (geometric mean of a query's seconds, over the runs' own geometric means),
        median_seconds (of all queries; the first one of a process includes compilation), pairs,
        gained, gained_low and gained_high (average accuracy minus the reference's, paired by seed,
        fractions; 0 for the reference itself, without an interval).

    Raises:
        PipelineError: a column is missing, or a round occurs twice.
    """
    need(curves, [*TRIAL, "round", "query_seconds"])
    asked = pd.DataFrame(curves[curves["query_seconds"].to_numpy(dtype=float) > 0])
    rows = []
    for task, method, own in each(asked):
        logs = own.assign(log=np.log(own["query_seconds"].to_numpy(dtype=float)))
        n, seconds, low, high = geometric(np.exp(means(logs, ["seed"], "log")))
        gained = (0, 0.0, math.nan, math.nan)
        if method != REFERENCE:
            gained = interval(_gained(curves, task, method))
        usual = float(np.median(own["query_seconds"].to_numpy(dtype=float)))
        rows.append((task, method, n, len(own), seconds, low, high, usual, *gained))
    columns = ["task", "method", "n", "queries", "seconds", "seconds_low", "seconds_high"]
    columns += ["median_seconds", "pairs", "gained", "gained_low", "gained_high"]
    return pd.DataFrame(rows, columns=columns)
