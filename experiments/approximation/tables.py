"""What was measured, as rows of plain numbers: for the CSV file, sentences and the picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.approximation.comparison import Rows
from experiments.approximation.config import FULL
from experiments.approximation.run import Found, OfWidth

# What is measured → how the CSV file, pages and pictures call it.
OF_KERNEL = {
    "frobenius": "frobenius error",
    "frobenius_cross": "frobenius error, test images",
    "largest": "largest eigenvalue",
    "largest_error": "largest eigenvalue error",
    "smallest": "smallest eigenvalue",
    "condition": "condition number",
    "condition_ratio": "condition number ratio",
    "diagonal": "diagonal",
    "diagonal_difference": "diagonal difference",
}
OF_REGRESSION = {
    "error": "regression error",
    "agreement": "regression agreement",
    "accuracy": "regression accuracy",
    "jitter": "regression jitter",
    "network_error": "distance from the trained network",
    "network_agreement": "agreement with the trained network",
}
ACCURACY = "network accuracy"


def rows(found: Found) -> Rows:
    """One row a number: state, width, parameters, measure, series, value; None for no number.

    `series` is the kernel; of regression also the ridge and what it adds to: "sum, ridge 0,
    network".
    """
    return [row for own in found.widths for state in own.states for row in _of_state(own, state)]


def _of_state(own: OfWidth, state: str) -> Iterator[dict[str, Any]]:
    about = {"state": state, "width": own.subject.width, "parameters": own.parameters}
    measured = own.states[state]
    for row in measured["kernels"]:
        for name, measure in OF_KERNEL.items():
            if name in row:
                yield about | {"measure": measure, "series": row["kind"], "value": row[name]}
    for row in measured["regression"]:
        series = series_of(row["kind"], row["ridge"], row["start"])
        for name, measure in OF_REGRESSION.items():
            if name in row:
                yield about | {"measure": measure, "series": series, "value": row[name]}
    yield about | {"measure": ACCURACY, "series": "", "value": measured["accuracy"]}


def series_of(kind: str, ridge: float, start: str) -> str:
    """What regression with a kernel is called."""
    return f"{kind}, ridge {ridge:g}, {start}"


def kinds(found: Found) -> list[str]:
    """The kernels that are compared with the full one, in the order asked for."""
    states = found.widths[0].states
    own = next(iter(states.values()))["kernels"]
    return [row["kind"] for row in own if row["kind"] != FULL]


def by_width(table: Rows, state: str, measure: str, series: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths and values, float64, of those that have a number; NaN for the width of one network."""
    own = [
        (row["width"], row["value"])
        for row in table
        if (row["state"], row["measure"], row["series"]) == (state, measure, series)
        and row["value"] is not None
    ]
    both = np.array(own, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def exponent(widths: np.ndarray, values: np.ndarray) -> float:
    """The a of value = c·widthᵃ, by least squares in logarithms; NaN for fewer than two widths."""
    fit = (values > 0) & np.isfinite(widths)
    if fit.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(widths[fit]), np.log(values[fit]), 1)[0])
