"""What was measured, as rows of plain numbers: for CSV files, sentences and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.dynamics.run import Found

Rows = list[dict[str, Any]]
# What a row holds of every query or time, and a table does not.
_MANY = ("measured", "alignment", "each", "times", "error", "lower", "upper")


def tables(found: Found) -> dict[str, Rows]:
    """The tables of all figures that were measured, by figure; None where there is no number."""
    made = {
        "mmd": [row | {"share": _share(row)} for row in _of_states(found, "mmd")],
        "tau": _of_states(found, "tau"),
        "envelope": _envelope(found),
        "ratio": _ratio(found),
        "gamma": [] if found.gammas is None else found.gammas.curves,
    }
    return {name: rows for name, rows in made.items() if rows}


def where(rows: Sequence[dict[str, Any]], **wanted: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One column as float64, NaN where there is no number."""
    return np.array([row[name] for row in rows], np.float64)


def distinct(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The values of a column, each once, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def _share(row: dict[str, Any]) -> float | None:
    return None if row["bound"] is None else row["mmd"] / row["bound"]


def _of_states(found: Found, figure: str) -> Rows:
    return [
        {"network": state} | _short(row)
        for state, own in found.states.get(figure, {}).items()
        for row in own
    ]


def _envelope(found: Found) -> Rows:
    return [
        {"network": state, **_short(row), "time": t, "error": e, "lower": low, "upper": high}
        for state, own in found.states.get("envelope", {}).items()
        for row in own
        for t, e, low, high in zip(
            row["times"], row["error"], row["lower"], row["upper"], strict=True
        )
    ]


def _ratio(found: Found) -> Rows:
    rows = []
    for epoch, own in found.epochs.items():
        known = {name: own[name] for name in ("train_accuracy", "dynamics", "mean_norm")}
        known |= {"steps": own["training"]["steps"]}
        rows += [{"epoch": epoch, **known, **_short(row)} for row in own["rows"]]
    return rows


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _MANY}
