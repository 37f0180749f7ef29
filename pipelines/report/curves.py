"""Learning curves of runs: comparable groups, tidy tables, means with 95% confidence.

Runs whose settings differ in more than strategy, seed and length are never averaged together: they
come apart into groups, each named by the settings in which it differs from the others. `tidy` makes
one row a round of a group; everything else aggregates over seeds: mean and interval, difference
from random paired by seed, medians of seconds. Accuracies are fractions in every table; percent and
points are made where they are shown.
"""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pipelines.core.errors import PipelineError
from pipelines.core.record import Run
from pipelines.strategies import SECTIONS, sections_of

REFERENCE = "random"
CONFIDENCE = 0.95
ROUNDING = 1e-12  # relative, of float64 after a few sums
# Settings that may differ within a group; `cycles` only says how far a run goes.
_APART = {"format", "strategy", "seed", "cycles"}
STAGE = "seconds_"  # prefix of the columns that hold a stage's seconds
TRAINING_STAGES = ("fit", "evaluate")  # the same for every strategy: not part of a query
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


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but strategy, seed and length, so that they may be compared.

    Attributes:
        title: data set and network, and the settings in which the group differs from the others.
        settings: what the runs have in common, nested names joined by dots.
        runs: at most one for each strategy and seed, `random` first.
        dropped: runs left out in favour of a longer one of the same strategy and seed.
    """

    title: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    dropped: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Sort runs with at least one round into groups that may be compared.

    A strategy reads some sections of the settings only (`kernel`, `dynamics`, …). A run belongs to
    the group of every value of a section that it does not read, so that random's is in all groups.

    Raises:
        PipelineError: a configuration lacks data set, network, strategy or seed.
    """
    for run in runs:
        for name in ("dataset", "network", "strategy", "seed", "cycles"):
            field(run.config, name, f"config.json of {run.path}")
    members = _comparable([(run, _sections(run)) for run in runs])
    settings = [
        {key: value for _, own in group for part in own.values() for key, value in part.items()}
        for group in members
    ]
    made = []
    for group, values in zip(members, settings, strict=True):
        kept, dropped = _one_per_seed([run for run, _ in group])
        made.append(Group(_title(values, settings), values, kept, dropped))
    return tuple(sorted(made, key=lambda group: group.title))


_Entry = tuple[Run, dict[str, dict[str, Any]]]  # a run and its settings by section


def _sections(run: Run) -> dict[str, dict[str, Any]]:
    """Flat settings by section, of those that the strategy reads; all strategies read ""."""
    strategy = str(run.config["strategy"])
    arms = run.config["albl"]["arms"] if strategy == "albl" else ()
    read = sorted(sections_of(strategy, arms) & run.config.keys())
    parts = {"": {name: own for name, own in run.identity.items() if name not in SECTIONS}}
    parts |= {name: {name: run.config[name]} for name in read}
    return {
        name: {key: value for key, value in flat(part).items() if key not in _APART}
        for name, part in parts.items()
    }


def _comparable(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """Largest sets in which no two runs read the same section with different values."""
    values: dict[str, dict[str, None]] = {}
    for _, own in entries:
        for section, part in own.items():
            values.setdefault(section, {})[_key(part)] = None
    found: dict[frozenset[int], list[_Entry]] = {}
    for chosen in itertools.product(*values.values()):
        picked = dict(zip(values, chosen, strict=True))
        agreeing = {
            number: entry
            for number, entry in enumerate(entries)
            if all(_key(part) == picked[section] for section, part in entry[1].items())
        }
        found[frozenset(agreeing)] = list(agreeing.values())
    return [group for own, group in found.items() if not any(own < other for other in found)]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _title(own: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    """Data set, network, and the settings that differ from other groups of the same two."""
    alike = [other for other in settings if data_and_network(other) == data_and_network(own)]
    shown = []
    for key in sorted({*own}.union(*alike)):
        apart = key.split(".")[0] in SECTIONS
        values = [other.get(key) for other in alike if key in other or not apart]
        if any(value != values[0] for value in values) and (key in own or not apart):
            shown.append(f"{key} = {own.get(key, 'not set')}")
    return " · ".join([*data_and_network(own), *([", ".join(shown)] if shown else [])])


def data_and_network(settings: dict[str, Any]) -> tuple[str, str]:
    """Data set, by the name in its own metadata (which marks a lossy copy), and network."""
    return str(settings.get("data.name", settings["dataset"])), str(settings["network"])


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with nested names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _one_per_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    kept: dict[tuple[bool, str, int], Run] = {}
    dropped = []
    for run in runs:
        strategy = run.config["strategy"]
        key = (strategy != REFERENCE, strategy, run.config["seed"])
        other = kept.setdefault(key, run)
        if other is not run:
            longer, shorter = (run, other) if len(run.rounds) > len(other.rounds) else (other, run)
            kept[key] = longer
            dropped.append(shorter)
    return tuple(kept[key] for key in sorted(kept)), tuple(dropped)


def field(entry: dict[str, Any], name: str, where: str) -> Any:
    """An entry of a record.

    Raises:
        PipelineError: the entry is missing.
    """
    if not isinstance(entry, dict) or name not in entry:
        raise PipelineError(
            f"{where} has no {name!r}: it was edited, or written by another version. Make the run "
            "again in a new directory, or leave it out."
        )
    return entry[name]


def tidy(group: Group) -> pd.DataFrame:
    """One row for each completed round of each run.

    Raises:
        PipelineError: a round lacks an entry that the report needs.
    """
    dataset, network = data_and_network(group.settings)
    named = {"group": group.title, "dataset": dataset, "network": network}
    return pd.DataFrame(
        [named | round_row(run, entry) for run in group.runs for entry in run.rounds]
    )


def round_row(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """The columns of the tidy table, of one completed round of a run.

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


class Interval(NamedTuple):
    """A mean and its 95% confidence interval; the ends are NaN for fewer than two values."""

    n: int
    mean: float
    low: float
    high: float


def interval(values: Iterable[float]) -> Interval:
    """Mean ± t(0.975, n−1) · sd/√n, Student's interval for the mean of independent values."""
    array = np.fromiter(values, dtype=np.float64)
    n = array.size
    mean = float(array.mean()) if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * standard_error(array)
    return Interval(n, mean, mean - half, mean + half)


def standard_error(array: np.ndarray) -> float:
    """Standard error of the mean; 0 where the values differ by rounding only."""
    spread = float(array.std(ddof=1))
    return 0.0 if spread <= ROUNDING * abs(array).max() else spread / math.sqrt(array.size)


def _having(rounds: pd.DataFrame, column: str, values: Iterable[Any]) -> pd.DataFrame:
    return pd.DataFrame(rounds[rounds[column].isin(list(values))])


def strategies(rounds: pd.DataFrame) -> list[str]:
    """The strategies of a tidy table, in its order."""
    return list(dict.fromkeys(rounds["strategy"]))


def by_seed(rounds: pd.DataFrame, strategy: str, value: str = "test_accuracy") -> pd.DataFrame:
    """A value of one strategy, seeds × number of labels.

    Only the numbers of labels that *all* its seeds have reached: with other seeds along the curve
    the mean would jump where no run did.
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

    Over all seeds and all rounds that ended in a query; medians, because the first query of a
    process includes compilation.
    """
    queries = rounds[rounds["queried"] > 0]
    recorded = [str(name).removeprefix(STAGE) for name in rounds if str(name).startswith(STAGE)]
    stages = [stage for stage in QUERY_STAGES if stage in recorded]
    stages += [stage for stage in recorded if stage not in (*TRAINING_STAGES, *stages)]
    columns = [f"{STAGE}{stage}" for stage in stages]
    table = pd.DataFrame(queries.groupby("strategy", sort=False)[columns].median())
    return table.set_axis(stages, axis="columns")


def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row a strategy: the report's table, with the ends of every interval.

    "Final" is at the last number of labels that all seeds of the strategy have reached, "average"
    over the rounds after the first query, which alone depend on the strategy.
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
