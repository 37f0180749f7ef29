"""Records → tidy tables → means with 95% confidence, for the report.

`tidy` makes one row for each round of a group of runs, and the rest are aggregates over seeds: mean
and 95% confidence interval, difference from random paired by seed, medians of seconds. Accuracies
are fractions in every table; percent and points are made where they are shown.
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from pipelines.record import Run
from pipelines.report.groups import REFERENCE, Group, field, subject
from pipelines.report.intervals import Interval, interval

STAGE = "seconds_"  # prefix of the columns that hold a stage's seconds
TRAINING_STAGES = ("fit", "evaluate")  # every strategy pays these alike: not part of a query
# In this order.
QUERY_STAGES = (
    "predict",
    "certificate",
    "kernel",
    "gradients",
    "posterior",
    "score",
    "select",
)


def tidy(group: Group) -> pd.DataFrame:
    """One row for each completed round of each run.

    Raises:
        PipelineError: a round lacks an entry that the report needs.
    """
    dataset, network = subject(group.settings)
    named = {"group": group.title, "dataset": dataset, "network": network}
    return pd.DataFrame(
        [named | round_row(run, entry) for run in group.runs for entry in run.rounds]
    )


def round_row(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """What a report reads of one completed round of a run.

    Raises:
        PipelineError: the round lacks an entry that the report needs.
    """
    where = f"round {entry['round']} of {run.path}"
    fit, seconds = field(entry, "fit", where), field(entry, "seconds", where)
    return {
        "run": str(run.path),
        "strategy": run.config["strategy"],
        "seed": run.config["seed"],
        "round": entry["round"],
        "labelled": field(entry, "labelled", where),
        "queried": len(entry.get("indices", ())),
        "test_accuracy": field(entry, "test_accuracy", where),
        "train_accuracy": field(entry, "train_accuracy", where),
        "residual_rms": field(fit, "residual_rms", f"the fit in {where}"),
        "fitted": field(fit, "fitted", f"the fit in {where}"),
        "steps": fit.get("steps"),
        "missing_classes": " ".join(map(str, entry.get("missing_classes", ()))),
        "peak_memory_mib": max(entry.get("peak_memory_mib", {}).values(), default=math.nan),
        **{f"{STAGE}{stage}": value for stage, value in seconds.items()},
    }


def _having(rounds: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    return pd.DataFrame(rounds[rounds[column].isin(list(values))])


def strategies(rounds: pd.DataFrame) -> list[str]:
    """The strategies of a tidy table, in its order."""
    return list(dict.fromkeys(rounds["strategy"]))


def by_seed(rounds: pd.DataFrame, strategy: str, value: str = "test_accuracy") -> pd.DataFrame:
    """A value of one strategy, seeds × number of labels.

    Only the numbers of labels that *all* its seeds have reached: a mean over seeds that change
    along the curve would show steps that no run made.
    """
    own = _having(rounds, "strategy", [strategy])
    return own.pivot(index="seed", columns="labelled", values=value).dropna(axis="columns")


def minus_random(rounds: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """Test accuracy minus random's, of the same seed at the same number of labels.

    Returns:
        Seeds that both have × numbers of labels that all these runs have reached; empty where
        there are none.
    """
    own, reference = (
        set(_having(rounds, "strategy", [name])["seed"]) for name in (strategy, REFERENCE)
    )
    matched = _having(rounds, "seed", own & reference)
    own, reference = by_seed(matched, strategy), by_seed(matched, REFERENCE)
    shared = own.columns.intersection(reference.columns)
    return own.reindex(columns=shared) - reference.reindex(columns=shared)


def curve(rounds: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds: columns strategy, labelled, n, mean, low, high."""
    return _curve({name: by_seed(rounds, name, value) for name in strategies(rounds)})


def difference(rounds: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of the paired differences from random, in the columns of `curve`."""
    others = [name for name in strategies(rounds) if name != REFERENCE]
    return _curve({name: minus_random(rounds, name) for name in others})


def _curve(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = [
        (strategy, labelled, *interval(table[labelled]))
        for strategy, table in tables.items()
        for labelled in table.columns
        if len(table)
    ]
    return pd.DataFrame(rows, columns=["strategy", "labelled", *Interval._fields])


def query_seconds(rounds: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of each stage of a query, strategies × stages, NaN where it has no such stage.

    Over all seeds and all rounds that ended in a query; a median, because the first query of a
    process also compiles.
    """
    queries = rounds[rounds["queried"] > 0]
    recorded = [str(name).removeprefix(STAGE) for name in rounds if str(name).startswith(STAGE)]
    stages = [stage for stage in QUERY_STAGES if stage in recorded]
    stages += [stage for stage in recorded if stage not in (*TRAINING_STAGES, *stages)]
    columns = [f"{STAGE}{stage}" for stage in stages]
    table = pd.DataFrame(queries.groupby("strategy", sort=False)[columns].median())
    return table.set_axis(stages, axis="columns")


def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row a strategy: what the report's table shows, with the ends of every interval.

    "Final" is at the last number of labels that all seeds of the strategy have reached. "Average"
    is over the rounds after the first query: before it no strategy has had a say.
    """
    medians = query_seconds(rounds)
    stages = [f"{STAGE}{stage}" for stage in medians]
    rows = []
    for name in strategies(rounds):
        own, table = _having(rounds, "strategy", [name]), by_seed(rounds, name)
        paired = minus_random(rounds, name) if name != REFERENCE else table.iloc[:0]
        queries = pd.DataFrame(own[own["queried"] > 0], columns=stages)
        row = {
            "strategy": name,
            "n": len(table),
            "seeds": " ".join(map(str, table.index)),
            "labels": table.columns[-1],
            **_named("final", table.iloc[:, -1]),
            **_named("average", table.iloc[:, 1:].mean(axis="columns").dropna()),
            "pairs": len(paired),
            "paired_labels": paired.columns[-1] if len(paired) else None,
            **_named("final_minus_random", paired.iloc[:, -1] if len(paired) else ()),
            **_named("average_minus_random", paired.iloc[:, 1:].mean(axis="columns").dropna()),
            "fits": len(own),
            "unfitted": sum(not fitted for fitted in own["fitted"]),
            f"{STAGE}fit": own.reindex(columns=[f"{STAGE}fit"])[f"{STAGE}fit"].median(),
            "peak_memory_mib": own["peak_memory_mib"].max(),
            f"{STAGE}query": queries.sum(axis="columns").median(),
            **dict.fromkeys(stages, math.nan),
        }
        if name in medians.index:
            row |= dict(zip(stages, medians.loc[name], strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def _named(name: str, values: Iterable[float]) -> dict[str, float]:
    _, mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
