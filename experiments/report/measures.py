"""The record of an audit, of dynamics or of kernels compared → numbers in long form, by quantity.

One row a number, under the name of a quantity; what was redrawn within a trial is averaged, so that
a trial says one thing, and trials differ by their seeds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipelines.errors import PipelineError

INITIAL, TRAINED = "initial", "trained"
# Of an audit, by what its table calls them.
AUDITED = ("spearman", "ceiling", "agreeing", "gain", "error", "cosine", "size", "point_error")


class Measure(NamedTuple):
    """One number of a trial.

    Attributes:
        measure: what is measured; figures have a panel for each.
        series: of what, such as a kernel or a way to choose; figures have a line for each.
        axis: what x is; empty where there is none.
        x: width, size of a query, epoch; NaN where there is none.
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
        """The name under which claims know it: measure and series, joined by a comma."""
        return ", ".join(word for word in (self.measure, self.series) if word)


def measures(kind: str, folder: Path) -> list[Measure]:
    """The numbers of a trial, finite ones alone.

    Args:
        kind: of the trial, a name of `READERS`.
        folder: its directory.

    Raises:
        PipelineError: a table cannot be understood or lacks a column.
    """
    try:
        found = list(READERS[kind](folder))
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(
            f"the tables of the {kind} in {folder} cannot be understood "
            f"({type(error).__name__}: {error}); carry it out again in a new directory."
        ) from error
    return [one for one in found if math.isfinite(one.value)]


def _audit(folder: Path) -> Iterator[Measure]:
    """Quantities such as "spearman, sum, network": measure, kernel, reference."""
    table = pd.read_csv(folder / "table.csv")
    for row in _rows(table):
        words = [row["kind"], row["reference"]]
        if pd.notna(row["sketch"]):
            words.append(f"sketch {row['sketch']:g}")
        width, steps = float(row["width"]), float(row["steps"])
        axis, x = "width", width
        if math.isnan(width) and not math.isnan(steps):
            axis, x = "training steps", steps
        elif not math.isnan(steps):
            words.append(f"{steps:g} steps")
        for name in AUDITED:
            axis = "" if math.isnan(x) else axis
            yield Measure(name, ", ".join(words), axis, x, float(row[name]), TRAINED)


def _dynamics(folder: Path) -> Iterator[Measure]:
    """Quantities such as "MMD, random", "tau, G_MSE" and "ratio, dynamical, 50"."""
    axis = "query size"
    for row in _read(folder, "mmd", ("network", "queries", "chosen")):
        for name, column in (("MMD", "mmd"), ("bound", "bound"), ("MMD over bound", "share")):
            yield Measure(name, row["chosen"], axis, row["queries"], row[column], row["network"])
    for row in _read(folder, "tau", ("network", "queries", "measure")):
        yield Measure("tau", row["measure"], axis, row["queries"], row["tau"], row["network"])
    for row in _read(folder, "ratio", ("epoch", "queries", "chosen")):
        series = f"{row['chosen']}, {row['queries']:g}"
        yield Measure("ratio", series, "epoch", row["epoch"], row["ratio_of_means"], "")
        yield Measure("median ratio", series, "epoch", row["epoch"], row["median"], "")
    for row in _read(folder, "ratio", ("epoch",)):
        yield Measure("training accuracy", "", "epoch", row["epoch"], row["train_accuracy"], "")


def _approximation(folder: Path) -> Iterator[Measure]:
    """Quantities such as "frobenius error, sum" and "regression error, sum, ridge 0, zero"."""
    for row in _rows(pd.read_csv(folder / "rows.csv", keep_default_na=False, na_values=[""])):
        series = "" if pd.isna(row["series"]) else row["series"]
        x = float(row["width"])
        axis = "" if math.isnan(x) else "width"
        yield Measure(row["measure"], series, axis, x, float(row["value"]), row["state"])


def _read(folder: Path, name: str, keys: Iterable[str]) -> list[Mapping[str, Any]]:
    """Means by some columns of a table; no rows where the table was not asked for."""
    file = folder / f"{name}.csv"
    if not file.is_file():
        return []
    table = pd.read_csv(file)
    means = table.groupby(list(keys), sort=False, as_index=False).mean(numeric_only=True)
    return _rows(pd.DataFrame(means))


def _rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


READERS: dict[str, Callable[[Path], Iterable[Measure]]] = {
    "audit": _audit,
    "dynamics": _dynamics,
    "approximation": _approximation,
}
