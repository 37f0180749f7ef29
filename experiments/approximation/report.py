"""Report of an approximation experiment: one table, a picture, sentences, a page, a record.

The sentences state numbers of this network and seed; whether a claim holds is for a study of
several seeds to say. Regression is drawn from 0, because from the logits of a network that has
fitted its labels nothing is left to fit.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console

from experiments.approximation.config import FULL, INITIAL, TRAINED
from experiments.approximation.run import NETWORK, ZERO, ApproximationResult, Rows, WidthResult
from experiments.drawing import legend_above, series_style, share_y_limits
from experiments.dynamics.report import cell, markdown_table, print_table
from kernel.files import write_files
from pipelines.config import identity
from pipelines.core.json_io import write_record
from pipelines.report.drawing import INK, SMALL, canvas, finish, png
from pipelines.run import describe

FORMAT = 1
RECORD, TABLE, PICTURE, PAGE = "record.json", "rows.csv", "approximation.png", "report.md"
# Keys of a result → names in the CSV file, pages and pictures.
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
_AT = {INITIAL: "at initialisation", TRAINED: "after training"}
_HEIGHT, _TOP = 1.55, 0.62  # inches; the legend is above the titles


def write(result: ApproximationResult) -> None:
    """Write table, picture, page and record into the directory, replaced together."""
    folder, first = result.config.run_folder, result.widths[0].task
    write_files(
        {
            folder / TABLE: pd.DataFrame(rows(result)).to_csv(index=False).encode(),
            folder / PICTURE: picture(result),
            folder / PAGE: _page(result).encode(),
        }
    )
    content: dict[str, Any] = {
        "format": FORMAT,
        "config": identity(result.config),
        "data": describe(first.dataset),
        "sentences": sentences(result),
        "labelled": first.labelled,
        "tests": first.tests,
        "widths": [
            {
                "width": own.task.width,
                "parameters": own.parameters,
                "training": own.notes,
                "states": own.states,
            }
            for own in result.widths
        ],
    }
    write_record(folder / RECORD, content, result.seconds)


def show(result: ApproximationResult, console: Console) -> None:
    """Print the table and sentences, and where the files are."""
    print_table(console, *_cells(result))
    for sentence in sentences(result).values():
        console.print(sentence, highlight=False)
    files = ", ".join((PAGE, TABLE, PICTURE, RECORD))
    console.print(f"record: {result.config.run_folder} ({files})", highlight=False, soft_wrap=True)


def _page(result: ApproximationResult) -> str:
    config = result.config
    lines = [
        f"# Kernels that stand for the full one: {config.network} on {config.dataset}",
        "",
        f"Seed {config.seed}, {config.initial} labels, {config.test} test images. What the numbers "
        "mean and what they do not is in docs/approximation.md.",
        "",
        f"![Errors against width]({PICTURE})",
        "",
        *(f"- {sentence}" for sentence in sentences(result).values()),
        "",
        *markdown_table(*_cells(result)),
        "",
        f"All numbers: [{TABLE}]({TABLE}).",
    ]
    return "\n".join(lines) + "\n"


def _cells(result: ApproximationResult) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table that people read, a row a state, width and kernel."""
    ridge = result.config.ridges[0]
    header = ["state", result.config.width_argument, "kernel", "Frobenius error", "λ_max", "κ"]
    header += [f"regression from 0, λ = {ridge:g}: error", "accuracy", ACCURACY]
    body = []
    for own in result.widths:
        for state, measured in own.states.items():
            values = {
                (row["measure"], row["series"]): row["value"] for row in _of_state(own, state)
            }
            for kind in (row["kind"] for row in measured["kernels"]):
                series = series_of(kind, ridge, ZERO)
                keys = [
                    ("frobenius error", kind),
                    ("largest eigenvalue", kind),
                    ("condition number", kind),
                    ("regression error", series),
                    ("regression accuracy", series),
                    (ACCURACY, ""),
                ]
                numbers = [cell(values.get(key)) for key in keys]
                body.append([state, str(own.task.width or "–"), kind, *numbers])
    return header, body


# --- table


def rows(result: ApproximationResult) -> Rows:
    """One row a number: state, width, parameters, measure, series, value; None for no number.

    `series` is the kernel; of regression also the ridge and what it adds to: "sum, ridge 0,
    network".
    """
    return [row for own in result.widths for state in own.states for row in _of_state(own, state)]


def _of_state(own: WidthResult, state: str) -> Iterator[dict[str, Any]]:
    about = {"state": state, "width": own.task.width, "parameters": own.parameters}
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
    """Label of regression with a kernel."""
    return f"{kind}, ridge {ridge:g}, {start}"


def kinds(result: ApproximationResult) -> list[str]:
    """The kernels that are compared with the full one, in the order asked for."""
    states = result.widths[0].states
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


# --- sentences


def sentences(result: ApproximationResult) -> dict[str, str]:
    """One sentence for each thing measured, of the first kind asked for."""
    table, kind = rows(result), kinds(result)[0]
    ridges = result.config.ridges
    said = {
        "frobenius": f"Relative Frobenius error of {kind}: "
        + _told(result, table, "frobenius error", kind),
        "largest": f"Relative error of the largest eigenvalue with {kind}: "
        + _told(result, table, "largest eigenvalue error", kind),
        "condition": f"Condition number with {kind} over that of full: "
        + _told(result, table, "condition number ratio", kind),
    }
    for ridge, start in [(ridges[0], NETWORK), *((ridge, ZERO) for ridge in ridges)]:
        words = f"λ = {ridge:g} of the mean diagonal of full" if ridge else "λ = 0"
        words += f", from {'the logits of the network' if start == NETWORK else '0'}"
        known = "regression accuracy"
        own, full = (
            _told(result, table, known, series_of(name, ridge, start), False)
            for name in (kind, FULL)
        )
        error = _told(result, table, "regression error", series_of(kind, ridge, start))
        said[f"regression {ridge:g} {start}"] = (
            f"Kernel regression with {words}, {kind} against full on test images: relative "
            f"difference {error}; accuracy of {kind} {own}; of full {full}"
        )
    said = {name: f"{text}." for name, text in said.items()}
    said |= {"data": " ".join(notes)} if (notes := result.widths[0].task.dataset.notes) else {}
    unfitted = [own for own in result.widths if own.notes and not own.notes["fitted"]]
    if unfitted:
        which = ", ".join(str(own.task.width) for own in unfitted if own.task.width)
        said["training"] = (
            f"NOT fitted to their labels: {'width ' + which if which else 'the network'}; what is "
            "said after training is of networks still on their way."
        )
    return said


def _told(
    result: ApproximationResult, table: Rows, measure: str, series: str, falls: bool = True
) -> str:
    return ", ".join(
        f"{_ends(*by_width(table, state, measure, series), falls)} {_AT[state]}"
        for state in (INITIAL, TRAINED)
        if state in result.config.states
    )


def _ends(widths: np.ndarray, values: np.ndarray, falls: bool) -> str:
    """Change between the narrowest and widest network, with its exponent where it is meaningful."""
    if not len(values):
        return "no number"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    told = f"{values[0]:.3g} at width {widths[0]:g} to {values[-1]:.3g} at {widths[-1]:g}"
    power = exponent(widths, values) if falls and len(values) > 2 else float("nan")
    return f"{told} (as width^{power:.2f})" if np.isfinite(power) else told


# --- picture


def picture(result: ApproximationResult) -> bytes:
    """Errors against width, and n^(−1/2) beside the first of them."""
    table, config = rows(result), result.config
    states = [state for state in _AT if state in config.states]
    measures = [
        ("frobenius error", "Frobenius\nerror", ""),
        ("largest eigenvalue error", "error of λ_max", ""),
        ("condition number ratio", "κ over that\nof full", ""),
    ]
    error = "regression error"
    for ridge in config.ridges:
        label = f"regression from\n0, λ = {ridge:g}"
        measures.append((error, label, series_of("", ridge, ZERO)))
    data = result.widths[0].task.dataset
    side = data.image_shape[1]
    caption = (
        f"K ⊗ I against full, {data.name} {side}×{side}, {config.network}, {config.initial} "
        f"labels, {config.test} test images, seed {config.seed}: one network a width. λ in units "
        "of the mean diagonal of full; errors are relative to full. Dots: width^(−1/2)."
    )
    shape = (len(measures), len(states))
    figure, axes = canvas(
        caption, _HEIGHT, left=0.95, right=0.15, top=_TOP, shape=shape, gaps=(0.3, 0.62)
    )
    widths = [own.task.width or 1 for own in result.widths]
    for row, (measure, label, suffix) in enumerate(measures):
        panels = axes[row * len(states) : (row + 1) * len(states)]
        for panel, state in zip(panels, states, strict=True):
            for number, kind in enumerate(kinds(result)):
                x, values = by_width(table, state, measure, kind + suffix)
                panel.plot(np.where(np.isfinite(x), x, 1), values, **series_style(number))
            last = row == len(measures) - 1
            name = config.width_argument if last and config.widths else ""
            title, y = "" if row else _AT[state], "" if panel is not panels[0] else label
            finish(panel, title, name, y, size=10)
            panel.yaxis.label.set_fontsize(SMALL)
            _scales(panel, widths, last)
            if not row:
                _guide(panel, widths)
        share_y_limits(panels)
        _ticks(panels)
    handles = [
        Line2D([], [], label=kind, **series_style(n)) for n, kind in enumerate(kinds(result))
    ]
    return png(legend_above(figure, handles))


def _scales(panel: Axes, widths: list[int], named: bool) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(widths, [str(width) for width in widths] if named else ["" for _ in widths])


def _ticks(panels: list[Axes]) -> None:
    """Decades, or 1, 2 and 5 where there are few of them."""
    low, high = panels[0].get_ylim()
    for panel in panels:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())


def _guide(panel: Axes, widths: list[int]) -> None:
    """A fall as width^(−1/2) below the first points."""
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in panel.get_lines()]
    starts = [float(values[0]) for values in drawn if len(values)]
    if len(widths) < 2 or not starts:
        return
    x = np.array(widths, np.float64)
    panel.plot(x, 0.8 * min(starts) * np.sqrt(x[0] / x), color=INK, linestyle=(0, (1, 2)), lw=1)
