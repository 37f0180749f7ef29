"""Tables of a study → header and rows of words, as its page shows them.

Accuracies are told in percent and differences in points, each with its 95% interval.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.report.study_tables import Ranking
from experiments.statistics.judgement import NOT_REPRODUCED, REPRODUCED, Judgement, number
from pipelines.report.page import seed_ranges
from pipelines.report.pictures import duration

Table = tuple[list[str], list[list[str]]]
_MARKS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗"}


def verdicts(judgements: Sequence[Judgement]) -> Table:
    """What became of each claim."""
    header = ["what the paper says", "verdict", "effect, 95% interval", "n", "p", "p (Holm)"]
    rows = [
        [
            one.claim,
            f"{_MARKS.get(one.verdict, '?')} {one.verdict}",
            _effect(one),
            str(one.n),
            p_value(one.p),
            p_value(one.p_holm),
        ]
        for one in judgements
    ]
    return header, rows


def _effect(one: Judgement) -> str:
    if math.isnan(one.effect):
        return "—"
    mean, low, high = (number(value, one.scale) for value in (one.effect, one.low, one.high))
    ends = "" if math.isnan(one.low) else f" ({low} to {high})"
    return f"{mean}{ends} {one.scale}".strip().replace("-", "−")


def accuracies(summary: pd.DataFrame) -> Table:
    """Accuracy of each arm of one subject, and what it gains over random."""
    header = ["arm", "n", "seeds", "labels", "final", "average", "area under the curve"]
    header += ["final − random", "average − random", "p", "p (Holm)", "better in"]
    rows = [
        [
            row["arm"],
            str(row["n"]),
            seed_ranges(row["seeds"]),
            f"{row['labels']:g}",
            *(percent(row, name) for name in ("final", "average", "area")),
            *(percent(row, f"{name}_gained", sign="+") for name in ("final", "average")),
            p_value(row["average_gained_p"]),
            p_value(row["average_gained_holm"]),
            f"{row['better']} of {row['pairs']}" if row["pairs"] else "—",
        ]
        for row in summary.to_dict("records")
    ]
    return header, rows


def pairs(ranking: Ranking) -> Table:
    """Every pair of arms."""
    header = ["arm − other", "n", "difference, points", "p", "p (Holm)", "p (Nemenyi)"]
    rows = [
        [
            f"{row['arm']} − {row['other']}",
            str(row["n"]),
            percent(row, "mean", ("low", "high"), "+"),
            *(p_value(row[name]) for name in ("p", "p_holm", "p_nemenyi")),
        ]
        for row in ranking.pairs.to_dict("records")
    ]
    return header, rows


def ranks(ranking: Ranking) -> str:
    """Friedman's test in a sentence, or why there is none."""
    found = ranking.found
    if found is None:
        return ranking.why
    told = ", ".join(f"{arm} {rank:.2f}" for arm, rank in found.ranks.items())
    dropped = f", {found.dropped} more left out that lack an arm" if found.dropped else ""
    degrees = len(found.ranks) - 1
    return (
        f"Friedman's test over {found.blocks} blocks ({found.unit}{dropped}): "
        f"χ²({degrees}) = {found.chi2:.2f}, {_p(found.p)}; Iman and Davenport's "
        f"F = {found.f:.2f}, {_p(found.f_p)}. Average ranks: {told}; critical difference "
        f"(Nemenyi, α = .05) {found.critical:.2f}."
    )


def savings(table: pd.DataFrame) -> Table:
    """Labels saved at equal accuracy, of one subject."""
    header = ["arm", "n", "reached it", "labels saved, median", "95% interval", "random needs"]
    rows = [
        [
            row["arm"],
            str(row["n"]),
            f"{row['reached']} of {row['n']}",
            _count(row["median"]) + (f" ({100 * row['share']:.0f}%)" if row["share"] > 0 else ""),
            "—" if math.isnan(row["low"]) else f"{_count(row['low'])} to {_count(row['high'])}",
            _count(row["reference_labels"]),
        ]
        for row in table.to_dict("records")
    ]
    return header, rows


def spent(table: pd.DataFrame) -> Table:
    """Seconds of a query against accuracy gained, of one subject."""
    header = ["arm", "queries", "time of one", "95% interval", "median", "average − random"]
    rows = [
        [
            row["arm"],
            str(row["queries"]),
            duration(row["seconds"]),
            "—"
            if math.isnan(row["seconds_low"])
            else f"{duration(row['seconds_low'])} to {duration(row['seconds_high'])}",
            duration(row["median_seconds"]),
            percent(row, "gained", sign="+") if row["pairs"] else "—",
        ]
        for row in table.to_dict("records")
    ]
    return header, rows


def models(table: pd.DataFrame) -> Table:
    """Accuracy of the models that strategies look ahead with, of one subject."""
    header = ["arm", "labels", "n", "its own model", "its network", "own − network"]
    rows = [
        [
            row["arm"],
            f"{row['labelled']:g}",
            str(row["n"]),
            *(percent(row, name) for name in ("own", "network")),
            percent(row, "gained", sign="+"),
        ]
        for row in table.to_dict("records")
    ]
    return header, rows


def measured(table: pd.DataFrame) -> Table:
    """Means of what was measured, of one subject."""
    axes = [axis for axis in dict.fromkeys(table["axis"]) if axis]
    states = any(table["state"])
    header = ["quantity", "of", *(["network"] if states else []), " or ".join(axes) or "x"]
    rows = [
        [
            row["measure"],
            row["line"],
            *([row["state"]] if states else []),
            "—" if pd.isna(row["x"]) else f"{row['x']:g}",
            str(row["n"]),
            f"{row['mean']:.4g}",
            "—" if pd.isna(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}",
        ]
        for row in table.to_dict("records")
    ]
    return [*header, "n", "mean", "95% interval"], rows


def percent(
    row: Mapping[str, Any], name: str, ends: tuple[str, str] | None = None, sign: str = "-"
) -> str:
    """A fraction in percent with its interval; "—" where there is none."""
    low, high = ends or (f"{name}_low", f"{name}_high")
    if pd.isna(row[name]):
        return "—"
    told = f"{100 * row[name]:{sign}.2f}"
    if not pd.isna(row[low]):
        told += f" ({100 * row[low]:{sign}.2f} to {100 * row[high]:{sign}.2f})"
    return told.replace("-", "−")


def p_value(p: float) -> str:
    """Two significant digits, or that it is smaller than anybody cares for."""
    return "—" if pd.isna(p) else "< .0001" if p < 1e-4 else f"{p:.2g}".removeprefix("0")


def _p(p: float) -> str:
    told = p_value(p)
    return f"p {told}" if told.startswith("<") else f"p = {told}"


def _count(value: float) -> str:
    return "—" if pd.isna(value) else f"{value:.0f}".replace("-", "−")
