"""Curves of runs → the tables of a study: means with 95% intervals, and differences by seed.

Accuracies are fractions, as in the curves; percent and points are made where they are shown. An
interval is over the seeds of one subject and arm, and none is given for a single seed.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from experiments.statistics.outcomes import (
    MEASURES,
    REFERENCE,
    TRIAL,
    blocks,
    each,
    having,
    need,
    wide,
)
from pipelines.report.intervals import Interval, holm, interval, p_against

_CURVE = ["subject", "arm", "labelled", *Interval._fields]


def curve(curves: pd.DataFrame, value: str = "test_accuracy") -> pd.DataFrame:
    """Mean and interval over seeds at each number of labels that all seeds of an arm reached.

    A mean over seeds that change along the curve would show steps that no run made.

    Returns:
        Columns subject, arm, labelled, n, mean, low, high.

    Raises:
        PipelineError: a column is missing, or a round is there twice.
    """
    need(curves, [*TRIAL, "labelled", value])
    rows = []
    for subject, arm, own in each(curves):
        table = wide(own, value).dropna(axis="columns")
        rows += [(subject, arm, labels, *interval(table[labels])) for labels in table]
    return pd.DataFrame(rows, columns=_CURVE)


def difference(curves: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Mean and interval of the accuracy minus the reference's, of the same subject and seed.

    At each number of labels that all runs of both arms reached, of the seeds that both have.

    Returns:
        The columns of `curve`.

    Raises:
        PipelineError: a column is missing, or a round is there twice.
    """
    need(curves, [*TRIAL, "labelled", "test_accuracy"])
    rows = []
    for subject, arm, both in _pairs(curves, reference):
        table = wide(both)
        ours, theirs = (_of(table, name) for name in (arm, reference))
        seeds = ours.index.intersection(theirs.index)
        gained = (ours.loc[seeds] - theirs.loc[seeds]).dropna(axis="columns")
        rows += [(subject, arm, n, *interval(gained[n])) for n in gained if len(gained)]
    return pd.DataFrame(rows, columns=_CURVE)


def summary(curves: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """A row for each subject and arm.

    Returns:
        Columns subject, arm, n, seeds, first and labels (the first and last number of labels that
        it was measured at); of each of `MEASURES` its mean, `…_low` and `…_high`; and of its paired
        difference from the reference `…_gained`, `…_gained_low`, `…_gained_high`, `…_gained_p` and
        `…_gained_holm`, with `pairs` and `better`: in how many of the pairs the average is higher.
        p is of a paired t-test, and Holm corrects for the arms of the subject. NaN where there is
        nothing.

    Raises:
        PipelineError: a column is missing, or a round is there twice.
    """
    pairs = {(subject, arm): both for subject, arm, both in _pairs(curves, reference)}
    rows = []
    for subject, arm, own in each(curves):
        values = {name: blocks(own, name, [arm])[arm] for name in MEASURES}
        seeds = sorted(set(own["seed"]))
        row = {
            "subject": subject,
            "arm": arm,
            "n": len(values["final"]),
            "seeds": " ".join(map(str, seeds)),
            "first": own["labelled"].min(),
            "labels": own["labelled"].max(),
        }
        for name, found in values.items():
            row |= _named(name, found)
        rows.append(row | _gained(pairs.get((subject, arm)), arm, reference))
    table = pd.DataFrame(rows)
    for name in MEASURES if rows else ():
        grouped = table.groupby("subject", sort=False)[f"{name}_gained_p"]
        table[f"{name}_gained_holm"] = grouped.transform(lambda p: holm(p.tolist()))
    return table


def own_models(curves: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of models of their own that strategies look ahead with, beside the networks'.

    Returns:
        A row for each subject, arm and number of labels that any run has such a model at: columns
        subject, arm, labelled, n, and mean, `…_low` and `…_high` of `own`, of `network`, and of
        `gained`, which is the own model's minus the network's of the same run.

    Raises:
        PipelineError: a column is missing.
    """
    need(curves, [*TRIAL, "labelled", "test_accuracy", "own_accuracy"])
    rows = []
    for subject, arm, runs in each(curves.dropna(subset=["own_accuracy"])):
        for labels in sorted(set(runs["labelled"])):
            here = having(runs, labelled=[labels])
            own, network = (here[name].to_numpy() for name in ("own_accuracy", "test_accuracy"))
            row = {"subject": subject, "arm": arm, "labelled": labels, "n": len(here)}
            row |= _named("own", own) | _named("network", network)
            rows.append(row | _named("gained", own - network))
    return pd.DataFrame(rows)


def _gained(both: pd.DataFrame | None, arm: str, reference: str) -> dict[str, float]:
    row: dict[str, float] = {"pairs": 0, "better": 0}
    for name in MEASURES:
        gained = pd.Series(dtype=float)
        if both is not None:
            table = blocks(both, name, [arm, reference]).dropna()
            gained = table[arm] - table[reference]
        if name == "average":
            row |= {"pairs": len(gained), "better": int(np.sum(gained.to_numpy() > 0))}
        row |= _named(f"{name}_gained", gained) | {f"{name}_gained_p": p_against(gained)}
    return row


def _pairs(curves: pd.DataFrame, reference: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each subject and arm other than the reference, with the rows of both."""
    for subject, arm, _ in each(curves):
        both = having(curves, subject=[subject], arm=[arm, reference])
        if arm != reference and reference in set(both["arm"]):
            yield subject, arm, both


def _of(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    return pd.DataFrame(table.xs(arm, level="arm"))


def _named(name: str, values: Iterable[float]) -> dict[str, float]:
    _, mean, low, high = interval(values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
